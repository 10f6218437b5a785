"""Loading the real models and images: what the data's README measured comes out again."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lrpguard.evaluation import proportion
from lrpguard.loading import Preprocessing, batches, load_data, load_model

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LRPGUARD_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA} (set LRPGUARD_DATA)"
)


def test_squeezenet_is_as_good_on_imagenet_samples_as_measured() -> None:
    loaded = load_model(
        "torchvision:squeezenet1_1",
        weights=DATA / "models" / "squeezenet1_1_imagenet.safetensors",
    )
    source = load_data(DATA / "imagenet_samples", preprocessing=loaded.preprocessing)
    every_fifth = range(0, len(source), 5)

    correct = 0
    for items, images in batches(source, 25, indices=every_fifth):
        labels = torch.tensor([int(item.name.split("_")[0]) for item in items])
        with torch.no_grad():
            correct += int((loaded.model(images).argmax(1) == labels).sum())
    share = proportion(correct, len(every_fifth), confidence=0.99)

    assert len(every_fifth) == 100
    assert share.low <= 0.652 <= share.high, f"measured 65.2 %, found {share}"


def test_class_names_are_those_of_the_sample_files() -> None:
    loaded = load_model(
        "torchvision:squeezenet1_1",
        weights=DATA / "models" / "squeezenet1_1_imagenet.safetensors",
    )
    assert loaded.class_names is not None
    paths = sorted((DATA / "imagenet_samples").iterdir())

    for path in paths:
        index, _, name = path.stem.split("_", 2)
        assert loaded.class_names[int(index)].lower().startswith(name.replace("_", " ").lower())
    assert len(paths) == 500


def test_the_foolbox_images_come_at_the_models_size() -> None:
    wanted = Preprocessing(image_size=(224, 224), resize_size=256)

    items = list(load_data(DATA / "foolbox_imagenet", preprocessing=wanted))

    assert len(items) == 20
    assert all(item.image is not None and item.image.shape == (3, 224, 224) for item in items)


def test_resnet20_from_a_factory_is_as_good_on_cifar10_as_measured() -> None:
    loaded = load_model(
        "lrpguard.evaluation.cifar_resnet:resnet20",
        weights=DATA / "models" / "resnet20_cifar10.safetensors",
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    source = load_data(DATA / "cifar10" / "test_5000.npz", preprocessing=loaded.preprocessing)
    indices = np.random.default_rng(0).permutation(len(source))[:1000].tolist()

    correct = 0
    for items, images in batches(source, 100, indices=indices):
        labels = torch.tensor([item.label for item in items])
        with torch.no_grad():
            correct += int((loaded.model(images).argmax(1) == labels).sum())
    share = proportion(correct, len(indices), confidence=0.99)

    assert share.low <= 0.914 <= share.high, f"measured 91.4 %, found {share}"
