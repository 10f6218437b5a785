"""BatchNorm, constants and capped rectifiers, each in what surrounds them in real networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrpguard.lrp import conservation, relevance
from tests.nets import (
    FEATURES,
    WEIGHT,
    Between,
    Body,
    Whole,
    assert_exact,
    assert_same,
    called,
    epsilon,
    ignored,
    images,
    randomized,
    rel_l2,
)


class TestBatchNorm:
    """Joint with the layer before it, whoever else works on that layer's output."""

    def same(self, body: Body, other: Body) -> None:
        bn, conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        model = randomized(Between(body, bn=bn, conv2=conv2), seed=5)
        second = copy.deepcopy(model)
        second.body = other
        assert_exact(model, images())
        assert_same(model, second, images())

    def test_after_a_convolution_equals_the_merged_convolution(self) -> None:
        model = randomized(Between(lambda net, t: F.relu(net.bn(t)), bn=nn.BatchNorm2d(4)))
        merged = copy.deepcopy(model)
        fuse: Any = torch.nn.utils.fusion.fuse_conv_bn_eval
        merged.conv, merged.bn = fuse(model.conv, model.bn), nn.Identity()
        assert_exact(model, images())
        assert_same(model, merged, images())

    @pytest.mark.parametrize("between", ["identity", "dropout"])
    def test_through_what_does_nothing(self, between: str) -> None:
        part = nn.Identity() if between == "identity" else nn.Dropout2d().eval()
        self.same(lambda net, t: F.relu(net.bn(part(t))), lambda net, t: F.relu(net.bn(t)))

    def test_after_an_in_place_relu_is_a_layer_of_its_own(self) -> None:
        self.same(lambda net, t: net.bn(F.relu_(t)), lambda net, t: net.bn(F.relu(t)))

    def test_after_an_in_place_sum_is_a_layer_of_its_own(self) -> None:
        def in_place(net: Any, t: Tensor) -> Tensor:
            out = net.conv2(F.relu(t))
            out += t
            return F.relu(net.bn(out))

        self.same(in_place, lambda net, t: F.relu(net.bn(net.conv2(F.relu(t)) + t)))

    def test_leaves_the_stabilizer_of_a_skip_connection_alone(self) -> None:
        """A pre-activation block on the stem: its output goes into the BN and around it."""

        def around(net: Any, t: Tensor) -> Tensor:
            return F.relu(net.bn(t)) + t

        def twice(net: Any, x: Tensor) -> Tensor:
            logits: Tensor = net.fc((F.relu(net.bn(net.conv(x))) + net.conv(x)).flatten(1))
            return logits

        model = randomized(Between(around, bn=nn.BatchNorm2d(4)), seed=5)
        other = Whole(twice, conv=model.conv, bn=model.bn, fc=model.fc).eval()
        assert_exact(model, images())
        assert_same(model, other, images())

    def test_frozen_as_scale_and_shift(self) -> None:
        from torchvision.ops import FrozenBatchNorm2d

        assert_exact(
            randomized(Between(lambda net, t: F.relu(net.bn(t)), bn=FrozenBatchNorm2d(4))), images()
        )

    def test_called_by_torch_batch_norm(self) -> None:
        """torch.batch_norm takes its arguments in another order than F.batch_norm."""

        def body(net: Any, t: Tensor) -> Tensor:
            bn = net.bn
            return torch.batch_norm(
                t, bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps, False
            )

        self.same(body, lambda net, t: called(net.bn, t))


class TestConstants:
    """Tensors that only take their shape, type or device from an activation carry nothing."""

    def test_a_weight_cast_like_the_input_is_not_touched(self) -> None:
        def body(net: Any, t: Tensor) -> Tensor:
            return F.conv2d(t, net.weight.to(t), net.bias.type_as(t), padding=1)

        weight, bias = nn.Parameter(torch.zeros(4, 4, 3, 3)), nn.Parameter(torch.zeros(4))
        model = randomized(Between(body, weight=weight, bias=bias))
        before = set(vars(model.weight))
        assert_exact(model, images())
        assert set(vars(model.weight)) == before

    @pytest.mark.parametrize("how", ["+", "*"])
    def test_a_parameter_expanded_like_the_input(self, how: str) -> None:
        def body(net: Any, t: Tensor) -> Tensor:
            offset = net.offset.expand_as(t)
            return F.relu(t + offset if how == "+" else t * offset)

        assert_exact(randomized(Between(body, offset=nn.Parameter(torch.zeros(4, 1, 1)))), images())

    @pytest.mark.parametrize("how", ["zeros_like", "ones_like", "new_full", "full_like"])
    def test_a_constant_shaped_like_the_input(self, how: str) -> None:
        make: dict[str, Callable[[Tensor], Tensor]] = {
            "zeros_like": torch.zeros_like,
            "ones_like": torch.ones_like,
            "new_full": lambda t: t.new_full(t.shape, 0.3),
            "full_like": lambda t: torch.full_like(t, 0.3),
        }
        assert_exact(randomized(Between(lambda net, t: F.relu(t - make[how](t)))), images())

    @pytest.mark.parametrize("join", ["cat", "stack"])
    def test_a_constant_joined_to_an_activation_is_booked(self, join: str) -> None:
        """Coordinate channels, class tokens: what they carry is absorbed as a bias is."""

        def body(net: Any, t: Tensor) -> Tensor:
            constant = WEIGHT.expand_as(t)
            if join == "cat":
                return torch.cat([t, constant], 1)
            return torch.stack([t, constant], 1)

        assert_exact(randomized(Between(body, width=2 * FEATURES)), images())

    def test_accumulating_into_a_buffer_in_place(self) -> None:
        """``out.add_(branch)`` with its result ignored must not lose the branch unseen."""

        def body(net: Any, t: Tensor) -> Tensor:
            out = torch.zeros(t.shape, dtype=t.dtype)
            out.add_(F.relu(t))
            return out + t

        model = randomized(Between(body))
        assert_same(model, randomized(Between(lambda net, t: F.relu(t) + t)), images())


CAPS: dict[str, Body] = {
    "F.relu6": lambda net, t: F.relu6(t),
    "F.relu6(inplace)": lambda net, t: F.relu6(t, inplace=True),
    "nn.ReLU6": lambda net, t: called(nn.ReLU6(), t),
    "nn.ReLU6(inplace), result ignored": ignored(nn.ReLU6(inplace=True)),
    "F.hardtanh": lambda net, t: F.hardtanh(t, 0.0, 6.0),
    "F.hardtanh_, result ignored": ignored(lambda t: F.hardtanh_(t, 0.0, 6.0)),
    "nn.Hardtanh": lambda net, t: called(nn.Hardtanh(0, 6), t),
}


class TestCappedRectifier:
    """ReLU6 and Hardtanh from 0: the identity rule, R_out = R_in, c = f(z) / z."""

    @pytest.mark.parametrize("name", CAPS)
    @pytest.mark.parametrize("gain", [1.0, 20.0])
    def test_in_every_spelling(self, name: str, gain: float) -> None:
        cap = CAPS[name]
        model = randomized(Between(lambda net, t: cap(net, t * gain)))
        x = images()
        for stabilizer in (0, 0.1):
            books = conservation(model, x, composite=epsilon(stabilizer))
            assert books.residual <= 1e-10
        with torch.no_grad():
            assert rel_l2(relevance(model, x).logits, model(x)) < 1e-14
            assert bool((model.conv(x) * gain).max() > 6) == (gain > 1)
        if gain == 1:
            assert_exact(model, x)

    def test_by_hand(self) -> None:
        # z = (12, -3, 3): f = (6, 0, 3), f / z = (1/2, 0, 1). Logit 0 = 6 * 2 + 3 * 4 = 24.
        first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            first.weight.copy_(torch.diag(torch.tensor([4.0, -3.0, 1.0])))
            second.weight.copy_(torch.tensor([[2.0, 5.0, 4.0], [0.0, 0.0, 0.0]]))
        model = nn.Sequential(nn.Flatten(), first, nn.ReLU6(), second).double().eval()
        x = torch.tensor([3.0, 1.0, 3.0], dtype=torch.float64).view(1, 3, 1, 1)
        result = relevance(model, x, torch.tensor([0]), composite=epsilon(0))
        assert result.logits.tolist() == [[24.0, 0.0]]
        assert result.relevance.flatten().tolist() == [12.0, 0.0, 12.0]
