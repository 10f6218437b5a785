"""Every operator with a rule, in each of its spellings, inside a small float64 network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from lrpguard.lrp import COMPOSITES, relevance
from tests.nets import (
    CLASSES,
    FEATURES,
    WEIGHT,
    Between,
    Body,
    TinyResNet,
    Whole,
    assert_exact,
    assert_same,
    called,
    ignored,
    images,
    plain_cnn,
    randomized,
    rel_l2,
)

RELUS: dict[str, Body] = {
    "torch.relu": lambda net, t: torch.relu(t),
    "Tensor.relu": lambda net, t: t.relu(),
    "F.relu(inplace)": lambda net, t: F.relu(t, inplace=True),
    "F.relu_": lambda net, t: F.relu_(t),
    "torch.relu_": lambda net, t: torch.relu_(t),
    "F.relu_, result ignored": ignored(F.relu_),
    "Tensor.relu_, result ignored": ignored(Tensor.relu_),
    "nn.ReLU(inplace), result ignored": ignored(nn.ReLU(inplace=True)),
    "in place on a view": ignored(lambda t: t.view(t.shape[0], -1).relu_()),
    "mask": lambda net, t: t * (t > 0),
    "mask as float": lambda net, t: t.mul((t > 0).to(t.dtype)),
    "leaky_relu with slope 0": lambda net, t: F.leaky_relu(t, 0.0),
    "aten": lambda net, t: torch.ops.aten.relu(t),
    "by halves": lambda net, t: torch.cat([F.relu(h) for h in t.chunk(2, 1)], 1),
    "by image": lambda net, t: torch.stack([F.relu(row) for row in t]),
}


@pytest.mark.parametrize("name", RELUS)
def test_relu_in_every_spelling(name: str) -> None:
    model = randomized(Between(RELUS[name]))
    other = Between(lambda net, t: F.relu(t)).double().eval()
    other.load_state_dict(model.state_dict())
    x = images()
    assert_exact(model, x)
    assert_same(model, other, x)


def upsampled(t: Tensor, mode: str = "nearest", **options: bool) -> Tensor:
    result: Tensor = F.interpolate(t, size=(16, 16), mode=mode, **options)
    return result


PLAIN: dict[str, Body] = {
    "leaky_relu": lambda net, t: F.leaky_relu(t, 0.1),
    "leaky_relu_, result ignored": ignored(lambda t: F.leaky_relu_(t, 0.2)),
    "max_pool2d": lambda net, t: upsampled(F.max_pool2d(t, 3, 2, 1)),
    "max_pool2d with indices": lambda net, t: upsampled(F.max_pool2d(t, 2, return_indices=True)[0]),
    "ceil_mode": lambda net, t: upsampled(nn.MaxPool2d(3, ceil_mode=True)(t)),
    "avg_pool2d": lambda net, t: F.avg_pool2d(t, 3, 1, 1),
    "avg_pool2d without padding": lambda net, t: F.avg_pool2d(t, 3, 1, 1, count_include_pad=False),
    "adaptive_max_pool2d": lambda net, t: upsampled(F.adaptive_max_pool2d(t, (3, 5))),
    "adaptive_avg_pool2d": lambda net, t: upsampled(F.adaptive_avg_pool2d(t, (5, None))),
    "mean": lambda net, t: t.mean((2, 3), keepdim=True).expand_as(t),
    "mean of a dense net": lambda net, t: torch.mean(t, dim=1).repeat(1, 4, 1),
    "sum": lambda net, t: t.sum(1, keepdim=True).expand(-1, 4, -1, -1),
    "max over channels": lambda net, t: t.max(1, keepdim=True)[0].expand_as(t),
    "max by name": lambda net, t: torch.max(t, dim=1, keepdim=True).values.expand_as(t),
    "amax": lambda net, t: torch.amax(t, (2, 3), keepdim=True).expand_as(t),
    "cumsum": lambda net, t: t.cumsum(1),
    "bilinear": lambda net, t: upsampled(t[:, :, ::2], "bilinear", align_corners=True),
    "bicubic, antialiased": lambda net, t: upsampled(t[:, :, :12], "bicubic", antialias=True),
    "nn.Upsample": lambda net, t: nn.Upsample(scale_factor=2)(t[:, :, :8, 8:]),
    "pixel_shuffle": lambda net, t: F.pixel_unshuffle(F.pixel_shuffle(t, 2), 2),
    "unfold, fold": lambda net, t: F.fold(F.unfold(t, 3, padding=1), (16, 16), 3, padding=1),
    "channel_shuffle": lambda net, t: F.channel_shuffle(t, 2),
    "shuffle by view": lambda net, t: (
        t.view(-1, 2, 2, 16, 16).transpose(1, 2).contiguous().view(t.shape)
    ),
    "chunk, cat": lambda net, t: torch.cat(torch.chunk(t, 2, 1)[::-1], 1),
    "split, stack": lambda net, t: torch.stack(t.split(1, 1), 2).squeeze(1),
    "unbind": lambda net, t: torch.stack(t.unbind(1)[::-1], 1),
    "permute, flip, roll": lambda net, t: t.permute(0, 1, 3, 2).flip(2).roll(3, 1),
    "index by list": lambda net, t: t[:, [3, 1, 0, 1]],
    "index by mask": lambda net, t: t[:, torch.tensor([True, False, True, False])].repeat(
        1, 2, 1, 1
    ),
    "index_select": lambda net, t: t.index_select(1, torch.tensor([3, 3, 0, 1])),
    "gather": lambda net, t: t.gather(1, t.argmax(1, keepdim=True)).expand_as(t),
    "pad, crop": lambda net, t: F.pad(t, (1, 1, 2, 0))[:, :, 1:-1, :16],
    "reflection": lambda net, t: nn.ReflectionPad2d(1)(t)[:, :, 2:, 2:],
    "dropout in eval mode": lambda net, t: net.dropout(F.dropout(t, 0.5, net.training)),
    "identity": lambda net, t: nn.Identity()(t).contiguous().clone(),
    "shift": lambda net, t: F.relu(t + 0.3),
    "shift from the left": lambda net, t: F.relu(1 - t),
    "shift by subtraction": lambda net, t: F.relu(t - WEIGHT),
    "shift in place, result ignored": ignored(lambda t: t.add_(0.3)),
    "shift by -=": lambda net, t: F.relu(t.__isub__(0.2)),
    "shift by a parameter": lambda net, t: F.relu(t + net.offset),
    "shift with alpha": lambda net, t: F.relu(torch.add(t, net.offset, alpha=-2)),
    "torch.rsub": lambda net, t: F.relu(torch.rsub(t, WEIGHT, alpha=2)),
    "scale": lambda net, t: F.relu(t * -1.5),
    "scale from the left": lambda net, t: F.relu(WEIGHT * t),
    "scale by a parameter": lambda net, t: F.relu(t * net.offset),
    "scale in place, result ignored": ignored(lambda t: t.mul_(-0.5).div_(0.3)),
    "quotient": lambda net, t: t / WEIGHT.abs().add(1),
    "negative": lambda net, t: F.relu(-t),
    "branch": lambda net, t: F.relu(t) + t,
    "branch in place": lambda net, t: t.mul(0.5).__iadd__(F.relu(t)),
    "difference": lambda net, t: F.relu(t) - F.relu(t * 0.5),
    "accumulated from zeros": lambda net, t: torch.zeros(t.shape, dtype=t.dtype).__iadd__(t),
    "matmul": lambda net, t: F.relu(t @ WEIGHT),
    "matmul from the left": lambda net, t: F.relu(torch.matmul(WEIGHT, t)),
    "transposed": lambda net, t: (WEIGHT @ t.mT).transpose(-1, -2),
    "float32 inside": lambda net, t: t.to(torch.float64).type_as(WEIGHT).double(),
    "linear by keywords": lambda net, t: F.linear(input=t, weight=WEIGHT, bias=WEIGHT[0]),
    "conv by keywords": lambda net, t: F.conv2d(
        weight=WEIGHT.view(4, 4, 4, 4)[:, :, :3, :3], input=t, padding=1
    ),
    "shape arithmetic": lambda net, t: t.reshape(t.size(0), -1)[:, : t[0].numel()] / len(t),
}


@pytest.mark.parametrize("name", PLAIN)
def test_operator(name: str) -> None:
    offset = nn.Parameter(torch.zeros(4, 1, 1))
    assert_exact(
        randomized(Between(PLAIN[name], offset=offset, dropout=nn.Dropout2d())), images(seed=1)
    )


DENSE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "addmm": lambda net, t: torch.addmm(net.fc.bias, t, net.fc.weight.T),
    "Tensor.addmm": lambda net, t: net.fc.bias.addmm(t, net.fc.weight.t()),
    "functional": lambda net, t: F.linear(t, net.fc.weight, net.fc.bias),
    "conv of 1 x 1": lambda net, t: F.conv2d(
        t[:, :, None, None], net.fc.weight[:, :, None, None], net.fc.bias
    ).flatten(1),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_layer_in_every_spelling(name: str) -> None:
    def model(head: Callable[[Any, Tensor], Tensor]) -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            return F.relu(head(net, net.conv(x).flatten(1))) @ WEIGHT[:CLASSES, :4]

        return randomized(
            Whole(forward, conv=nn.Conv2d(3, 4, 5, 3), fc=nn.Linear(64, CLASSES)), seed=3
        )

    ours = model(DENSE[name])
    assert_exact(ours, images())
    assert_same(ours, model(lambda net, t: called(net.fc, t)), images())


def test_addmm_by_keyword() -> None:
    def body(net: Any, t: Tensor) -> Tensor:
        return torch.addmm(WEIGHT[0], t.flatten(0, 2), mat2=WEIGHT).view_as(t)

    assert_exact(randomized(Between(body)), images(1))


@pytest.mark.parametrize("product", [Tensor.__matmul__, Tensor.mm, torch.matmul])
def test_dense_layer_without_bias(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return product(net.conv(x).flatten(1), net.fc.weight.t())

    parts = {"conv": nn.Conv2d(3, 4, 5, 3), "fc": nn.Linear(64, CLASSES, bias=False)}
    model = randomized(Whole(forward, **parts))
    assert_exact(model, images())
    assert_same(model, Whole(lambda s, x: s.fc(s.conv(x).flatten(1)), **parts).eval(), images())


def test_modules_used_twice() -> None:
    """One nn.ReLU, one nn.Conv2d and one nn.Linear, each at two places."""

    def forward(net: Any, x: Tensor) -> Tensor:
        t = net.relu(net.stem(x))
        t = net.relu(net.conv(net.relu(net.conv2(t)))).flatten(1)
        logits: Tensor = net.head(net.fc2(net.relu(net.fc(t))))
        return logits

    conv, fc = nn.Conv2d(4, 4, 3, 2), nn.Linear(36, 36)
    parts = {"stem": nn.Conv2d(3, 4, 3), "head": nn.Linear(36, CLASSES), "relu": nn.ReLU(True)}
    shared = randomized(Whole(forward, conv=conv, conv2=conv, fc=fc, fc2=fc, **parts))
    apart = copy.deepcopy(shared)
    apart.conv2, apart.fc2 = copy.deepcopy(conv), copy.deepcopy(fc)
    x = images(size=18)
    assert_exact(shared, x)
    assert_same(shared, apart, x)


def shortcut(body: Body) -> nn.Module:
    """A network whose body keeps [B, 4, 16, 16] as its shortcut to a strided convolution."""

    def forward(net: Any, t: Tensor) -> Tensor:
        return F.relu(net.down(t) + body(net, F.relu(t)))

    down = nn.Conv2d(4, 8, 3, 2, 1)
    return randomized(Between(forward, down=down, width=FEATURES // 2), seed=2)


OPTION_A: dict[str, Body] = {
    "pad": lambda net, t: F.pad(t[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "zeros": lambda net, t: torch.cat(
        [torch.zeros(len(t), 2, 8, 8).to(t), t[:, :, ::2, ::2], torch.zeros(len(t), 2, 8, 8).to(t)],
        1,
    ),
    "zeros_like": lambda net, t: torch.cat(
        [torch.zeros_like(t[:, :2, ::2, ::2]), t[:, :, ::2, ::2], t.new_zeros(len(t), 2, 8, 8)], 1
    ),
    "times zero": lambda net, t: torch.cat(
        [t[:, :2, ::2, ::2] * 0, t[:, :, ::2, ::2], t[:, 2:, ::2, ::2].mul(0.0)], 1
    ),
    "average": lambda net, t: F.pad(F.avg_pool2d(t, 1, 2), (0, 0, 0, 0, 2, 2), "constant", 0),
}


@pytest.mark.parametrize("name", OPTION_A)
def test_option_a_shortcut(name: str) -> None:
    model = shortcut(OPTION_A[name])
    assert_exact(model, images())
    assert_same(model, shortcut(OPTION_A["pad"]), images())


class TestNormalizationInside:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]

    def net(self, normalize: Callable[[Tensor], Tensor]) -> nn.Module:
        return randomized(Whole(lambda s, x: s.net(normalize(x)), net=plain_cnn()), seed=4)

    @pytest.mark.parametrize("in_place", [False, True])
    @pytest.mark.parametrize("version", [1, 2])
    def test_torchvision(self, version: int, in_place: bool) -> None:
        transforms: Any = torchvision.transforms
        module = transforms if version == 1 else pytest.importorskip("torchvision.transforms.v2")
        x = images()
        model = self.net(module.Normalize(self.mean, self.std, inplace=in_place))
        assert_exact(model, x)
        mean, std = (torch.tensor(v, dtype=x.dtype).view(3, 1, 1) for v in (self.mean, self.std))
        assert_same(model, self.net(lambda x: (x - mean) / std), x)


EINOPS: dict[str, tuple[Body, Body]] = {
    "rearrange": (
        lambda net, t: net.einops.rearrange(t, "b (g c) h w -> b (c g) w h", g=2),
        lambda net, t: t.view(-1, 2, 2, 16, 16).transpose(1, 2).reshape(t.shape).mT,
    ),
    "reduce": (
        lambda net, t: net.einops.reduce(t, "b c (h p) (w q) -> b c h w", "mean", p=2, q=4),
        lambda net, t: F.avg_pool2d(t, (2, 4)),
    ),
    "reduce by the maximum": (
        lambda net, t: net.einops.reduce(t, "b c h w -> b c 1 w", "max"),
        lambda net, t: t.amax(2, keepdim=True),
    ),
    "repeat": (
        lambda net, t: net.einops.repeat(t, "b c h w -> b c (r h) w", r=3),
        lambda net, t: t.repeat(1, 1, 3, 1),
    ),
    "einsum": (
        lambda net, t: net.einops.einsum(t, WEIGHT, "b c h w, w k -> b c h k"),
        lambda net, t: t @ WEIGHT,
    ),
    "patches": (
        lambda net, t: net.einops.rearrange(
            F.relu(t), "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4
        ),
        lambda net, t: F.unfold(F.relu(t), 4, stride=4).mT.unflatten(2, (4, 16)).mT.flatten(2),
    ),
}


@pytest.mark.parametrize("name", EINOPS)
def test_einops(name: str) -> None:
    einops = pytest.importorskip("einops", reason="needs lrpguard[dev]")
    body, plain = EINOPS[name]
    x = images(seed=2)
    with torch.no_grad():
        width = plain(None, torch.zeros(1, 4, 16, 16, dtype=torch.float64)).numel()
    model = randomized(Between(body, width=width, einops=einops))
    other = Between(plain, width=width).double().eval()
    other.load_state_dict(model.state_dict())
    assert_exact(model, x)
    assert_same(model, other, x)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_stochastic_depth_in_eval_mode_is_nothing(mode: str) -> None:
    drop = torchvision.ops.StochasticDepth(0.5, mode)
    model = randomized(Between(lambda net, t: t + net.drop(F.relu(t)), drop=drop))
    other = copy.deepcopy(model)
    other.body = lambda net, t: t + F.relu(t)
    assert_exact(model, images())
    assert_same(model, other, images())


class Pair(NamedTuple):
    """Two activations, as a block may hand them on."""

    first: Tensor
    second: Tensor


TWICE: dict[str, tuple[Body, Body]] = {
    "hardtanh": (lambda net, t: F.hardtanh(t), lambda net, t: t.clamp(-1, 1)),
    "relu6 as hardtanh": (lambda net, t: F.hardtanh(t, 0.0, 6.0), lambda net, t: F.relu6(t)),
    "number below zero": (lambda net, t: t.relu() + (-0.5), lambda net, t: t.relu() - 0.5),
    "integers below zero": (
        lambda net, t: t.relu() + torch.full(t.shape, -1),
        lambda net, t: t.relu() - 1,
    ),
    "alpha below zero": (
        lambda net, t: t.relu().add((-t).relu(), alpha=-1),
        lambda net, t: t.relu() - (-t).relu(),
    ),
    "named tuple": (
        lambda net, t: torch.cat(Pair(net.other(t), t.relu()), 1).unfold(1, 2, 2).sum(-1),
        lambda net, t: torch.cat([net.other(t), t.relu()], 1).unfold(1, 2, 2).sum(-1),
    ),
    "arguments by keyword": (
        lambda net, t: torch.add(input=torch.mul(input=t, other=2.0), other=torch.div(t, other=4)),
        lambda net, t: t * 2 + t / 4,
    ),
}
"""One function written in two ways."""


@pytest.mark.parametrize("preset", COMPOSITES)
@pytest.mark.parametrize("name", TWICE)
def test_a_spelling_does_not_matter_to_the_layer_behind_it(name: str, preset: str) -> None:
    """A layer that takes what was below zero for positive would send relevance elsewhere."""

    def wrapped(body: Body) -> Between:
        first, second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        return Between(lambda net, t: net.next(body(net, t)), other=first, next=second)

    one, two = (wrapped(body) for body in TWICE[name])
    model, other, x = randomized(one), two.double().eval(), images()
    other.load_state_dict(model.state_dict())
    ours, theirs = (relevance(m, x, composite=COMPOSITES[preset]) for m in (model, other))
    assert rel_l2(ours.logits, theirs.logits) <= 1e-13
    assert rel_l2(ours.relevance, theirs.relevance) <= 1e-10


@pytest.mark.parametrize("preset", COMPOSITES)
def test_channels_last(preset: str) -> None:
    """Neither the layout of the weights nor that of the images is to be seen in a map."""
    model, x = randomized(TinyResNet()), images()
    expected = relevance(model, x, composite=COMPOSITES[preset])
    model = model.to(memory_format=torch.channels_last)
    for given in (x, x.to(memory_format=torch.channels_last)):
        ours = relevance(model, given, composite=COMPOSITES[preset])
        assert rel_l2(ours.relevance, expected.relevance) <= 1e-12
        assert rel_l2(ours.logits, expected.logits) <= 1e-13
