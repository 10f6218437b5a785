"""The books: each term of the conservation law against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lrpguard.lrp import EPSILON, Composite, Conservation, conservation
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.rules import GradientRule
from tests.nets import TinyResNet, Whole, epsilon, images, randomized


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logits(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """A network of two inputs, written as a function of x [1, 2], without parameters."""
    return Whole(lambda net, x: function(x.flatten(1))).eval()


def books(model: nn.Module, stabilizer: float = 0, target: int = 0) -> Conservation:
    """Explain ``x = (1, -2)``."""
    x = tensor(1, -2).view(1, 2, 1, 1)
    return conservation(model, x, torch.tensor([target]), composite=epsilon(stabilizer))


def assert_terms(ours: Conservation, **expected: float) -> None:
    for name, value in expected.items():
        assert getattr(ours, name) == pytest.approx(value, rel=1e-14, abs=1e-15), name
    assert ours.residual <= 1e-15


class TestByHand:
    """z = W1 x + b1 = (4, 3); logit 1 = 0.5 * 4 + 1 * 3 + 2 = 7, logit 0 = 4 - 6 + 1 = -1."""

    @pytest.fixture
    def model(self) -> nn.Module:
        first, second = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
        with torch.no_grad():
            first.weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
            first.bias.copy_(torch.tensor([1.0, 3.0]))
            second.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 1.0]]))
            second.bias.copy_(torch.tensor([1.0, 2.0]))
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).eval()

    def test_without_stabilizer(self, model: nn.Module) -> None:
        # Biases: 2 of the logit, then 1 * 0.5 and 3 * 1 of the hidden layer. Input: 2.5 - 1.
        assert_terms(books(model, target=1), logit=7, input=1.5, bias=2 + 3.5, stabilizer=0)

    def test_with_stabilizer(self, model: nn.Module) -> None:
        c = 7 / 7.25  # what passes the logit; then c * (0.5, 1) meets 4 / 4.25 and 3 / 3.25
        first, second = 0.5 * c * 4 / 4.25, 1 * c * 3 / 3.25
        assert_terms(
            books(model, 0.25, target=1),
            logit=7,
            input=1 * (first + 2 * second) - 2 * (-first + second),
            bias=2 * c + 1 * first + 3 * second,
            stabilizer=7 * (1 - c) + 4 * (0.5 * c - first) + 3 * (c - second),
        )

    def test_of_a_negative_logit(self, model: nn.Module) -> None:
        # c = 1 / 1.25 = 0.8 reaches the hidden layer as (0.8, -1.6).
        first, second = 0.8 * 4 / 4.25, -1.6 * 3 / 3.25
        assert_terms(
            books(model, 0.25, target=0),
            logit=-1,
            input=1 * (first + 2 * second) - 2 * (-first + second),
            bias=1 * 0.8 + 1 * first + 3 * second,
            stabilizer=-1 * 0.2 + 4 * (0.8 - first) + 3 * (-1.6 - second),
        )

    def test_a_batch_adds_up(self, model: nn.Module) -> None:
        x, target = images(3, 1, channels=2), torch.tensor([1, 0, 1])
        composite = epsilon(0.25)
        whole = conservation(model, x, target, composite=composite)
        parts = [
            conservation(model, x[i : i + 1], target[i : i + 1], composite=composite)
            for i in range(3)
        ]
        for name in ("logit", "input", "bias", "stabilizer"):
            assert getattr(whole, name) == pytest.approx(sum(getattr(p, name) for p in parts))


CASES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "number": (lambda x: x + 3, 1, 3),
    "integer from the left": (lambda x: 3 + x, 1, 3),
    "tensor": (lambda x: x + tensor(5, 7), 1, 5),
    "broadcast": (lambda x: x + tensor(5), 1, 5),
    "alpha": (lambda x: torch.add(x, tensor(5, 7), alpha=-2), 1, -10),
    "in place": (lambda x: x.add_(3), 1, 3),
    "difference": (lambda x: x - 3, 1, -3),
    "other way round": (lambda x: 3 - x, -1, 3),
    "torch.sub of a constant": (lambda x: torch.sub(tensor(3), x, alpha=2), -2, 3),
    "by keyword": (lambda x: torch.add(x, other=tensor(3, 4)), 1, 3),
    "integer tensor": (lambda x: x + torch.tensor([3, 4]), 1, 3),
    "scaled afterwards": (lambda x: (x + 3) * 2, 2, 6),
    "addmm": (lambda x: torch.addmm(tensor(3, 4), x, torch.eye(2, dtype=x.dtype)), 1, 3),
}


class TestConstantTerms:
    """``x = (1, -2)``; each network returns its input, scaled, plus a constant."""

    @pytest.mark.parametrize("name", CASES)
    def test_is_booked_as_a_bias(self, name: str) -> None:
        function, at_input, constant = CASES[name]
        assert_terms(
            books(logits(function)), logit=at_input + constant, input=at_input, bias=constant
        )

    def test_a_shift_that_a_relu_switches_off_absorbs_nothing(self) -> None:
        ours = books(logits(lambda x: torch.relu(x - 3) + 1))
        assert_terms(ours, logit=1, input=0, bias=1)


class TestBatchNorm:
    @pytest.mark.parametrize("affine", [True, False])
    def test_absorbs_its_shift(self, affine: bool) -> None:
        # eps = 1, var = 3: sigma = 2. Channel 0: x = 1, mean 5, gamma 6, beta 7.
        bn = nn.BatchNorm1d(2, eps=1.0, affine=affine).double()
        assert bn.running_mean is not None
        assert bn.running_var is not None
        bn.running_mean[:], bn.running_var[:] = 5, 3
        if affine:
            with torch.no_grad():
                bn.weight[:], bn.bias[:] = 6, 7
        gamma, beta = (6, 7) if affine else (1, 0)
        model = nn.Sequential(nn.Flatten(), bn).eval()
        at_input, shift = 1 * gamma / 2, beta - 5 * gamma / 2
        assert_terms(books(model), logit=at_input + shift, input=at_input, bias=shift)
        z = at_input + shift
        c = abs(z) / (abs(z) + 0.25)
        assert_terms(
            books(model, 0.25), logit=z, input=at_input * c, bias=shift * c, stabilizer=z * (1 - c)
        )

    def test_takes_over_the_stabilizer_of_the_layer_before(self) -> None:
        # z = 2 * 1 + 1 = 3 is not stabilised; y = (3 - 1) / 2 * 4 + 5 = 9 is: c = 9 / 9.25.
        fc, bn = nn.Linear(2, 2).double(), nn.BatchNorm1d(2, eps=1.0).double()
        assert bn.running_mean is not None
        assert bn.running_var is not None
        with torch.no_grad():
            fc.weight.copy_(2 * torch.eye(2))
            fc.bias[:], bn.weight[:], bn.bias[:] = 1, 4, 5
            bn.running_mean[:], bn.running_var[:] = 1, 3
        c = 9 / 9.25
        assert_terms(
            books(nn.Sequential(nn.Flatten(), fc, bn).eval(), 0.25),
            logit=9,
            input=2 * 1 * 2 * c,
            bias=(1 * 2 + 5 - 1 * 2) * c,
            stabilizer=9 - 9 * c,
        )


class TestConservation:
    def test_residual_is_relative_to_the_largest_term(self) -> None:
        assert Conservation(logit=4, input=2, bias=1, stabilizer=0.5).residual == 0.5 / 4
        assert Conservation(logit=1, input=-9, bias=9, stabilizer=0).residual == 1 / 9
        assert Conservation(logit=0, input=0, bias=0, stabilizer=0).residual == 0

    def test_the_check_can_fail(self) -> None:
        """A rule that drops half of the relevance, and books nothing, leaves a residual."""

        class Halving(GradientRule):
            def applies(self, dtype: torch.dtype) -> bool:
                return True

            def attach(self, z: Tensor, ledger: Ledger | None) -> Tensor:
                z.register_hook(lambda c: c / 2)
                return z

        model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).double().eval()
        ours = conservation(model, images(1, 1, channels=2), composite=Composite("x", Halving()))
        assert ours.residual == pytest.approx(0.5)

    def test_the_default_is_the_papers_epsilon(self) -> None:
        model, x = randomized(TinyResNet()), images()
        assert conservation(model, x) == conservation(model, x, composite=EPSILON)
        assert conservation(model, x).stabilizer != 0

    def test_an_empty_ledger_is_balanced(self) -> None:
        ledger = Ledger()
        assert ledger.biases == []
        assert ledger.bias_relevance(()) == 0
        assert ledger.stabilizer_relevance() == 0

    def test_a_bias_off_the_path_absorbs_nothing(self) -> None:
        ledger = Ledger()
        ledger.leaf(tensor(3))
        ledger.leaf(tensor(5))
        assert ledger.bias_relevance((None, tensor(2))) == 10
