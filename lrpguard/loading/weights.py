"""Weights files: read without running code from them, and loaded strictly."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lrpguard.errors import LoadingError

_NESTED_UNDER = ("state_dict", "model")
_PARALLEL_PREFIX = "module."
_SHOWN = 4
_TRAINING_COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a weights file.

    Args:
        path: A ``.safetensors`` file; or a ``.pth`` or ``.pt`` with a state dict, plain or under
            ``"state_dict"`` or ``"model"``, which is read with ``weights_only=True``.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        LoadingError: The file is missing, unreadable, holds more than tensors, or has another
            ending.
    """
    if not path.is_file():
        raise LoadingError(f"there is no weights file {path}. Check --weights.")
    ending = path.suffix.lower()
    if ending == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise LoadingError(
                f"{path} is not a whole safetensors file ({error}). Save or copy it again."
            ) from error
    if ending in (".pth", ".pt"):
        return _state_of(path, _read_pickle(path))
    raise LoadingError(
        f"{path} ends in {ending!r}; weights are read from .safetensors, .pth or .pt."
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict into a model, strictly.

    Files from before torch 0.4.1 lack the batch counters of BatchNorm, which only training
    reads: torch fills them in.

    Args:
        model: The model, changed in place.
        state: Tensors by name. A ``module.`` before all of them (``nn.DataParallel``) is dropped.
        source: Where the tensors come from, for the error.

    Raises:
        LoadingError: Tensors are missing, left over, or of another shape.
    """
    own = model.state_dict()
    state = without_prefix(state, own)
    needed = [name for name in own if not name.endswith(_TRAINING_COUNTER)]
    problems = [
        _listed("it lacks", [name for name in needed if name not in state]),
        _listed("the model has no", [name for name in state if name not in own]),
        _listed(
            "of another shape:",
            [
                f"{name} {list(state[name].shape)} (model: {list(own[name].shape)})"
                for name in own
                if isinstance(own[name], Tensor)
                and isinstance(state.get(name), Tensor)
                and state[name].shape != own[name].shape
            ],
        ),
    ]
    found = "; ".join(problem for problem in problems if problem)
    try:
        if not found:
            model.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        found = str(error)
    if found:
        raise LoadingError(
            f"{source} does not fit the model {type(model).__name__}: {found}. "
            "Give the weights of this very architecture."
        )


def without_prefix(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the state dict without a ``module.`` that ``names`` do not have."""
    wrapped = bool(state) and all(name.startswith(_PARALLEL_PREFIX) for name in state)
    if not wrapped or any(name in names for name in state):
        return dict(state)
    return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in state.items()}


def class_count(model: nn.Module, state: Mapping[str, Tensor], *, default: int) -> int:
    """Return how many classes a state dict was trained for.

    Args:
        model: The same architecture, with ``default`` classes.
        state: Tensors by name.
        default: Number of classes of ``model``.

    Returns:
        The first dimension that the tensors of another shape share where the model has
        ``default``; ``default`` where there is none.
    """
    widths = {
        int(state[name].shape[0])
        for name, own in model.state_dict().items()
        if isinstance(state.get(name), Tensor)
        and own.ndim > 0
        and own.shape[0] == default
        and state[name].shape[1:] == own.shape[1:]
        and state[name].shape != own.shape
    }
    return widths.pop() if len(widths) == 1 else default


def modern_densenet_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of torchvision's old DenseNet files (``norm.1``) as of today (``norm1``)."""
    return {
        re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", name): tensor
        for name, tensor in state.items()
    }


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have errors of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadingError(
            f"{path} cannot be read with weights_only=True ({reason}). Save the state dict alone: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from error


def _state_of(path: Path, content: object) -> dict[str, Tensor]:
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        keys = f" with the keys {list(content)[:8]}" if isinstance(content, Mapping) else ""
        raise LoadingError(
            f"{path} holds a {type(content).__name__}{keys}; expected a state dict, plain or under "
            f"one of {_NESTED_UNDER}. Save model.state_dict()."
        )
    return {str(name): tensor for name, tensor in content.items()}


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}"
