"""The readings say what they should, and their slope leads where they rise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import quantize
from lrpguard.attacks.adaptive import Effort
from lrpguard.attacks.adaptive.descent import Sight, descend
from lrpguard.evaluation.cifar_resnet import MEAN, STD
from lrpguard.loading import load_model
from lrpguard.lrp import relevance
from lrpguard.redteam.relevance_signals import (
    DRAWN,
    RELEVANCE,
    readings,
    relevance_signals,
    signals_of,
)
from tests.support import picture

WEIGHTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "robust_resnet8.safetensors"
PICTURES, COPIES = 8, 4

Turn = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Trained weights: those of a random network give maps that hardly differ."""
    name = "lrpguard.evaluation.cifar_resnet:resnet8"
    return load_model(name, weights=WEIGHTS, mean=MEAN, std=STD).model


def pictures() -> tuple[Tensor, Tensor]:
    several = torch.stack([picture(3, 32, 32, seed=i) for i in range(PICTURES)])
    generator = torch.Generator().manual_seed(0)
    return quantize(several), 0.02 * torch.randn((COPIES, *several.shape), generator=generator)


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        classes: Tensor = model(images).argmax(1)
    return classes


def test_readings_of_two_maps() -> None:
    maps = torch.tensor([[[[3.0, 4.0]]], [[[3.0, 0.0]]]])  # two copies of one request
    found = readings(maps, torch.tensor([[1.0], [3.0]]))
    # Variances over the copies are 0 and 8, their mean 4; so is the mean logit's square.
    assert float(found["variance"]) == pytest.approx(0.0, abs=1e-6)
    assert float(found["likeness"]) == pytest.approx(0.6)


def test_readings_have_no_scale() -> None:
    maps = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    explained = torch.tensor([[1.0, 2.0]]).expand(3, 2)
    ones, others = readings(maps, explained), readings(7 * maps, 7 * explained)
    for name in ones:
        torch.testing.assert_close(ones[name], others[name], rtol=1e-5, atol=1e-5)


def test_values_are_the_products_with_a_gradient_and_without(model: nn.Module) -> None:
    x, noise = pictures()
    classes = predicted(model, x)
    with torch.no_grad():
        plain = relevance_signals(model, x, classes, list(RELEVANCE), noise)
    sloped = relevance_signals(model, x.requires_grad_(), classes, list(RELEVANCE), noise)
    torch.testing.assert_close(sloped.detach(), plain, rtol=1e-6, atol=1e-6)
    one = x[:1] + noise[:, 0]
    for i, (name, composite) in enumerate(DRAWN.items()):
        exact = relevance(model, one, classes[:1].expand(COPIES), composite=composite)
        found = readings(exact.relevance.sum(1)[:, None], exact.logits[:, classes[:1]])
        columns = [list(RELEVANCE).index(signal) for signal in signals_of(name)]
        expected = torch.cat([found[RELEVANCE[signal][1]] for signal in signals_of(name)])
        assert columns == [2 * i, 2 * i + 1]
        torch.testing.assert_close(plain[0, columns], expected, rtol=1e-4, atol=1e-4)


def _missing(model: nn.Module, name: str, turn: Turn) -> float:
    """Return what a search lacks, in the mean, of a rise by a deviation of pictures; 1 is all."""
    x, noise = pictures()
    classes = predicted(model, x)

    def read(images: Tensor, rows: Tensor) -> Tensor:
        return relevance_signals(model, images, classes[rows], [name], noise[:, rows])[:, 0]

    every = torch.arange(PICTURES)
    start = read(x, every)
    wanted = start + start.std()

    def see(batch: Tensor, rows: Tensor) -> Sight:
        found = turn(read(batch, rows)) + 0 * batch.sum((1, 2, 3))
        lost = torch.ones(len(rows), dtype=torch.bool)
        return Sight(0 * found, (wanted[rows] - found).abs(), lost)

    ended = descend(see, x, Effort(eps=4 / 255, steps=10))
    return float(((wanted - read(ended, every)).abs() / start.std()).mean())


def turned(found: Tensor) -> Tensor:
    return 2 * found.detach() - found


@pytest.mark.parametrize("name", RELEVANCE)
def test_a_search_gets_there_by_the_slope_alone(model: nn.Module, name: str) -> None:
    """Within 4/255, judged by the product's own maps."""
    missing = partial(_missing, model, name)
    honest = missing(lambda found: found)
    assert honest <= 0.75
    assert missing(turned) >= honest + 0.15
    assert missing(Tensor.detach) >= honest + 0.15
