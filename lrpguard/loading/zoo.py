"""Architectures of torchvision and timm, with the preprocessing that their weights want."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torchvision
from torch import Tensor, nn

from lrpguard.errors import LoadingError, MissingDependencyError
from lrpguard.loading.preprocessing import Preprocessing
from lrpguard.loading.weights import (
    class_count,
    load_weights,
    modern_densenet_names,
    without_prefix,
)

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_INCEPTIONS = ("googlenet", "inception_v3")
_MATCHES = 5


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, on the [0, 1] scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """Tensors of a weights file, and its name for the errors."""

    state: Mapping[str, Tensor]
    source: str


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network as its library knows it: not yet normalised, on the CPU.

    ``normalization`` is None where the network takes [0, 1] pixels.
    """

    module: nn.Module
    normalization: Normalization | None
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None


def torchvision_network(
    spec: str, *, file: WeightsFile | None, given: Normalization | None
) -> Network:
    """Build a classification model of torchvision.

    Args:
        spec: ``NAME`` or ``NAME@WEIGHTS``.
        file: Weights to load; None takes those that ``spec`` names, which may be a download.
        given: The caller's normalisation, which goes before that of the weights.

    Raises:
        LoadingError: Unknown name or weights, a failed download, weights that do not fit, or
            weights of other classes with no normalisation given.
    """
    name, _, weights_name = spec.partition("@")
    entry = _torchvision_weights(name, weights_name, has_file=file is not None)
    preset = entry.transforms()
    own = Normalization(tuple(preset.mean), tuple(preset.std))
    categories = tuple(entry.meta["categories"])
    if file is None:
        module, classes = _download(name, entry), len(categories)
    else:
        as_published = (given or own) == own
        module, classes = _from_file(name, file, len(categories), as_published=as_published)
    known = classes == len(categories)
    if not known and given is None:
        raise _unknown_normalization(file, classes, len(categories))
    return Network(
        module=module,
        normalization=given or own,
        preprocessing=Preprocessing(
            image_size=_pair(preset.crop_size),
            resize_size=int(preset.resize_size[0]),
            interpolation=preset.interpolation.value,
        ),
        class_names=categories if known else None,
    )


def timm_network(name: str, *, file: WeightsFile | None, given: Normalization | None) -> Network:
    """Build a model of timm.

    Args:
        name: timm's name, with or without a tag (``resnet18.a1_in1k``).
        file: Weights to load; None downloads timm's.
        given: The caller's normalisation, which goes before that of the weights.

    Raises:
        MissingDependencyError: timm is not installed.
        LoadingError: As for :func:`torchvision_network`.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise LoadingError(f"timm has no model {name!r}.{_similar(name, timm.list_models())}")
    if file is None:
        try:
            module = timm.create_model(name, pretrained=True)
        except Exception as error:  # the hub's, the network's, or timm's own
            raise _download_failed(f"timm:{name}", error) from error
    else:
        module = _timm_from_file(timm, name, file)
    config = timm.data.resolve_model_data_config(module)
    trained = int(module.pretrained_cfg.get("num_classes") or module.num_classes)
    if module.num_classes != trained and given is None:
        raise _unknown_normalization(file, module.num_classes, trained)
    channels, height, width = config["input_size"]
    return Network(
        module=module,
        normalization=given or Normalization(tuple(config["mean"]), tuple(config["std"])),
        preprocessing=Preprocessing(
            channels=channels,
            image_size=(height, width),
            resize_size=math.floor(height / config["crop_pct"]) if height == width else None,
            interpolation=_interpolation(config["interpolation"]),
        ),
    )


def _torchvision_weights(name: str, weights_name: str, *, has_file: bool) -> Any:
    """Return the member of the model's weights enum that the specification means."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise LoadingError(f"torchvision has no classifier {name!r}.{_similar(name, names)}")
    enum = torchvision.models.get_model_weights(name)
    usable = [member.name for member in enum if member.meta.get("categories")]
    if not weights_name and not has_file:
        raise LoadingError(
            f"torchvision:{name} without weights would be random. Name torchvision's own, one of "
            f"{', '.join(f'torchvision:{name}@{w}' for w in ('DEFAULT', *usable))}, or give a "
            "file with --weights FILE."
        )
    if weights_name not in ("", "DEFAULT", *usable):
        raise LoadingError(
            f"torchvision has no classification weights {weights_name!r} for {name}; it has "
            f"{', '.join(('DEFAULT', *usable))}."
        )
    return enum[weights_name or "DEFAULT"]


def _download(name: str, entry: Any) -> nn.Module:
    try:
        return cast(nn.Module, torchvision.models.get_model(name, weights=entry))
    except (OSError, RuntimeError) as error:  # unreachable, refused, or a wrong checksum
        raise _download_failed(f"torchvision:{name}@{entry.name}", error) from error


def _from_file(
    name: str, file: WeightsFile, published_classes: int, *, as_published: bool
) -> tuple[nn.Module, int]:
    """Return the model with the file's weights, and its number of classes.

    ``as_published`` tells that the model is fed with its published normalisation, which the
    Inception family then converts to that of its original weights.
    """
    options: dict[str, Any] = {}
    if name in _INCEPTIONS:  # the auxiliary classifiers serve training alone
        options = {"aux_logits": False, "init_weights": False, "transform_input": as_published}
    module = torchvision.models.get_model(name, weights=None, **options)
    state = without_prefix(file.state, module.state_dict())
    if name in _INCEPTIONS:
        state = {k: v for k, v in state.items() if not k.startswith(_AUXILIARY)}
    if name.startswith("densenet"):
        state = modern_densenet_names(state)
    classes = class_count(module, state, default=published_classes)
    if classes != published_classes:
        module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    load_weights(module, state, source=file.source)
    return module, classes


def _timm() -> Any:
    try:
        importlib.import_module("timm.data")
        return importlib.import_module("timm")
    except ImportError as error:
        raise MissingDependencyError(
            "timm:NAME needs timm, which is not installed: pip install 'lrpguard[timm]'."
        ) from error


def _timm_from_file(timm: Any, name: str, file: WeightsFile) -> Any:
    module = timm.create_model(name, pretrained=False)
    state = without_prefix(file.state, module.state_dict())
    classes = class_count(module, state, default=module.num_classes)
    if classes != module.num_classes:
        module = timm.create_model(name, pretrained=False, num_classes=classes)
    load_weights(module, state, source=file.source)
    return module


def _download_failed(spec: str, error: Exception) -> LoadingError:
    reason = str(error) or type(error).__name__
    return LoadingError(
        f"the weights of {spec} could not be fetched ({reason}). Fetch them on a machine that "
        "can, and pass them with --weights FILE (.safetensors or .pth)."
    )


def _unknown_normalization(file: WeightsFile | None, classes: int, published: int) -> LoadingError:
    source = file.source if file is not None else "the weights"
    return LoadingError(
        f"{source} has {classes} classes, not the published {published}, so how its training "
        "normalised pixels is not known. Pass --mean and --std; 0 and 1 if it takes [0, 1]."
    )


def _similar(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=_MATCHES, cutoff=0.5)
    return f" Close to it: {', '.join(close)}." if close else ""


def _pair(size: Sequence[int]) -> tuple[int, int]:
    return int(size[0]), int(size[-1])


def _interpolation(name: str) -> Literal["bilinear", "bicubic"]:
    return "bicubic" if name == "bicubic" else "bilinear"
