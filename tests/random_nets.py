"""Random small networks, for the fuzz tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.nets import CLASSES, randomized

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
