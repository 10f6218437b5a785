"""Models and data of the paper's experiment, by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import nn

from lrpguard.errors import ConfigurationError, LoadingError
from lrpguard.evaluation.cifar_resnet import MEAN, STD
from lrpguard.evaluation.labelled import Labelled, labelled
from lrpguard.evaluation.paper.experiment import THRESHOLD_IMAGES, Splits
from lrpguard.loading import LoadedModel, load_data, load_model
from lrpguard.restoration import PAPER_PIXELS

DATA_VARIABLE = "LRPGUARD_DATA"
"""Environment variable that names the folder of the default weights and images."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that the experiment knows.

    Attributes:
        spec: Specification for :func:`lrpguard.loading.load_model`.
        cifar: Whether it classifies CIFAR-10; otherwise ImageNet.
        weights: Default weights, within the data folder; None where the specification's own
            are downloaded.
    """

    spec: str
    cifar: bool
    weights: str | None


MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "vgg16": ModelEntry("torchvision:vgg16@IMAGENET1K_V1", False, None),
        "squeezenet1_1": ModelEntry(
            "torchvision:squeezenet1_1", False, "models/squeezenet1_1_imagenet.safetensors"
        ),
        "resnet20": ModelEntry(
            "lrpguard.evaluation.cifar_resnet:resnet20",
            True,
            "models/resnet20_cifar10.safetensors",
        ),
        "resnet32": ModelEntry(
            "lrpguard.evaluation.cifar_resnet:resnet32",
            True,
            "models/resnet32_cifar10.safetensors",
        ),
    }
)
"""Every model, by the name that the command line gives it."""

_IMAGES = "imagenet_samples"
_FOOLBOX = "foolbox_imagenet"
_CIFAR = "cifar10/test_5000.npz"
_CLASSES = {True: 10, False: 1000}


@dataclass(frozen=True)
class Paths:
    """Where weights and images lie; None takes the place in the data folder.

    Attributes:
        weights: Weights file.
        images: Folder of ImageNet images.
        labels: File of ``name,label`` lines for ``images``.
        calibration_images: Folder of the 20 images that place the threshold.
        cifar: ``.npz`` of CIFAR-10 images and labels.
    """

    weights: Path | None = None
    images: Path | None = None
    labels: Path | None = None
    calibration_images: Path | None = None
    cifar: Path | None = None


@dataclass(frozen=True)
class Experiment:
    """A model and its data.

    Attributes:
        model: From [B, 3, H, W] in [0, 1] to logits.
        splits: Disjoint parts of the data.
        image_shape: (C, H, W).
        pixels: Pixels whitened in a round; None for 2 %.
    """

    model: nn.Module
    splits: Splits
    image_shape: tuple[int, int, int]
    pixels: int | None


def load_experiment(
    name: str,
    paths: Paths,
    *,
    test: int,
    conformal: int,
    seed: int,
    device: str = "cpu",
) -> Experiment:
    """Load a model, and draw the splits of its data.

    Args:
        name: One of ``MODELS``.
        paths: Where weights and images lie.
        test: Images to attack.
        conformal: Clean images for the conformal threshold; at most what the others leave.
        seed: Seed of the draw.
        device: Device of the model.

    Raises:
        ConfigurationError: The model is not known, a path is missing, or there are too few images.
        LoadingError: Weights or images cannot be loaded, or downloaded.
    """
    loaded = _load(name, paths, device)
    entry = MODELS[name]
    parts = _cifar_splits if entry.cifar else _imagenet_splits
    splits = parts(loaded, paths, test, conformal, seed)
    first = next(iter(splits.test)).image
    assert first is not None
    channels, height, width = first.shape
    return Experiment(
        model=loaded.model,
        splits=splits,
        image_shape=(channels, height, width),
        pixels=None if entry.cifar else PAPER_PIXELS,
    )


def load_model_and_data(name: str) -> tuple[nn.Module, Labelled]:
    """Load a model and all its images that are no Foolbox images, from the data folder.

    Args:
        name: One of ``MODELS``.

    Raises:
        ConfigurationError: The model is not known.
        LoadingError: Weights or images cannot be loaded, or the data folder is not named.
    """
    loaded, data = load_labelled(name)
    return loaded.model, data


def load_labelled(
    name: str,
    *,
    weights: Path | None = None,
    data: Path | None = None,
    labels: Path | None = None,
    device: str = "cpu",
) -> tuple[LoadedModel, Labelled]:
    """Load a model with the names of its classes, and images with their true ones.

    Args:
        name: One of ``MODELS``.
        weights: Weights file; None takes the data folder's, or torchvision's where it has none.
        data: Images: a folder, a file or an ``.npz``; None takes the data folder's.
        labels: File of ``name,label`` lines, where the images' names do not tell their class.
        device: Device of the model.

    Raises:
        ConfigurationError: The model is not known.
        LoadingError: Weights or images cannot be loaded, or a default is not there.
    """
    loaded = _load(name, Paths(weights=weights), device)
    cifar = MODELS[name].cifar
    where = data or _default(_CIFAR if cifar else _IMAGES, "--data")
    source = load_data(where, preprocessing=loaded.preprocessing)
    return loaded, labelled(source, classes=_CLASSES[cifar], labels_file=labels)


def _load(name: str, paths: Paths, device: str) -> LoadedModel:
    if name not in MODELS:
        raise ConfigurationError(f"no model is named {name!r}; there are {sorted(MODELS)}.")
    entry = MODELS[name]
    weights = paths.weights
    if weights is None and entry.weights is not None:
        weights = _default(entry.weights, "--weights")
    return load_model(
        entry.spec,
        weights=weights,
        mean=MEAN if entry.cifar else None,
        std=STD if entry.cifar else None,
        device=device,
    )


def _cifar_splits(
    loaded: LoadedModel, paths: Paths, test: int, conformal: int, seed: int
) -> Splits:
    path = paths.cifar or _default(_CIFAR, "--cifar")
    source = load_data(path, preprocessing=loaded.preprocessing)
    every = labelled(source, classes=_CLASSES[True])
    rest = min(conformal, max(0, len(every) - test - THRESHOLD_IMAGES))
    threshold, tested, clean = every.split([THRESHOLD_IMAGES, test, rest], seed=seed)
    return Splits(threshold=threshold, conformal=clean, test=tested)


def _imagenet_splits(
    loaded: LoadedModel, paths: Paths, test: int, conformal: int, seed: int
) -> Splits:
    images = load_data(
        paths.images or _default(_IMAGES, "--images"), preprocessing=loaded.preprocessing
    )
    foolbox = load_data(
        paths.calibration_images or _default(_FOOLBOX, "--calibration-images"),
        preprocessing=loaded.preprocessing,
    )
    every = labelled(images, classes=_CLASSES[False], labels_file=paths.labels)
    rest = min(conformal, max(0, len(every) - test))
    tested, clean = every.split([test, rest], seed=seed)
    return Splits(
        threshold=labelled(foolbox, classes=_CLASSES[False]), conformal=clean, test=tested
    )


def _default(place: str, option: str) -> Path:
    """Return a place in the data folder.

    Raises:
        LoadingError: There is no data folder, or no such place in it.
    """
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise LoadingError(
            f"{option} is not given, and the environment variable {DATA_VARIABLE}, which would "
            "name a folder with a default, is not set. Set either."
        )
    path = Path(folder) / place
    if not path.exists():
        raise LoadingError(f"{option} is not given, and there is no {place} in {DATA_VARIABLE}.")
    return path
