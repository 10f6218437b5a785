"""Random small networks under every rule, against a slow reference of dense matrices.

The reference writes each affine layer as its matrix (a Jacobian) and shares relevance as the papers
do, term by term; what is not affine passes it in proportion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lrpguard.lrp import AlphaBeta, Composite, Epsilon, Gamma, Rule, ZPlus, conservation, relevance
from tests.nets import CLASSES, images
from tests.random_nets import AFFINE, FUZZ, SIZE, Add, Cat, Merged, networks
from tests.shares import Shares, alpha_beta, epsilon, gamma

RULES: dict[str, tuple[Rule, Shares]] = {
    "epsilon": (Epsilon(0.1), epsilon(0.1)),
    "gamma": (Gamma(0.25), gamma(0.25)),
    "z-plus": (ZPlus(), alpha_beta(1, 0)),
    "alpha-beta": (AlphaBeta(2, 1), alpha_beta(2, 1)),
}


Wanted = Callable[[Tensor], Tensor]
"""From the value of an output to its relevance."""


class Reference:
    """Relevance of one image, layer by layer.

    Args:
        shares: How an affine layer shares the relevance of its outputs among its inputs.
    """

    def __init__(self, shares: Shares) -> None:
        self.shares = shares

    def explain(self, layer: nn.Module, x: Tensor, wanted: Wanted) -> Tensor:
        """Return the relevance of ``x``, given the function from output to its relevance."""
        if isinstance(layer, nn.Sequential):
            return self._chain(_merged(layer), x, wanted)
        if isinstance(layer, Add):
            out = layer.branch(x.clone())
            r = wanted(out + x)
            total = out + x
            through = self.explain(layer.branch, x, lambda _: _proportion(out, total) * r)
            return through + _proportion(x, total) * r
        if isinstance(layer, Cat):
            half = x.shape[1] // 2
            r = wanted(layer(x.clone()))
            empty = torch.zeros_like(x[:, :half])
            through = self.explain(layer.branch, x, lambda _: torch.cat([r[:, :half], empty], 1))
            return through + torch.cat([empty, r[:, half:]], 1)
        return self._back(layer, x, layer(x.clone()), wanted)

    def _chain(self, layers: list[nn.Module], x: Tensor, wanted: Wanted) -> Tensor:
        if not layers:
            return wanted(x)
        first, *rest = layers
        return self.explain(first, x, lambda y: self._chain(rest, y, wanted))

    def _back(self, layer: nn.Module, x: Tensor, y: Tensor, wanted: Wanted) -> Tensor:
        r = wanted(y)
        jacobian: Any = torch.autograd.functional.jacobian(
            lambda t: layer(t.clone()), x, vectorize=True
        )
        matrix = jacobian.reshape(y.numel(), x.numel())
        if isinstance(layer, AFFINE):
            bias = layer(torch.zeros_like(x)).flatten()
            shared = self.shares(x.flatten(), matrix, bias, y.flatten(), r.flatten())
            return shared.view_as(x)
        ratio = torch.where(y == 0, 0.0, r / y).flatten()
        passed: Tensor = x * (matrix.T @ ratio).view_as(x)
        return passed


def _proportion(part: Tensor, total: Tensor) -> Tensor:
    return torch.where(total == 0, 0.0, part / total)


def _merged(chain: nn.Sequential) -> list[nn.Module]:
    """Return the layers with each BatchNorm joined to the affine layer before it."""
    layers: list[nn.Module] = []
    for part in chain:
        if isinstance(part, nn.Dropout2d):
            continue
        if layers and isinstance(part, nn.BatchNorm2d) and isinstance(layers[-1], AFFINE):
            layers[-1] = Merged(layers[-1], part)
        else:
            layers.append(part)
    return layers


@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_the_dense_reference(name: str) -> None:
    rule, shares = RULES[name]

    @settings(FUZZ, max_examples=20)
    @given(networks(), st.integers(0, CLASSES - 1))
    def check(model: nn.Module, target: int) -> None:
        x, composite = images(1, SIZE), Composite("uniform", rule)
        with torch.no_grad():
            logits = model(x)
            start = F.one_hot(torch.tensor([target]), CLASSES) * logits
        ours = relevance(model, x, torch.tensor([target]), composite=composite)
        expected = Reference(shares).explain(model, x, lambda _: start).detach()
        scale = max(float(ours.relevance.norm()), float(expected.norm()), 1e-30)
        assert float((ours.relevance - expected).norm()) <= 1e-8 * scale
        books = conservation(model, x, torch.tensor([target]), composite=composite)
        assert books.residual <= 1e-10

    check()
