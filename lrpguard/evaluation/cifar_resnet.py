"""The CIFAR-10 ResNets of He et al. 2016, with parameter-free shortcuts (option A).

Named like this for :func:`lrpguard.loading.load_model`, with the weights' own normalisation::

    load_model("lrpguard.evaluation.cifar_resnet:resnet20", weights=..., mean=MEAN, std=STD)

Source: He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition", section 4.2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from lrpguard.errors import ConfigurationError

MEAN = (0.485, 0.456, 0.406)
"""Mean of each channel that the published CIFAR-10 weights were trained with: ImageNet's."""

STD = (0.229, 0.224, 0.225)
"""Standard deviation of each channel, likewise."""

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters.

    Where the width doubles, the shortcut takes every second row and column and pads the
    channels with zeros, equally on both sides.

    Args:
        before: Channels of the input.
        width: Channels of the output, ``before`` or twice that.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = width // before
        self.padding = (width - before) // 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, width, H / stride, W / stride] for [B, before, H, W]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet of ``6 * blocks + 2`` layers for 32x32 images.

    Args:
        blocks: Basic blocks in each of the three stages, >= 1; 3 makes ResNet-20.
        classes: Number of classes K.
        stride: Stride of the first convolution; 2 halves the image at once.

    Raises:
        ConfigurationError: ``blocks``, ``classes`` or ``stride`` is too small.
    """

    def __init__(self, blocks: int, classes: int = 10, stride: int = 1) -> None:
        super().__init__()
        if blocks < 1 or classes < 2 or stride < 1:
            raise ConfigurationError(
                f"blocks is {blocks}, classes {classes} and stride {stride}; expected blocks >= 1, "
                "classes >= 2 and stride >= 1."
            )
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.linear = nn.Linear(WIDTHS[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] for normalised images [B, 3, H, W]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def resnet8() -> CifarResNet:
    """Return ResNet-8 of halved images with random weights, in train mode.

    Small enough to be trained on one core in minutes.
    """
    return CifarResNet(1, stride=2)


def resnet20() -> CifarResNet:
    """Return ResNet-20 with random weights, in train mode."""
    return CifarResNet(3)


def resnet32() -> CifarResNet:
    """Return ResNet-32 with random weights, in train mode."""
    return CifarResNet(5)


def _stage(before: int, width: int, blocks: int) -> nn.Sequential:
    rest = [BasicBlock(width, width) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(before, width), *rest)
