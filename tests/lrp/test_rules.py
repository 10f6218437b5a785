"""The rules, against numbers worked out by hand, dense matrix algebra, zennit and captum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrpguard.errors import ConfigurationError
from lrpguard.lrp import Composite, Epsilon, Zero, relevance
from tests.nets import (
    Whole,
    epsilon,
    gradient_times_input,
    images,
    plain_cnn,
    randomized,
    rel_l2,
    torchvision_net,
)

TINY = 1e-300
"""A stabilizer for what is not stabilised by us: it changes no finite quotient."""


def two_dense_layers() -> nn.Module:
    """Return ``W2 relu(W1 x + b1) + b2`` with the weights that the tests below write out."""
    first, second = nn.Linear(2, 3).double(), nn.Linear(3, 2).double()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0], [1.0, 1.0]]))
        first.bias.copy_(torch.tensor([1.0, 3.0, -4.0]))
        second.weight.copy_(torch.tensor([[1.0, -2.0, 5.0], [0.5, 1.0, -3.0]]))
        second.bias.copy_(torch.tensor([1.0, 2.0]))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).eval()


X = torch.tensor([1.0, -2.0], dtype=torch.float64).view(1, 2, 1, 1)
"""Hidden z = (1+2+1, 2-2+3, 1-2-4) = (4, 3, -5); logits (4-6+1, 2+3+2) = (-1, 7)."""


class TestHandComputed:
    def explain(self, target: int, stabilizer: float) -> list[float]:
        result = relevance(
            two_dense_layers(), X, torch.tensor([target]), composite=epsilon(stabilizer)
        )
        assert result.logits.tolist() == [[-1.0, 7.0]]
        return [float(v) for v in result.relevance.flatten()]

    def test_epsilon_zero(self) -> None:
        # Hidden relevance: (4 * 0.5, 3 * 1, 0) = (2, 3, 0).
        # Input: 1 * (1 * 2 / 4 + 2 * 3 / 3) = 2.5 and -2 * (-1 * 2 / 4 + 1 * 3 / 3) = -1.
        assert self.explain(1, 0) == pytest.approx([2.5, -1.0], abs=1e-15)

    def test_epsilon_a_quarter(self) -> None:
        # Hidden: 4 * 0.5 * 7 / 7.25 = 56 / 29 and 3 * 1 * 7 / 7.25 = 84 / 29.
        first, second = 56 / 29 / 4.25, 84 / 29 / 3.25
        expected = [1 * (1 * first + 2 * second), -2 * (-1 * first + 1 * second)]
        assert self.explain(1, 0.25) == pytest.approx(expected, rel=1e-15)

    def test_negative_logit_takes_a_negative_stabilizer(self) -> None:
        # Logit -1: denominator -1 - 0.25. Hidden: 4 * 1 * -1 / -1.25 = 3.2, 3 * -2 * 0.8 = -4.8.
        first, second = 3.2 / 4.25, -4.8 / 3.25
        expected = [1 * (1 * first + 2 * second), -2 * (-1 * first + 1 * second)]
        assert self.explain(0, 0.25) == pytest.approx(expected, rel=1e-15)


class TestParameters:
    @pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), -float("inf")])
    def test_impossible_stabilizers_are_refused(self, value: float) -> None:
        with pytest.raises(ConfigurationError, match=r"epsilon is .*finite and >= 0"):
            Epsilon(value)

    def test_epsilon_zero_is_lrp_zero(self) -> None:
        model, x = randomized(plain_cnn()), images()
        zero = relevance(model, x, composite=Composite("zero", Zero()))
        vanishing = relevance(model, x, composite=Composite("epsilon", Epsilon(0.0)))
        assert torch.equal(vanishing.relevance, zero.relevance)

    @pytest.mark.parametrize(
        ("dtype", "skipped", "applied"),
        [
            (torch.float64, 1e-18, 1e-17),
            (torch.float32, 1e-9, 1e-8),
            (torch.float16, 1e-6, 1e-4),
            (torch.bfloat16, 1e-5, 1e-3),
        ],
    )
    def test_a_stabilizer_below_rounding_is_left_out(
        self, dtype: torch.dtype, skipped: float, applied: float
    ) -> None:
        z = torch.ones(3, dtype=dtype, requires_grad=True)
        assert Epsilon(skipped).attach(z, None) is z
        (c,) = torch.autograd.grad(Epsilon(applied).attach(z, None).sum(), z)
        assert torch.equal(c, (1 / (1 + torch.full_like(z, applied))).detach())

    def test_what_is_left_out_is_below_rounding(self) -> None:
        model, x = randomized(plain_cnn()), images(4)
        exact = relevance(model, x, composite=epsilon(1e-9)).relevance
        single = relevance(model.float(), x.float(), composite=epsilon(1e-9)).relevance
        assert rel_l2(single.double(), exact) < 3e-6

    @pytest.mark.parametrize("stabilizer", [0, 1e-9, 0.1])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
    def test_zero_outputs_get_no_relevance_and_no_nan(
        self, stabilizer: float, dtype: torch.dtype
    ) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=False)
        )
        result = relevance(
            randomized(model, dtype=dtype),
            torch.zeros(1, 3, 4, 4, dtype=dtype),
            composite=epsilon(stabilizer),
        )
        assert not result.relevance.any()
        assert not result.logits.any()


Affine = Callable[[Tensor], Tensor]


def dense(layer: Affine, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrix and the bias of an affine layer on one image, by its Jacobian."""
    zero = torch.zeros_like(like)
    with torch.no_grad():
        bias = layer(zero).flatten()
    jacobian: Any = torch.autograd.functional.jacobian(layer, zero)
    return jacobian.reshape(bias.numel(), zero.numel()), bias


def dense_lrp(layers: Sequence[Affine], x: Tensor, target: int, stabilizer: float) -> Tensor:
    """Explain one image [1, ...] by the textbook formula, with ReLU between affine layers.

    ``R_i = sum_j a_i w_ij / (z_j + epsilon sign(z_j)) R_j``, as it stands, with full matrices.
    """
    inputs, matrices, outputs = [], [], []
    a = x
    for layer in layers:
        matrix, bias = dense(layer, a)
        z = matrix @ a.flatten() + bias
        inputs.append(a.flatten())
        matrices.append(matrix)
        outputs.append(z)
        with torch.no_grad():
            a = F.relu(layer(a))
    share = torch.zeros_like(outputs[-1])
    share[target] = outputs[-1][target]
    for a, matrix, z in zip(inputs[::-1], matrices[::-1], outputs[::-1], strict=True):
        denominator = z + stabilizer * (2 * (z >= 0).to(z.dtype) - 1)  # sign(0) = +1
        share = ((matrix * a) / denominator[:, None] * share[:, None]).sum(0)
    return share.view(x.shape)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=(2, 1)),
    "groups": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "dilation": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=1),
    "all": lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
    "conv1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 6, 5, stride=3)),
    "conv3d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 3, 3))),
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 7)),
    "dense on positions": lambda: nn.Linear(6, 5),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm without affine": lambda: nn.BatchNorm2d(4, affine=False),
    "conv, batch norm": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
    "dense, batch norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(4 * 6 * 6, 7), nn.BatchNorm1d(7)
    ),
}


@pytest.mark.parametrize("stabilizer", [0, 1e-3, 0.25])
@pytest.mark.parametrize("name", LAYERS)
def test_one_layer_is_its_matrix(name: str, stabilizer: float) -> None:
    x = images(1, 6, channels=4, seed=3) * 4 - 2
    layer = LAYERS[name]()
    with torch.no_grad():
        width = layer.double().eval()(x).numel()
    head = nn.Sequential(nn.Flatten(), nn.Linear(width, 3))
    model = randomized(nn.Sequential(layer, nn.ReLU(), head), seed=4)
    expected = dense_lrp([layer, head], x, 1, stabilizer)
    ours = relevance(model, x, torch.tensor([1]), composite=epsilon(stabilizer)).relevance
    assert rel_l2(ours, expected) < 1e-12


def test_a_negative_hidden_output_takes_a_negative_stabilizer() -> None:
    """Without a ReLU between the layers the sign of z matters in the hidden layer too."""
    first, second = nn.Conv2d(3, 4, 3).double(), nn.Linear(4 * 14 * 14, 3)
    model = randomized(nn.Sequential(first, nn.Flatten(), second), seed=5)
    x = images(1, seed=6) - 0.5
    (matrix, bias), head = dense(first, x), second.weight.detach()
    z = matrix @ x.flatten() + bias
    assert (z < 0).any()
    logit = (head @ z + second.bias)[2].detach()
    share = z * head[2] * logit / (logit + 0.2 * logit.sign())
    expected = x.flatten() * (matrix.T @ (share / (z + 0.2 * z.sign())))
    ours = relevance(model, x, torch.tensor([2]), composite=epsilon(0.2)).relevance
    assert rel_l2(ours.flatten(), expected) < 1e-12


def zennit_relevance(model: nn.Module, x: Tensor, stabilizer: float, canonizers: list[Any]) -> Any:
    """Explain by zennit: its Epsilon rule; pools and sums, which we leave plain, unstabilised."""
    types = pytest.importorskip("zennit.types", reason="needs lrpguard[dev]")
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Epsilon as ZennitEpsilon
    from zennit.rules import Norm

    composite = LayerMapComposite(
        [
            ((types.Convolution, nn.Linear), ZennitEpsilon(stabilizer)),
            ((types.AvgPool, Sum), Norm(TINY)),
        ],
        canonizers=canonizers,
    )
    with Gradient(model, composite) as attributor:
        _, attribution = attributor(x, lambda logits: F.one_hot(logits.argmax(1), 6) * logits)
    return attribution.detach()


@pytest.mark.parametrize("stabilizer", [1e-9, 1e-3, 0.1])
@pytest.mark.parametrize(
    ("name", "canonizer"),
    [
        ("vgg11", None),
        ("squeezenet1_1", None),
        ("vgg11_bn", "zennit.canonizers.SequentialMergeBatchNorm"),
        ("googlenet", "zennit.canonizers.SequentialMergeBatchNorm"),
        ("resnet18", "zennit.torchvision.ResNetCanonizer"),
    ],
)
def test_equals_zennit(name: str, canonizer: str | None, stabilizer: float) -> None:
    module, _, attribute = (canonizer or "zennit.").rpartition(".")
    canonizers = [getattr(pytest.importorskip(module), attribute)()] if attribute else []
    model, x = torchvision_net(name), images(2, 32)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.0  # zennit 0.5.1 leaves it behind after the merge: a factor 1 - eps / 2
    ours = relevance(model, x, composite=epsilon(stabilizer)).relevance
    assert rel_l2(ours, zennit_relevance(model, x, stabilizer, canonizers)) < 5e-12


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("stabilizer", [1e-9, 1e-3, 0.1])
def test_equals_captum(stabilizer: float) -> None:
    lrp = pytest.importorskip("captum.attr", reason="needs lrpguard[dev]").LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    model, x = randomized(plain_cnn(), seed=2), images(3)
    ours = relevance(model, x, composite=epsilon(stabilizer))
    for part in model:
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.rule = EpsilonRule(stabilizer)
        elif isinstance(part, (nn.MaxPool2d, nn.Flatten)):
            part.rule = EpsilonRule(TINY)
    theirs = lrp(model).attribute(x.clone(), target=ours.logits.argmax(1))
    assert rel_l2(ours.relevance, theirs.detach()) < 1e-13


def test_a_large_stabilizer_is_not_gradient_times_input() -> None:
    """The oracles above would be worth little if epsilon made no difference."""
    model, x = randomized(Whole(lambda s, x: s.net(x), net=plain_cnn())), images()
    ours = relevance(model, x, composite=epsilon(0.1)).relevance
    assert rel_l2(ours, gradient_times_input(model, x)) > 0.05
