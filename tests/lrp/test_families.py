"""Architecture families: the conservation law on a small member of each, by random weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from lrpguard.lrp import COMPOSITES, conservation, relevance
from tests.nets import CLASSES, epsilon, images, randomized, rel_l2

CONVOLUTIONAL = [
    "mnasnet0_5",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
]


def narrow(name: str) -> nn.Module:
    """Build a member of a family; the transformers with few and narrow layers."""
    models: Any = torchvision.models
    swin = {
        "patch_size": [4, 4],
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": [4, 4],
        "num_classes": CLASSES,
    }
    layer = models.convnext.CNBlockConfig
    special: dict[str, Any] = {
        "vit": lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES),
        "swin": lambda: models.SwinTransformer(**swin),
        "swin_v2": lambda: models.SwinTransformer(
            **swin,
            block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2,
        ),
        "convnext": lambda: models.ConvNeXt(
            [layer(8, 12, 2), layer(12, None, 1)], 0.1, 0.5, CLASSES
        ),
        "maxvit": lambda: models.MaxVit(
            (32, 32), 8, 4, [8, 16], [1, 1], 4, 0.1, num_classes=CLASSES
        ),
    }
    usual = partial(models.get_model, name, num_classes=CLASSES)
    model: nn.Module = special.get(name, usual)()
    return randomized(model, seed=3)


def assert_conserves(name: str, size: int, composites: list[str]) -> None:
    model, x = narrow(name), images(1, size, seed=3)
    with torch.no_grad():
        logits = model(x)
    for composite in (epsilon(0.1), *(COMPOSITES[name] for name in composites)):
        books = conservation(model, x, composite=composite)
        assert books.residual <= 1e-10, composite.name
        assert abs(books.input) > 1e-6 * abs(books.logit), composite.name
    assert rel_l2(relevance(model, x).logits, logits) <= 1e-12


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_families(name: str) -> None:
    assert_conserves(name, 48, ["epsilon-plus", "epsilon-gamma-box", "epsilon-alpha2-beta1-flat"])


@pytest.mark.parametrize("name", ["convnext", "maxvit", "swin", "swin_v2", "vit"])
def test_transformers_and_their_like(name: str) -> None:
    assert_conserves(name, 32, ["epsilon", "epsilon-plus"])


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", ["resnet18"])
def test_every_preset_conserves_through_batch_normalisation(name: str, composite: str) -> None:
    assert_conserves(name, 32, [composite])
