"""Baselines on the real ResNet-20 and SqueezeNet, and real images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import pgd, quantize
from lrpguard.baselines import baseline
from lrpguard.baselines.copies import Noise
from lrpguard.baselines.odds import Odds
from lrpguard.evaluation.metrics import auroc
from lrpguard.evaluation.paper.setup import Paths, load_experiment

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LRPGUARD_DATA", ROOT.parent / "shared" / "data"))

PATHS = {
    "resnet20": Paths(
        weights=DATA / "models" / "resnet20_cifar10.safetensors",
        cifar=DATA / "cifar10" / "test_5000.npz",
    ),
    "squeezenet1_1": Paths(
        weights=DATA / "models" / "squeezenet1_1_imagenet.safetensors",
        images=DATA / "imagenet_samples",
        calibration_images=DATA / "foolbox_imagenet",
    ),
}

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA} (set LRPGUARD_DATA)"
)


def loaded(name: str, *, fit: int, test: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return a model, and images with labels to fit on and, disjoint from these, to test on."""
    experiment = load_experiment(name, PATHS[name], test=test, conformal=fit, seed=0)
    splits = experiment.splits
    assert not set(splits.test.indices) & set(splits.conformal.indices)
    parts = []
    for split in (splits.conformal, splits.test):
        items = list(split)
        images = torch.stack([item.image for item in items if item.image is not None])
        parts.append((quantize(images), torch.tensor([item.label for item in items])))
    return experiment.model, parts


def test_odds_separate_pgd_from_clean_images_and_find_the_true_class() -> None:
    model, (fit, (images, labels)) = loaded("resnet20", fit=60, test=20)
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    attacked = quantize(pgd(model, images[right], labels[right], eps=8 / 255, steps=10))
    with torch.no_grad():
        fooled = model(attacked).argmax(1) != labels[right]

    odds = Odds(noises=(Noise("gaussian", 0.05),), n=8).fit(model, *fit)

    clean, adversarial = odds.anomaly(images), odds.anomaly(attacked[fooled])
    assert len(adversarial) >= 12
    assert auroc(clean, adversarial) > 0.9
    restored = odds.restore(attacked[fooled]) == labels[right][fooled]
    assert float(restored.double().mean()) > 0.5


def test_a_thousand_classes_and_a_pooled_convolution_as_the_head() -> None:
    model, (fit, (images, _)) = loaded("squeezenet1_1", fit=12, test=2)
    noises = (Noise("gaussian", 0.02),)
    made = [baseline("knn"), baseline("gradnorm"), baseline("odds", noises=noises, n=2)]
    for one in made:
        scores = one.fit(model, *fit).anomaly(images)
        assert bool(torch.isfinite(scores).all())
        assert len(scores.unique()) == 2
