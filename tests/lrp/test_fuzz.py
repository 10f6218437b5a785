"""Random small networks: the law, gradient times input, and an oracle written another way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lrpguard.lrp import conservation, relevance
from tests.nets import CLASSES, epsilon, gradient_times_input, images, randomized

CHANNELS = 4
SIZE = 8

FUZZ = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


class Add(nn.Module):
    """``x + branch(x)``, written in one of three ways."""

    def __init__(self, branch: nn.Module, how: str) -> None:
        super().__init__()
        self.branch, self.how = branch, how

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        if self.how == "in place":
            out += x
            return out
        return torch.add(x, out) if self.how == "torch" else out + x


class Cat(nn.Module):
    """Half of each branch's channels, and half of the input's."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        return torch.cat([out[:, :2], x.chunk(2, 1)[1]], 1)


class Merged(nn.Module):
    """An affine layer and the BatchNorm after it: one affine layer."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.layer(x))
        return result


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def upsampled(x: Tensor) -> Tensor:
    """Return to the size that every layer keeps."""
    result: Tensor = F.interpolate(x, size=(SIZE, SIZE))
    return result


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "max_pool": lambda x: upsampled(F.max_pool2d(x, 3, 2, 1)),
    "avg_pool": lambda x: upsampled(F.avg_pool2d(x, 2)),
    "adaptive_avg_pool": lambda x: upsampled(F.adaptive_avg_pool2d(x, (3, 5))),
    "option A": lambda x: upsampled(F.pad(x[:, :2, ::2, ::2], (0, 0, 0, 0, 1, 1))),
    "shuffle": lambda x: F.channel_shuffle(x, 2).flip(3),
    "shape": lambda x: x.contiguous().view(len(x), -1).reshape(x.shape).transpose(2, 3),
}

AFFINE = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, Merged)

convolutions = st.builds(
    lambda kernel, groups, bias: nn.Conv2d(
        CHANNELS, CHANNELS, kernel, padding="same", groups=groups, bias=bias
    ),
    kernel=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2, CHANNELS]),
    bias=st.booleans(),
)
strided = st.builds(
    lambda: nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, dilation=1), Call(upsampled))
)
norms = st.builds(lambda affine: nn.BatchNorm2d(CHANNELS, affine=affine), affine=st.booleans())
rectifiers = st.builds(nn.ReLU, inplace=st.booleans())
functions = st.sampled_from(list(FUNCTIONS.values())).map(Call)
plain = st.one_of(convolutions, strided, norms, rectifiers, functions, st.builds(nn.Dropout2d))


def chain(layers: Sequence[nn.Module], *, first: int = CHANNELS) -> nn.Sequential:
    """Join layers behind a convolution; work in place only where autograd allows it.

    That is on the output of an affine layer or a sum, which no backward pass asks for.
    """
    chained = [nn.Conv2d(first, CHANNELS, 3, padding=1), *layers]
    for before, layer in pairwise(chained):
        if isinstance(layer, nn.ReLU):
            layer.inplace &= isinstance(before, (*AFFINE, Add))
    return nn.Sequential(*chained)


def settled(block: nn.Module) -> nn.Module:
    """Let a sum work in place only where its branch ends in an affine layer."""
    if isinstance(block, Add) and block.how == "in place":
        assert isinstance(block.branch, nn.Sequential)
        block.how = "in place" if isinstance(block.branch[-1], AFFINE) else "+"
    return block


branches = st.lists(plain, max_size=3).map(chain)
layers = st.one_of(
    plain,
    st.builds(Add, branches, st.sampled_from(["+", "in place", "torch"])).map(settled),
    st.builds(Cat, branches),
)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Return a random network for images [B, 3, 8, 8], with random weights, in float64."""
    body = draw(st.lists(layers, min_size=1, max_size=6))
    hidden = draw(st.booleans())
    head = [nn.Linear(CHANNELS * SIZE * SIZE, 10), nn.ReLU(), nn.Linear(10, CLASSES)]
    short = [nn.Linear(CHANNELS * SIZE * SIZE, CLASSES)]
    model = nn.Sequential(*chain(body, first=3), nn.Flatten(), *(head if hidden else short))
    return randomized(model, seed=draw(st.integers(0, 2**16)))


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Say whether two tensors agree relative to the larger; both may be zero."""
    scale = max(float(ours.norm()), float(theirs.norm()), 1e-30)
    return float((ours - theirs).norm()) <= tolerance * scale


Back = Callable[[Tensor], Tensor]


def propagate(layer: nn.Module, x: Tensor, stabilizer: float) -> tuple[Tensor, Back]:
    """Run a layer; return its output and how relevance goes back through it.

    Relevance is passed as ``R``, each operator on its own: ``R_in = x * J^T (R_out / y)``, with
    ``y + epsilon sign(y)`` below an affine operator's, and 0 / 0 = 0.
    """
    if isinstance(layer, nn.Sequential):
        backs: list[Back] = []
        parts = [part for part in layer if not isinstance(part, nn.Dropout2d)]
        while parts:
            part = parts.pop(0)
            while isinstance(part, AFFINE) and parts and isinstance(parts[0], nn.BatchNorm2d):
                part = Merged(part, parts.pop(0))
            x, back = propagate(part, x, stabilizer)
            backs.append(back)
        return x, lambda r: _through(backs, r)
    if isinstance(layer, Add):
        out, back = propagate(layer.branch, x, stabilizer)
        total = out + x
        return total, lambda r: back(_share(out, total, r)) + _share(x, total, r)
    if isinstance(layer, Cat):
        out, back = propagate(layer.branch, x, stabilizer)
        empty = torch.zeros_like(x[:, :2])
        return torch.cat(
            [out[:, :2], x[:, 2:]], 1
        ), lambda r: back(torch.cat([r[:, :2], empty], 1)) + torch.cat([empty, r[:, 2:]], 1)
    epsilon_here = stabilizer if isinstance(layer, AFFINE) else 0.0
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf.clone())

    def through(r: Tensor) -> Tensor:
        z = y.detach()
        denominator = z + epsilon_here * torch.where(z >= 0, 1.0, -1.0).double()
        quotient = torch.where(z == 0, 0.0, r / denominator)
        (c,) = torch.autograd.grad(y, leaf, quotient)
        return x * c

    return y.detach(), through


def _share(part: Tensor, total: Tensor, r: Tensor) -> Tensor:
    return torch.where(total == 0, 0.0, part / total * r)


def _through(backs: Sequence[Back], r: Tensor) -> Tensor:
    for back in reversed(backs):
        r = back(r)
    return r


@FUZZ
@given(networks(), st.sampled_from([0.0, 1e-9, 1e-3, 0.1]))
def test_relevance_is_conserved(model: nn.Module, stabilizer: float) -> None:
    books = conservation(model, images(2, SIZE), composite=epsilon(stabilizer))
    assert books.residual <= 1e-10
    event("some relevance reaches the input" if books.input else "none reaches the input")


@FUZZ
@given(networks())
def test_lrp_zero_is_gradient_times_input(model: nn.Module) -> None:
    x = images(2, SIZE)
    ours = relevance(model, x, composite=epsilon(0))
    assert close(ours.relevance, gradient_times_input(model, x), 1e-12)
    with torch.no_grad():
        assert torch.equal(ours.logits, model(x))


@FUZZ
@given(networks(), st.sampled_from([1e-3, 0.1]))
def test_a_stabilizer_equals_the_oracle(model: nn.Module, stabilizer: float) -> None:
    x = images(2, SIZE)
    assert isinstance(model, nn.Sequential)
    ours = relevance(model, x, composite=epsilon(stabilizer))
    logits, back = propagate(model, x, stabilizer)
    start = F.one_hot(logits.argmax(1), CLASSES) * logits
    assert close(ours.relevance, back(start), 1e-8)
