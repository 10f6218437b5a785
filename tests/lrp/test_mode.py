"""The mode: each refusal names the operator and the module, and nothing slips past it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrpguard.errors import LrpGuardError, TrainingModeError, UnsupportedOperatorError
from lrpguard.inputs import check_model
from lrpguard.lrp import conservation, relevance
from lrpguard.lrp.engine import saved_bytes
from tests.nets import Between, Whole, epsilon, images, plain_cnn, randomized


class Part(nn.Module):
    """A module that calls one function; its place in the model is what an error must name."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def refusal(function: Callable[[Tensor], Any]) -> UnsupportedOperatorError:
    """Explain ``conv → features.1.part (function) → dense``; return the refusal."""
    features = nn.Sequential(nn.ReLU(), nn.Sequential(OrderedDict(part=Part(function))))
    model = randomized(Between(lambda net, t: net.features(t), features=features))
    with pytest.raises(UnsupportedOperatorError) as caught:
        relevance(model, images())
    assert caught.value.operator in str(caught.value)
    assert caught.value.module == "features.1.part"
    assert "features.1.part" in str(caught.value)
    return caught.value


NONLINEAR: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "cosh": (torch.cosh, "torch.cosh"),
    "sigmoid": (torch.sigmoid, "torch.sigmoid"),
    "log_sigmoid": (F.logsigmoid, "logsigmoid"),
    "softplus": (F.softplus, "softplus"),
    "softmin": (lambda t: F.softmin(t, 1), "torch.nn.functional.softmin"),
    "erf": (torch.erf, "torch.erf"),
    "softmax": (lambda t: F.softmax(t, 1), "torch.nn.functional.softmax"),
    "softmax method": (lambda t: t.softmax(1), "torch.Tensor.softmax"),
    "log_softmax": (lambda t: t.log_softmax(1), "torch.Tensor.log_softmax"),
    "exp in place": (lambda t: t.clone().exp_(), "torch.Tensor.exp_"),
    "abs": (torch.abs, "torch.abs"),
    "square": (lambda t: t**2, "__pow__"),
    "reciprocal": (lambda t: 1 / (t + 1), "__rtruediv__"),
    "floor": (lambda t: t // 0.1, "__floordiv__"),
    "round": (torch.round, "torch.round"),
    "sign": (torch.sign, "torch.sign"),
    "clamp above zero": (lambda t: t.clamp(0.5, 1), "torch.Tensor.clamp"),
    "clamp from below zero": (lambda t: t.clamp(max=-0.1), "torch.Tensor.clamp"),
    "clamp to tensors": (lambda t: t.clamp(-t.new_ones(1), t.new_ones(1)), "torch.Tensor.clamp"),
    "hardtanh above zero": (lambda t: F.hardtanh(t, 0.5, 1), "torch.nn.functional.hardtanh"),
    "instance_norm": (F.instance_norm, "torch.nn.functional.instance_norm"),
    "std": (lambda t: t - t.std(1, keepdim=True), "torch.Tensor.std"),
    "sort": (lambda t: t.sort(1)[0], "torch.Tensor.sort"),
    "where": (lambda t: torch.where(t > 0, t, 0.1), "torch.where"),
    "maximum": (lambda t: torch.maximum(t, t.flip(1)), "torch.maximum"),
    "max of two": (lambda t: torch.max(t, t.flip(1)), "torch.max"),
    "max of two by keyword": (lambda t: t.max(other=t.flip(1)), "torch.Tensor.max"),
    "constant padding": (lambda t: F.pad(t, (1, 0), value=0.5), "torch.nn.functional.pad"),
    "rounded quotient": (lambda t: torch.div(t, 0.1, rounding_mode="floor"), "torch.div"),
    "aten": (torch.ops.aten.erf, "erf"),
    "aten overload": (torch.ops.aten.sigmoid.default, "sigmoid"),
    "attention with dropout": (
        lambda t: F.scaled_dot_product_attention(t, t, t, dropout_p=0.1),
        "scaled_dot_product_attention",
    ),
    "embedding of a product": (lambda t: torch.einsum("bchw,bchw->bchw", t, t), "einsum"),
    "torch.tensor": (lambda t: torch.tensor(t), "torch.tensor"),
    "copy into a buffer": (lambda t: torch.zeros(t.shape, dtype=t.dtype).copy_(t), "copy_"),
    "no result": (lambda t: t.retain_grad(), "torch.Tensor.retain_grad"),
    "topk": (lambda t: t.topk(1, 1)[0], "torch.Tensor.topk"),
}

PRODUCTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "gate": (lambda t: t * t.mean(1, keepdim=True), "mul"),
    "torch.mul": (lambda t: torch.mul(t, t), "torch.mul"),
    "in place": (lambda t: t.clone().mul_(t), "mul_"),
    "quotient": (lambda t: t / (t + 1), "div"),
    "constant over activation": (lambda t: torch.div(torch.ones(()), t + 1), "torch.div"),
    "matmul": (lambda t: t @ t, "matmul"),
    "addmm": (lambda t: torch.addmm(t[0, 0], t[0, 0], t[0, 1]), "torch.addmm"),
    "dynamic convolution": (lambda t: F.conv2d(t, t[:1, :, :3, :3]), "conv2d"),
    "dynamic bias": (lambda t: F.linear(t, torch.eye(16, dtype=t.dtype), t[0, 0, 0]), "linear"),
    "dynamic dense": (lambda t: F.linear(torch.ones(2, 16).to(t.dtype), t[0, 0]), "linear"),
}

ESCAPES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "detach": (lambda t: t.detach() + t, "torch.Tensor.detach"),
    "torch.detach": (lambda t: torch.detach(t) + t, "torch.detach"),
    "detach_": (lambda t: t.clone().detach_(), "torch.Tensor.detach_"),
    "data": (lambda t: t.data + t, "torch.Tensor.data"),
    "item": (lambda t: t * t.sum().item(), "torch.Tensor.item"),
    "float": (lambda t: t * float(t.sum()), "__float__"),
    "tolist": (lambda t: t + torch.tensor(t.tolist()), "torch.Tensor.tolist"),
    "numpy": (lambda t: t.numpy(), "torch.Tensor.numpy"),
    "assignment": (lambda t: t.__setitem__((slice(None), 0), 0.0), "__setitem__"),
    "assignment of an activation": (
        lambda t: torch.zeros(t.shape, dtype=t.dtype).__setitem__(slice(None), t),
        "__setitem__",
    ),
}

DROPOUT: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "functional default": (F.dropout, "torch.nn.functional.dropout"),
    "two-dimensional": (lambda t: F.dropout2d(t, 0.2, True), "torch.nn.functional.dropout2d"),
    "torch.dropout": (lambda t: torch.dropout(t, 0.5, True), "torch.dropout"),
    "in place": (lambda t: F.dropout(t.clone(), inplace=True), "torch.nn.functional.dropout"),
}


class TestRefusals:
    @pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
    @pytest.mark.parametrize("name", NONLINEAR)
    def test_operator_without_a_rule(self, name: str) -> None:
        function, operator = NONLINEAR[name]
        assert operator in refusal(function).operator

    @pytest.mark.parametrize("name", PRODUCTS)
    def test_product_of_two_activations(self, name: str) -> None:
        function, operator = PRODUCTS[name]
        error = refusal(function)
        assert operator in error.operator
        assert "depend" in str(error)

    @pytest.mark.parametrize("name", ESCAPES)
    def test_value_that_leaves_the_graph(self, name: str) -> None:
        function, operator = ESCAPES[name]
        error = refusal(function)
        assert operator in error.operator
        assert "lost" in str(error)

    @pytest.mark.parametrize("name", DROPOUT)
    def test_active_dropout(self, name: str) -> None:
        function, operator = DROPOUT[name]
        error = refusal(function)
        assert error.operator == operator
        assert "eval mode" in str(error)

    @pytest.mark.parametrize(
        "norm",
        [
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.BatchNorm2d(4).train(),
        ],
        ids=["without statistics", "in train mode"],
    )
    def test_batch_norm_by_batch_statistics(self, norm: nn.Module) -> None:
        model = randomized(Between(lambda net, t: net.inner(t), inner=nn.Sequential(norm)))
        norm.train(norm.training or getattr(norm, "track_running_stats", False))
        with pytest.raises(UnsupportedOperatorError, match="statistics of the batch") as caught:
            relevance(model, images())
        assert caught.value.operator == "torch.nn.functional.batch_norm"
        assert caught.value.module == "inner.0"

    def test_dropout_module_in_train_mode(self) -> None:
        model = randomized(Between(lambda net, t: net.drop(t), drop=nn.Dropout()))
        cast(nn.Dropout, model.drop).train()
        with pytest.raises(UnsupportedOperatorError) as caught:
            relevance(model, images())
        assert caught.value.module == "drop"
        with pytest.raises(TrainingModeError, match="'drop'"):
            check_model(model)

    @pytest.mark.filterwarnings("ignore:To copy construct")
    def test_copy_of_an_activation_as_a_constant(self) -> None:
        assert "new_tensor" in str(refusal(lambda t: t + t.new_tensor(t)))

    def test_in_the_models_own_forward(self) -> None:
        model = randomized(Whole(lambda net, x: net.net(x).cosh(), net=plain_cnn()))
        with pytest.raises(UnsupportedOperatorError, match="the model's own forward") as caught:
            relevance(model, images())
        assert caught.value.module == ""

    def test_every_entry_point_refuses(self) -> None:
        model = randomized(nn.Sequential(plain_cnn(), nn.Softmax(1)))
        for function in (relevance, conservation, saved_bytes):
            with pytest.raises(UnsupportedOperatorError, match="module '1'"):
                function(model, images())
        assert issubclass(UnsupportedOperatorError, LrpGuardError)

    def test_constants_may_use_any_operator(self) -> None:
        weight = nn.Parameter(torch.zeros(4, 4, 1, 1))
        model = randomized(
            Between(lambda net, t: F.conv2d(t, net.weight.tanh().exp() ** 2), weight=weight)
        )
        assert conservation(model, images()).residual <= 1e-10

    def test_looking_at_an_activation_is_no_escape(self) -> None:
        def body(net: Any, t: Tensor) -> Tensor:
            assert t.shape[0] == len(t) == t.size(0)
            assert t.device.type == "cpu"
            assert t.dim() == t.ndim == 4
            assert t.is_floating_point()
            assert not torch.isnan(t).any()
            assert bool((t > 0).any())
            assert "grad_fn" in repr(t)
            assert t.argmax(1).shape == (2, 16, 16)
            return t

        assert conservation(randomized(Between(body)), images()).residual <= 1e-10


@torch.no_grad()
def under_no_grad(t: Tensor) -> Tensor:
    return F.relu(t)


class Straight(torch.autograd.Function):
    """A user's function: the gradient of another one than it computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def apply_straight(t: Tensor) -> Tensor:
    result: Tensor = Straight.apply(t)
    return result


class TestInvisible:
    """Code that the mode cannot look into is refused before the first explanation.

    ``saved_bytes`` is that check: it runs once a model and image size.
    """

    @pytest.mark.parametrize("beside", [False, True])
    def test_custom_function(self, beside: bool) -> None:
        self.assert_refused(apply_straight, beside=beside)

    @pytest.mark.parametrize("beside", [False, True])
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    def test_scripted_function(self, beside: bool) -> None:
        def swish(x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

        self.assert_refused(torch.jit.script(swish), beside=beside)

    @pytest.mark.parametrize("beside", [False, True])
    def test_part_under_no_grad(self, beside: bool) -> None:
        """As good as detach(): the relevance of that part would be lost unseen."""
        self.assert_refused(under_no_grad, beside=beside)

    @pytest.mark.parametrize("beside", [False, True])
    @pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
    def test_cast_to_integers(self, dtype: torch.dtype, beside: bool) -> None:
        """A rounded activation is a constant to autograd."""
        self.assert_refused(lambda t: (t * 9).to(dtype).to(t.dtype), beside=beside)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpoint(self, reentrant: bool) -> None:
        """The segment runs again in the backward pass, where no mode is active."""
        inner = randomized(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
        self.assert_refused(lambda t: checkpoint(inner, t, use_reentrant=reentrant), beside=False)

    @staticmethod
    def assert_refused(function: Callable[[Tensor], Any], *, beside: bool) -> None:
        def body(net: Any, t: Tensor) -> Tensor:
            result: Tensor = function(t)
            return t + result if beside else result

        with pytest.raises(LrpGuardError):
            saved_bytes(randomized(Between(body)), images(), composite=epsilon(0.1))
