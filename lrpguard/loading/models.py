"""A model from one line of text: torchvision, timm, or the user's own factory."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrpguard.errors import ConfigurationError, LoadingError, LrpGuardError
from lrpguard.inputs import NormalizedModel, stem_channels
from lrpguard.loading.preprocessing import Preprocessing
from lrpguard.loading.weights import load_weights, read_weights
from lrpguard.loading.zoo import (
    Network,
    Normalization,
    WeightsFile,
    timm_network,
    torchvision_network,
)

_DEFAULT_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that takes pixels in [0, 1], and what else its weights tell.

    Attributes:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode.
        name: The specification it was loaded by.
        preprocessing: What to do to an image file first.
        class_names: Name of each class, where the weights carry them.
    """

    model: nn.Module
    name: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images; None where any size goes."""
        return self.preprocessing.image_size

    @property
    def resize_size(self) -> int | None:
        """Shorter side in pixels before the centre crop; None where any size goes."""
        return self.preprocessing.resize_size

    @property
    def channels(self) -> int:
        """Channels of the images: 3 for RGB, 1 for grey."""
        return self.preprocessing.channels

    def class_name(self, label: int) -> str | None:
        """Return the name of a class, None where it is not known."""
        names = self.class_names
        return names[label] if names is not None and 0 <= label < len(names) else None


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load a classifier.

    Args:
        spec: One of
            ``torchvision:NAME[@WEIGHTS]`` (with ``@DEFAULT`` for the best of torchvision's own
            weights, which are downloaded; with a ``weights`` file, ``@WEIGHTS`` only says whose
            preprocessing holds), ``timm:NAME``, or ``package.module:factory``, a callable
            without arguments that returns an ``nn.Module``, or such a module, importable also
            from the current directory. **Importing runs that module's code.**
        weights: A ``.safetensors``, ``.pth`` or ``.pt`` file; it has to fit exactly. Nothing in
            it is run.
        mean: Mean of each channel on the [0, 1] scale, with ``std``; by default that of the
            weights. A factory's model is taken to accept [0, 1] pixels without it.
        std: Standard deviation of each channel.
        image_size: (H, W) to bring images to, in place of the weights' own.
        device: Where to put the model.

    Returns:
        The model and its preprocessing.

    Raises:
        LoadingError: The specification or the weights cannot be loaded.
        MissingDependencyError: timm is asked for and not installed.
        ConfigurationError: ``mean`` without ``std``, values that do not fit the model's
            channels, or a device that is not there.
    """
    given = _given_normalization(mean, std)
    kind, colon, rest = spec.partition(":")
    if not kind or not colon or not rest:
        raise LoadingError(
            f"the model {spec!r} is not understood. Give torchvision:NAME[@WEIGHTS], timm:NAME, "
            "or package.module:factory."
        )
    file = (
        None
        if weights is None
        else WeightsFile(state=read_weights(Path(weights)), source=str(weights))
    )
    if kind == "torchvision":
        network = torchvision_network(rest, file=file, given=given)
    elif kind == "timm":
        network = timm_network(rest, file=file, given=given)
    else:
        network = _factory_network(kind, rest, file=file, given=given)
    preprocessing = network.preprocessing
    if image_size is not None:
        preprocessing = replace(preprocessing, image_size=image_size, resize_size=None)
    return LoadedModel(
        model=_ready(network, device),
        name=spec,
        preprocessing=preprocessing,
        class_names=network.class_names,
    )


def _given_normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalization | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        missing = "mean" if mean is None else "std"
        raise ConfigurationError(f"{missing} is not given; give mean and std together.")
    return Normalization(tuple(mean), tuple(std))


def _ready(network: Network, device: str | torch.device) -> nn.Module:
    """Return the network in eval mode, on the device, taking [0, 1] pixels."""
    try:
        module = network.module.eval().to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"the model cannot be put on the device {str(device)!r} ({error}). Use 'cpu', or a "
            "device that torch lists."
        ) from error
    normalization = network.normalization
    if normalization is None:
        return module
    channels = network.preprocessing.channels
    if len(normalization.mean) != channels:
        raise ConfigurationError(
            f"mean has {len(normalization.mean)} value(s); the model has {channels} channel(s). "
            "Give one a channel."
        )
    if isinstance(module, NormalizedModel):
        raise ConfigurationError(
            "mean and std are given, but the factory's model is a NormalizedModel, which has its "
            "own. Leave them out, or return the bare network."
        )
    return NormalizedModel(module, normalization.mean, normalization.std)


def _factory_network(
    module_name: str, attribute: str, *, file: WeightsFile | None, given: Normalization | None
) -> Network:
    """Call the user's factory, or take the module that stands in its place."""
    spec = f"{module_name}:{attribute}"
    with _importable_current_directory():
        try:
            found: Any = functools.reduce(
                getattr, attribute.split("."), importlib.import_module(module_name)
            )
            model = found if isinstance(found, nn.Module) else found()
        except LrpGuardError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise LoadingError(
                f"{spec} cannot be loaded: {type(error).__name__}: {error}. It has to be "
                "importable from here or from an installed package, and callable without "
                "arguments."
            ) from error
    if not isinstance(model, nn.Module):
        raise LoadingError(
            f"{spec} gave a {type(model).__name__}; expected a torch.nn.Module. Return the model."
        )
    if file is not None:
        load_weights(model, file.state, source=file.source)
    fallback = len(given.mean) if given is not None else _DEFAULT_CHANNELS
    channels = stem_channels(model) or fallback
    return Network(
        module=model, normalization=given, preprocessing=Preprocessing(channels=channels)
    )


@contextmanager
def _importable_current_directory() -> Iterator[None]:
    """Let imports find the current directory, as ``python -m`` does, for a while."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
