"""Rules with modified weights, against dense matrix algebra on one layer and against zennit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrpguard.errors import UnsupportedOperatorError
from lrpguard.inputs import NormalizedModel
from lrpguard.lrp import (
    COMPOSITES,
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    LayerRule,
    Rule,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
    conservation,
    relevance,
)
from lrpguard.lrp.affine import Affine, Weights
from tests.nets import (
    TinyResNet,
    images,
    plain_cnn,
    randomized,
    rel_l2,
    torchvision_net,
)
from tests.shares import STABILIZER, Shares, alpha_beta, flat, gamma, w_square, z_box

TINY = 1e-300

RULES: dict[str, tuple[Rule, Shares]] = {
    "z-plus": (ZPlus(), alpha_beta(1, 0)),
    "alpha-beta": (AlphaBeta(2, 1), alpha_beta(2, 1)),
    "alpha 1.5": (AlphaBeta(1.5, 0.5), alpha_beta(1.5, 0.5)),
    "gamma": (Gamma(0.25), gamma(0.25)),
    "gamma 10": (Gamma(10.0), gamma(10.0)),
}
FIRST: dict[str, tuple[Rule, Shares]] = {
    "flat": (Flat(), flat),
    "w-square": (WSquare(), w_square),
    "z-box": (ZBox(), z_box),
}

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3),
    "without bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "stride and padding": lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 0)),
    "groups": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "dilation": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=1),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1),
    "transposed, groups": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
    "dense on positions": lambda: nn.Linear(6, 5),
}
INNER: dict[str, Callable[[], nn.Module]] = LAYERS | {
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "conv1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 6, 5, stride=3)),
    "conv3d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 3, 3))),
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 7)),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "conv, batch norm": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
    "transposed, batch norm": lambda: nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)
    ),
    "dense, batch norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(4 * 6 * 6, 7), nn.BatchNorm1d(7)
    ),
}

BODIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu in place": lambda z: F.relu_(z),
    "nothing": lambda z: z,
    "leaky": lambda z: F.leaky_relu(z, 0.3),
    "relu, then itself": lambda z: F.relu(z) + 0.5 * z,
    "itself, then relu": lambda z: 0.5 * z + F.relu(z),
    "residual sum": lambda z: F.relu(z + z.flip(0) * 0.3),
}


class Net(nn.Module):
    """``layer → body → dense``, with one rule on the layer and LRP-0 on the dense head."""

    def __init__(self, layer: nn.Module, body: Callable[[Tensor], Tensor], x: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            width = layer.double().eval()(x)[0].numel()
        self.layer, self.body, self.head = layer, body, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.layer(x)).flatten(1))
        return logits


def assert_is_its_matrix(
    layer: nn.Module, body: Callable[[Tensor], Tensor], rule: Rule, shares: Shares
) -> None:
    x = images(1, 6, channels=4, seed=3) * 2 - 0.7
    model = randomized(Net(layer, body, x), seed=4)
    composite = Composite("test", rule, (LayerRule(Zero(), name="head"),))
    ours = relevance(model, x, torch.tensor([1]), composite=composite)
    assert conservation(model, x, torch.tensor([1]), composite=composite).residual <= 1e-10

    z = layer(x).detach().requires_grad_()
    logits = model.head(body(z.clone()).flatten(1))
    (c,) = torch.autograd.grad(logits[0, 1], z)
    assert rel_l2(ours.logits, logits.detach()) <= 1e-14
    bias = layer(torch.zeros_like(x)).detach().flatten()
    jacobian: Any = torch.autograd.functional.jacobian(layer, x)
    matrix = jacobian.reshape(bias.numel(), x.numel())
    z = z.detach().flatten()
    expected = shares(x.flatten(), matrix, bias, z, z * c.flatten())
    assert rel_l2(ours.relevance.flatten(), expected) <= 1e-12


class TestOneLayer:
    """Each rule is its formula on the dense matrix of the layer, for inputs of either sign."""

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("layer", INNER)
    def test_anywhere(self, layer: str, rule: str) -> None:
        assert_is_its_matrix(INNER[layer](), F.relu, *RULES[rule])

    @pytest.mark.parametrize("rule", FIRST)
    @pytest.mark.parametrize("layer", LAYERS)
    def test_first_layer(self, layer: str, rule: str) -> None:
        assert_is_its_matrix(LAYERS[layer](), F.relu, *FIRST[rule])

    @pytest.mark.parametrize("rule", RULES | FIRST)
    @pytest.mark.parametrize("body", BODIES)
    def test_whatever_takes_its_output(self, body: str, rule: str) -> None:
        """Negative outputs count wherever not only a ReLU takes them."""
        assert_is_its_matrix(nn.Conv2d(4, 6, 3), BODIES[body], *(RULES | FIRST)[rule])

    def test_gamma_zero_is_lrp_zero(self) -> None:
        model, x = randomized(plain_cnn()), images() - 0.3
        ours = relevance(model, x, composite=Composite("g", Gamma(0.0, stabilizer=0.0)))
        zero = relevance(model, x, composite=COMPOSITES["zero"])
        assert rel_l2(ours.relevance, zero.relevance) <= 1e-12

    def test_gamma_of_a_sum_that_is_zero_where_the_relu_is_shut(self) -> None:
        """At the first pixel z = 1 - 1.25 < 0 and z + gamma p = 1.25 - 1.25 = 0, exactly."""
        conv, head = nn.Conv2d(1, 1, 1), nn.Linear(2, 2, bias=False)
        net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head).eval()
        with torch.no_grad():
            conv.weight.fill_(-1.25)
            conv.bias.fill_(1.0)  # type: ignore[union-attr]
            head.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
        x = torch.tensor([1.0, 0.4]).view(1, 1, 1, 2)
        composite = Composite("g", Zero(), (LayerRule(Gamma(0.25), kind="convolution"),))
        found = relevance(net, x, composite=composite).relevance.flatten().tolist()
        # z = 0.5 at the second pixel, relevance 2 * 0.5; its term is -0.5 of 1.25 - 0.5.
        assert found == [0.0, pytest.approx(-0.5 / 0.75)]

    def test_gamma_of_a_sum_that_rounding_makes_zero(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sum comes from another product than the value, which is tiny where it is zero."""

        def rounded(layer: Affine, weights: Weights, bias: Tensor | None) -> Tensor:
            total = weighted(layer, weights, bias)
            total[..., 0] = 0
            return total

        weighted = Affine.weighted
        monkeypatch.setattr(Affine, "weighted", rounded)
        net = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 4)))
        model = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        x = torch.rand(2, 4, 8, 8, dtype=torch.float64)
        composite = Composite("g", Gamma(0.0, stabilizer=0.0))
        assert relevance(model, x, composite=composite).relevance.isfinite().all()

    def test_z_box_knows_the_normalisation(self) -> None:
        """Bounds (0 - mean) / std and (1 - mean) / std of each channel, by hand."""
        mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.5])
        layer, head = nn.Conv2d(3, 2, 4, bias=False), nn.Linear(2, 2)
        net = randomized(nn.Sequential(layer, nn.Flatten(), head))
        x = images(1, 4)
        model = NormalizedModel(net, mean.tolist(), std.tolist()).eval()
        low, high = ((v - mean.double()) / std.double() for v in (0.0, 1.0))
        weight, inside = layer.weight.detach(), model.normalize(x)
        z = layer(inside).flatten().detach()
        terms = (
            weight * inside
            - weight.clamp(min=0) * low.view(-1, 1, 1)
            - weight.clamp(max=0) * high.view(-1, 1, 1)
        )
        share = (z * head.weight.detach()[1] / terms.sum((1, 2, 3))).view(-1, 1, 1, 1)
        composite = Composite("box", Zero(), (LayerRule(ZBox(stabilizer=0.0), first=True),))
        ours = relevance(model, x, torch.tensor([1]), composite=composite).relevance
        assert rel_l2(ours[0], (terms * share).sum(0)) <= 1e-6  # mean and std are float32

    @pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox()])
    def test_first_layer_rules_are_refused_elsewhere(self, rule: Rule) -> None:
        model = randomized(plain_cnn())
        composite = Composite("wrong", Epsilon(), (LayerRule(rule, name="3"),))
        with pytest.raises(UnsupportedOperatorError, match="for a first layer") as caught:
            relevance(model, images(), composite=composite)
        assert (caught.value.operator, caught.value.module) == (
            "torch.nn.functional.conv2d",
            "3",
        )


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("make", [plain_cnn, TinyResNet])
def test_every_preset_conserves(make: Callable[[], nn.Module], composite: str) -> None:
    model, x = randomized(make(), seed=6), images(3) - 0.3
    assert conservation(model, x, composite=COMPOSITES[composite]).residual <= 1e-10


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("make", [plain_cnn, TinyResNet])
def test_no_nan_on_a_black_image(make: Callable[[], nn.Module], composite: str) -> None:
    for dtype in (torch.float64, torch.float32):
        model = randomized(make(), dtype=dtype)
        x = torch.zeros(1, 3, 16, 16, dtype=dtype)
        ours = relevance(model, x, composite=COMPOSITES[composite])
        assert torch.isfinite(ours.relevance).all()


def uniform(rule: Rule, first: Rule | None = None) -> Composite:
    start = () if first is None else (LayerRule(first, kind="convolution", first=True),)
    rest = LayerRule(rule, kind="convolution")
    return Composite("test", Epsilon(1e-6), (*start, rest))


ZENNIT: dict[str, tuple[Composite, str, tuple[float, ...], str | None, tuple[float, ...]]] = {
    "gamma": (uniform(Gamma(0.25)), "Gamma", (0.25,), None, ()),
    "z-plus": (COMPOSITES["epsilon-plus"], "ZPlus", (), None, ()),
    "alpha-beta": (COMPOSITES["epsilon-alpha2-beta1"], "AlphaBeta", (2, 1), None, ()),
    "flat": (COMPOSITES["epsilon-alpha2-beta1-flat"], "AlphaBeta", (2, 1), "Flat", ()),
    "w-square": (uniform(ZPlus(), WSquare()), "ZPlus", (), "WSquare", ()),
    "z-box": (COMPOSITES["epsilon-gamma-box"], "Gamma", (0.25,), "ZBox", (0.0, 1.0)),
}


@pytest.mark.parametrize(
    ("name", "canonizer", "rule"),
    [
        *(("squeezenet1_1", None, rule) for rule in ZENNIT),
        *(("vgg11", None, rule) for rule in ("gamma", "z-plus", "w-square")),
        *(("vgg11_bn", "VGGCanonizer", rule) for rule in ("gamma", "alpha-beta", "flat")),
        *(("resnet18", "ResNetCanonizer", rule) for rule in ("z-plus", "flat", "z-box")),
    ],
)
def test_equals_zennit(name: str, canonizer: str | None, rule: str) -> None:
    rules = pytest.importorskip("zennit.rules", reason="needs lrpguard[dev]")
    import zennit.torchvision
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
    from zennit.layer import Sum
    from zennit.types import AvgPool, Convolution

    composite, inner, values, first, first_values = ZENNIT[rule]
    exact = rules.Norm(stabilizer=TINY)  # pools and sums, which we leave plain
    layers = [
        (Convolution, getattr(rules, inner)(*values, stabilizer=STABILIZER)),
        (nn.Linear, rules.Epsilon(1e-6)),
        ((AvgPool, Sum), exact),
        ((nn.ReLU, nn.BatchNorm2d), rules.Pass()),
    ]
    canonizers = [getattr(zennit.torchvision, canonizer)()] if canonizer else []
    theirs: Any = LayerMapComposite(layers, canonizers=canonizers)
    if first:
        start = getattr(rules, first)(*first_values, stabilizer=STABILIZER)
        theirs = SpecialFirstLayerMapComposite(
            layers, [(Convolution, start)], canonizers=canonizers
        )
    model, x = torchvision_net(name), images(1, 64) - 0.3
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            # After its merge zennit 0.5.1 leaves an identity BatchNorm with this eps behind, which
            # scales the layer by 1 / sqrt(1 + eps); ours is the exact merge, so eps must be 0 here.
            part.eps = 0.0
        if isinstance(part, nn.ReLU):
            part.inplace = False
    ours = relevance(model, x, composite=composite)
    with Gradient(model, theirs) as attributor:
        _, expected = attributor(x, lambda logits: F.one_hot(logits.argmax(1), 6) * logits)
    assert rel_l2(ours.relevance, expected.detach()) <= 1e-12
