"""Networks, inputs and oracles that several tests share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from lrpguard.lrp import COMPOSITES, Composite, Epsilon, Zero, conservation, relevance

M = TypeVar("M", bound=nn.Module)

GOOGLENET = {"aux_logits": False, "init_weights": False}

CLASSES = 6
FEATURES = 16 * 16 * 4
"""Values that a function given to :class:`Between` must keep: [B, 4, 16, 16]."""


Body = Callable[[Any, Tensor], Tensor]
"""From a network and the features of its first layer to what follows; see Between."""


class Between(nn.Module):
    """``conv → body → dense`` for images [B, 3, 16, 16]: the smallest net around one operator.

    Args:
        body: From ``(self, features [B, 4, 16, 16])`` to what is flattened into the dense layer.
        width: Values an image that ``body`` returns.
        parts: Submodules, parameters or plain attributes that ``body`` finds on ``self``.
    """

    def __init__(self, body: Body, *, width: int = FEATURES, **parts: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(width, CLASSES)
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(self, self.conv(x)).flatten(1))
        return logits


class Whole(nn.Module):
    """A network written as one function ``(self, images) -> logits``; see :class:`Between`."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Block(nn.Module):
    """Residual block with the parameter-free shortcut (He et al. 2016, option A)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = after // before
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.extra = (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        out += F.pad(shortcut, (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(out)


class TinyResNet(nn.Module):
    """The ResNet of CIFAR-10 in small, with BatchNorm and option-A shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 8), Block(8, 16))
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def plain_cnn() -> nn.Sequential:
    """Return a small network of modules alone, without BatchNorm, for images of 16 x 16."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 3 * 3, 12),
        nn.ReLU(),
        nn.Linear(12, CLASSES),
    )


def randomized(model: M, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> M:
    """Give every parameter and BatchNorm statistic a random value; return it in eval mode.

    Weights keep the scale of activations (He et al. 2015); biases, shifts and statistics are
    far from their defaults, so that a rule that forgets one of them shows.
    """
    generator = torch.Generator().manual_seed(seed)
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                scale = (2 / max(1, parameter[0].numel())) ** 0.5
                parameter.normal_(0, scale, generator=generator)
            else:
                parameter.normal_(0, 0.2, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                _randomize_batch_norm(module, generator)
    return model.eval()


def _randomize_batch_norm(
    module: nn.modules.batchnorm._BatchNorm, generator: torch.Generator
) -> None:
    if module.affine:
        module.weight.uniform_(0.5, 1.5, generator=generator)
        module.weight[::5] *= -1
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean.normal_(0, 0.3, generator=generator)
        module.running_var.uniform_(0.5, 1.5, generator=generator)


def torchvision_net(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a torchvision architecture with random weights, and VGG with a narrow classifier."""
    with torch.device("meta"):  # spares the library's own, slow initialisation
        model: nn.Module = torchvision.models.get_model(
            name, num_classes=CLASSES, **GOOGLENET if name == "googlenet" else {}
        )
        if name.startswith("vgg"):
            model.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 32),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(32, CLASSES),
            )
    model = model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    return randomized(model, seed=seed, dtype=dtype)


def images(
    batch: int = 2,
    size: int = 16,
    *,
    channels: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return random pixels in [0, 1], [B, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=generator, dtype=dtype)


WEIGHT = images(1, 16, seed=9)[0, 0] - 0.5
"""A constant matrix [16, 16]."""


def epsilon(value: float) -> Composite:
    """Return the composite with this stabilizer everywhere, and LRP-0 for 0."""
    return Composite("test", Epsilon(value) if value else Zero())


def gradient_times_input(model: nn.Module, x: Tensor, target: Tensor | None = None) -> Tensor:
    """Return gradient times input by plain autograd, of the predicted or a given class."""
    leaf = x.detach().clone().requires_grad_()
    logits = model(leaf.clone())  # a leaf forbids a model that works in place
    target = logits.argmax(1) if target is None else target
    (gradient,) = torch.autograd.grad(logits.gather(1, target.view(-1, 1)).sum(), leaf)
    return (gradient * leaf).detach()


def rel_l2(ours: Tensor, theirs: Tensor) -> float:
    """Return the distance of two tensors relative to the norm of the second."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


def assert_exact(model: nn.Module, x: Tensor) -> None:
    """Logits are the bare model's, LRP-0 is gradient times input, and relevance is conserved."""
    result = relevance(model, x, composite=epsilon(0))
    with torch.no_grad():
        assert torch.equal(result.logits, model(x.clone()))
    assert rel_l2(result.relevance, gradient_times_input(model, x)) <= 1e-12
    for stabilizer in (0, 1e-3, 0.1):
        books = conservation(model, x, composite=epsilon(stabilizer))
        ours = relevance(model, x, composite=epsilon(stabilizer))
        assert books.residual <= 1e-10
        assert books.input == pytest.approx(float(ours.relevance.sum()), rel=1e-9, abs=1e-12)
        assert torch.equal(ours.logits, result.logits)


def assert_same(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Two spellings of one network get one relevance, at a stabilizer that matters."""
    for stabilizer in (0, 0.1):
        first = relevance(model, x, composite=epsilon(stabilizer))
        second = relevance(other, x, composite=epsilon(stabilizer))
        assert rel_l2(first.logits, second.logits) <= 1e-13
        assert rel_l2(first.relevance, second.relevance) <= 1e-12


def assert_equals_reference(body: Body, reference: Body, **parts: Any) -> None:
    """A network gets the relevance of its reference, and keeps logits and books."""
    model = randomized(Between(body, **parts), seed=7)
    other = copy.deepcopy(model)
    other.body = reference
    x = images(seed=7)
    ours = relevance(model, x, composite=epsilon(0))
    with torch.no_grad():
        assert rel_l2(ours.logits, model(x.clone())) <= 1e-14
        assert rel_l2(other(x.clone()), model(x.clone())) <= 1e-13
    assert rel_l2(ours.relevance, gradient_times_input(other, x)) <= 1e-12
    for composite in (epsilon(0.1), COMPOSITES["epsilon-plus"], COMPOSITES["epsilon-gamma-box"]):
        assert conservation(model, x, composite=composite).residual <= 1e-10


def ignored(call: Callable[[Tensor], object]) -> Body:
    """Call something that works in place, and go on with its argument."""

    def body(net: Any, t: Tensor) -> Tensor:
        call(t)
        return t

    return body


def called(module: nn.Module, t: Tensor) -> Tensor:
    """Call a module, whose result the type checker does not know."""
    result: Tensor = module(t)
    return result
