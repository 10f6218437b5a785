"""Softened LRP is the product's in the limit, and its gradient is the true one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrpguard import normalized
from lrpguard.attacks.adaptive import explanation
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.cifar_resnet import CifarResNet
from lrpguard.lrp import CMP, EPSILON_ALPHA2_BETA1, Composite, relevance
from lrpguard.redteam.relevance_signals import DRAWN
from lrpguard.redteam.soft_lrp import soft_relevance
from tests.nets import randomized
from tests.support import images

COMPOSITES = pytest.mark.parametrize("composite", DRAWN.values(), ids=DRAWN)


def net() -> nn.Module:
    """Convolutions that a batch normalisation follows, residual sums, inputs of either sign."""
    inner = randomized(CifarResNet(1, stride=2), dtype=torch.float64)
    return normalized(inner, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)).double().eval()


def pixels(count: int) -> tuple[Tensor, Tensor]:
    return images(count, seed=1, dtype=torch.float64), torch.arange(count) % 10


@COMPOSITES
def test_with_hard_relus_it_is_the_products(
    composite: Composite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanation, "SOFTNESS", 1e9)
    model, (x, labels) = net(), pixels(3)
    soft = soft_relevance(model, x, labels, composite).detach()
    true = relevance(model, x, labels, composite=composite).relevance.sum(1)
    assert (soft - true).abs().max() < 1e-3 * true.abs().max()


@COMPOSITES
def test_its_gradient_is_that_of_differences(composite: Composite) -> None:
    """The pass through the map's graph follows the derivative, not the rule once more."""
    model, (x, labels) = net(), pixels(2)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(2, 8, 8, generator=generator, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def value(step: float) -> Tensor:
        return (soft_relevance(model, x + step * direction, labels, composite) * weights).sum()

    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        (soft_relevance(model, at, labels, composite) * weights).sum(), at
    )
    expected = (value(1e-6) - value(-1e-6)).detach() / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("composite", [CMP, EPSILON_ALPHA2_BETA1], ids=lambda c: c.name)
def test_refuses_a_composite_that_it_does_not_know(composite: Composite) -> None:
    x, labels = pixels(1)
    with pytest.raises(ConfigurationError, match="no softened form"):
        soft_relevance(net(), x, labels, composite)
