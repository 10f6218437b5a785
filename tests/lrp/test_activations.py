"""Activations, gates and normalisations, against references by plain autograd.

A reference is the same network with what the rules hold constant cut off by ``.detach()``:
its gradient times input is the relevance of LRP-0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrpguard.errors import UnsupportedOperatorError
from lrpguard.lrp import relevance
from tests.nets import (
    Between,
    Body,
    assert_equals_reference,
    called,
    epsilon,
    ignored,
    images,
    randomized,
)


def identity(function: Callable[[Tensor], Tensor]) -> Body:
    """Return ``c * f(z) / z`` with 0 / 0 = 0."""
    return lambda net, t: t * torch.where(t == 0, 0, function(t) / t).detach()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "silu by hand": lambda t: t * torch.sigmoid(t),
    "gelu": F.gelu,
    "gelu, tanh": lambda t: F.gelu(t, approximate="tanh"),
    "quick gelu by hand": lambda t: t * (1.702 * t).sigmoid(),
    "hardswish": F.hardswish,
    "hardswish by hand": lambda t: t * F.hardsigmoid(t),
    "mish": F.mish,
    "elu": lambda t: F.elu(t, 0.7),
    "celu": lambda t: F.celu(t, 0.7),
    "selu": F.selu,
    "tanh": torch.tanh,
    "tanh method": Tensor.tanh,
    "aten tanh": torch.ops.aten.tanh,
    "hardtanh": F.hardtanh,
    "hardtanh with bounds": lambda t: F.hardtanh(t, -0.3, 0.2),
    "clamp": lambda t: t.clamp(-0.2, 0.4),
    "clamp from below": lambda t: t.clamp(min=-0.2),
    "clamp from above": lambda t: torch.clamp(t, max=0.2),
    "clip": lambda t: torch.clip(t, 0, 1),
}

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda t: F.silu(t, inplace=True),
    "nn.SiLU": nn.SiLU(inplace=True),
    "nn.Hardswish": nn.Hardswish(inplace=True),
    "nn.Mish": nn.Mish(inplace=True),
    "elu": lambda t: F.elu(t, 0.7, True),
    "elu_": lambda t: F.elu_(t, 0.7),
    "tanh_": Tensor.tanh_,
    "clamp_": lambda t: t.clamp_(-0.2, 0.4),
}


class TestIdentityRule:
    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_passes_f_over_z(self, name: str) -> None:
        function = ACTIVATIONS[name]
        assert_equals_reference(lambda net, t: function(t), identity(function))

    @pytest.mark.parametrize("name", IN_PLACE)
    def test_in_place(self, name: str) -> None:
        function = IN_PLACE[name]
        assert_equals_reference(lambda net, t: function(t), identity(lambda t: function(t.clone())))
        assert_equals_reference(ignored(function), identity(lambda t: function(t.clone())))

    def test_by_hand(self) -> None:
        # z = (2, -1, 0); f = clamp to [-0.5, 1] = (1, -0.5, 0); f / z = (0.5, 0.5, 0).
        # Logit 0 = 3 * 1 + 4 * -0.5 = 1; relevance of x: z * w * f / z = (3, -2, 0).
        first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            first.weight.copy_(torch.diag(torch.tensor([2.0, -1.0, 1.0])))
            second.weight.copy_(torch.tensor([[3.0, 4.0, 7.0], [0.0, 0.0, 0.0]]))
        clip = nn.Hardtanh(-0.5, 1.0)
        model = nn.Sequential(nn.Flatten(), first, clip, second).double().eval()
        x = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
        result = relevance(model, x, torch.tensor([0]), composite=epsilon(0))
        assert result.logits.tolist() == [[1.0, 0.0]]
        assert result.relevance.flatten().tolist() == [3.0, -2.0, 0.0]

    @pytest.mark.parametrize("name", ["silu", "gelu", "tanh", "mish", "hardswish", "elu"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
    def test_zero_has_no_relevance_and_no_nan(self, name: str, dtype: torch.dtype) -> None:
        function = ACTIVATIONS[name]
        model = randomized(Between(lambda net, t: function(t)), dtype=dtype)
        with torch.no_grad():
            model.conv.bias.zero_()  # type: ignore[union-attr]
        result = relevance(model, torch.zeros(1, 3, 16, 16, dtype=dtype))
        assert not result.relevance.any()
        assert torch.isfinite(result.logits).all()


def squeezed(net: Any, t: Tensor) -> Tensor:
    return torch.sigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(t, 1)))))


class TestGates:
    """Coefficients are held constant: all relevance goes to what they multiply."""

    @pytest.mark.parametrize(
        "product",
        [
            lambda t, g: t * g,
            lambda t, g: g * t,
            lambda t, g: torch.mul(t, other=g),
            lambda t, g: t.clone().mul_(g),
            lambda t, g: t * (2 * g - 1 + g),
            lambda t, g: t / (1 + g),
        ],
    )
    def test_squeeze_excite(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        assert_equals_reference(
            lambda net, t: product(t, squeezed(net, t)),
            lambda net, t: product(t, squeezed(net, t).detach()),
            down=nn.Conv2d(4, 2, 1),
            up=nn.Conv2d(2, 4, 1),
        )

    @pytest.mark.parametrize(
        "gate",
        [
            lambda t: t.softmax(1),
            lambda t: F.hardsigmoid(t),
            lambda t: t.std((2, 3), keepdim=True),
            lambda t: torch.var(t, 1, keepdim=True),
            lambda t: t**2,
            lambda t: t.norm(dim=1, keepdim=True),
            lambda t: torch.linalg.vector_norm(t, dim=1, keepdim=True).clamp_min(1e-3),
        ],
    )
    def test_any_factor(self, gate: Callable[[Tensor], Tensor]) -> None:
        assert_equals_reference(lambda net, t: t * gate(t), lambda net, t: t * gate(t).detach())

    @pytest.mark.parametrize(
        ("function", "operator"),
        [
            (lambda t: torch.cat([t[:, :2], t[:, 2:].sigmoid()], 1), "Tensor.sigmoid"),
            (lambda t: t + torch.sigmoid(t), "torch.sigmoid"),
            (lambda t: torch.sigmoid(t) - t, "torch.sigmoid"),
            (lambda t: t * t.softmax(1) + t.softmax(1), "Tensor.softmax"),
            (lambda t: F.conv2d(t.sigmoid() * 2, torch.ones(4, 4, 1, 1).to(t)), "Tensor.sigmoid"),
            (lambda t: t.maximum(t.sigmoid()), "Tensor.sigmoid"),
        ],
    )
    def test_refused_as_an_activation(
        self, function: Callable[[Tensor], Tensor], operator: str
    ) -> None:
        with pytest.raises(UnsupportedOperatorError, match="only as a factor") as caught:
            relevance(randomized(Between(lambda net, t: function(t))), images())
        assert operator in caught.value.operator

    @pytest.mark.parametrize(
        "function",
        [
            lambda t: F.silu(t) * t.flip(1),
            lambda t: F.glu(torch.cat([t, t], 1), 1) * t,
            lambda t: t * F.relu(t),
            lambda t: F.silu(t).mul_(t),
        ],
    )
    def test_a_product_of_two_activations_is_refused(
        self, function: Callable[[Tensor], Tensor]
    ) -> None:
        """SwiGLU: neither factor is a mere coefficient."""
        with pytest.raises(UnsupportedOperatorError):
            relevance(randomized(Between(lambda net, t: function(t))), images())


def centred(t: Tensor, dims: Any, eps: float) -> Tensor:
    variance = t.var(dims, correction=0, keepdim=True).detach()
    return (t - t.mean(dims, keepdim=True)) / (variance + eps).sqrt()


class TestNormalizations:
    def test_layer_norm(self) -> None:
        def by_hand(net: Any, t: Tensor) -> Tensor:
            """As hand-written modules do, with nothing detached."""
            mean = t.mean(-1, keepdim=True)
            variance = ((t - mean) ** 2).mean(-1, keepdim=True)
            scaled: Tensor = (t - mean) / torch.sqrt(variance + 1e-5) * net.norm.weight
            scaled += net.norm.bias
            return scaled

        def reference(net: Any, t: Tensor) -> Tensor:
            result: Tensor = centred(t, -1, 1e-5) * net.norm.weight + net.norm.bias
            return result

        assert_equals_reference(
            lambda net, t: called(net.norm, t), reference, norm=nn.LayerNorm(16)
        )
        assert_equals_reference(by_hand, reference, norm=nn.LayerNorm(16))

    @pytest.mark.parametrize("shape", [(16,), (16, 16), (4, 16, 16)])
    def test_layer_norm_without_affine(self, shape: tuple[int, ...]) -> None:
        dims = tuple(range(-len(shape), 0))
        assert_equals_reference(
            lambda net, t: F.layer_norm(t, shape, eps=0.1),
            lambda net, t: centred(t, dims, 0.1),
        )

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_group_norm(self, groups: int) -> None:
        def reference(net: Any, t: Tensor) -> Tensor:
            normal = centred(t.view(len(t), groups, -1), -1, 1e-5).view_as(t)
            weight, bias = net.norm.weight.view(-1, 1, 1), net.norm.bias.view(-1, 1, 1)
            scaled: Tensor = normal * weight + bias
            return scaled

        norm = nn.GroupNorm(groups, 4)
        assert_equals_reference(lambda net, t: called(net.norm, t), reference, norm=norm)

    def test_rms_norm(self) -> None:
        def reference(net: Any, t: Tensor) -> Tensor:
            square = t.square().mean(-1, keepdim=True).detach()
            scaled: Tensor = t * torch.rsqrt(square + 1e-3) * net.norm.weight
            return scaled

        norm = nn.RMSNorm(16, eps=1e-3)
        assert_equals_reference(lambda net, t: called(net.norm, t), reference, norm=norm)

    @pytest.mark.parametrize(("p", "dim"), [(2.0, 1), (1.0, -1), (3.0, (2, 3))])
    def test_normalize(self, p: float, dim: Any) -> None:
        def reference(net: Any, t: Tensor) -> Tensor:
            norm = t.abs().pow(p).sum(dim, keepdim=True).pow(1 / p)
            return t / norm.detach()

        assert_equals_reference(lambda net, t: F.normalize(t, p, dim), reference)
