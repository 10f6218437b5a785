"""Loading the real models and images: what the data's README measured comes out again."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpguard.evaluation import proportion
from lrpguard.loading import Preprocessing, batches, load_data, load_model

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LRPGUARD_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA} (set LRPGUARD_DATA)"
)


class Block(nn.Module):
    """Basic block with the parameter-free shortcut (He et al. 2016, option A)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = width // before
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        extra = out.shape[1] - x.shape[1]
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.relu(out + functional.pad(x, (0, 0, 0, 0, extra // 2, extra // 2)))


class ResNet20(nn.Module):
    """CIFAR ResNet of 20 layers (He et al. 2016, section 4.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


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


@pytest.fixture
def resnet20_spec(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the net of this file importable, as a user's package would be."""
    monkeypatch.chdir(Path(__file__).parent)
    return f"{Path(__file__).stem}:ResNet20"


def test_resnet20_from_a_factory_is_as_good_on_cifar10_as_measured(resnet20_spec: str) -> None:
    loaded = load_model(
        resnet20_spec,
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
