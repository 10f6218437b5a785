"""Feature squeezing: how far the softmax moves when the image is simplified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.ndimage import median_filter
from torch import Tensor, nn
from torch.nn import functional

from lrpguard.baselines.base import UnfittedBaseline, check_positive, finite_logits
from lrpguard.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSqueezing(UnfittedBaseline):
    """Largest L1 distance of the softmax between an image and its squeezed forms, in [0, 2].

    Squeezed by fewer bits, by a median filter and by non-local means. The defaults are the
    paper's best for CIFAR-10; for ImageNet see :class:`FeatureSqueezingLarge`. Source: Xu, Evans,
    Qi 2018, "Feature squeezing: detecting adversarial examples in deep neural networks", sections
    III and V. Its non-local means are OpenCV's, in Lab colours; these are in RGB.

    Attributes:
        bits: Bits of a pixel, 1 to 8.
        median: Side of the median filter, >= 2.
        search: Side of the window that non-local means look for alike patches in, odd.
        patch: Side of a patch, odd.
        h: How unlike a patch may be, on the [0, 1] pixel scale, > 0.
    """

    name: ClassVar[str] = "feature-squeezing"

    bits: int = 5
    median: int = 2
    search: int = 13
    patch: int = 3
    h: float = 2 / 255

    def __post_init__(self) -> None:
        check_positive(h=self.h)
        if not 1 <= self.bits <= 8 or self.median < 2:
            raise ConfigurationError(
                f"bits is {self.bits} and median {self.median}; expected 1 to 8, and >= 2."
            )
        if self.search % 2 != 1 or self.patch % 2 != 1:
            raise ConfigurationError(
                f"search is {self.search} and patch {self.patch}; expected odd sides."
            )

    @property
    def passes(self) -> str:
        """The image and three squeezed forms of it."""
        return "4 forward"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        squeezed = (
            fewer_bits(images, bits=self.bits),
            local_median(images, side=self.median),
            non_local_means(images, search=self.search, patch=self.patch, h=self.h),
        )
        plain = _softmax(model, images)
        moved = [(_softmax(model, form) - plain).abs().sum(1) for form in squeezed]
        return torch.stack(moved).amax(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSqueezingLarge(FeatureSqueezing):
    """:class:`FeatureSqueezing` with what the paper takes for ImageNet."""

    name: ClassVar[str] = "feature-squeezing-imagenet"

    search: int = 11
    h: float = 4 / 255


def fewer_bits(images: Tensor, *, bits: int) -> Tensor:
    """Round pixels in [0, 1] to ``2**bits`` levels."""
    levels = 2**bits - 1
    rounded: Tensor = (images * levels).round() / levels
    return rounded


def local_median(images: Tensor, *, side: int) -> Tensor:
    """Return the median of each ``side`` x ``side`` window of images [B, C, H, W], reflected.

    As SciPy does it: of an even number of pixels the upper of the middle two.
    """
    filtered = median_filter(images.cpu().numpy(), size=(1, 1, side, side), mode="reflect")
    median: Tensor = torch.from_numpy(filtered).to(images)
    return median


def non_local_means(images: Tensor, *, search: int, patch: int, h: float) -> Tensor:
    """Replace each pixel by a mean of those around it, weighted by how alike their patches are.

    Args:
        images: Pixels [B, C, H, W], reflected at the border.
        search: Side of the window of the mean.
        patch: Side of the patches that are compared.
        h: A mean squared difference of ``h**2`` between patches weighs 1 / e.

    Source: Buades, Coll, Morel 2005, "A non-local algorithm for image denoising".
    """
    height, width = images.shape[2:]
    reach = min(search // 2, height - 1, width - 1)
    padded = functional.pad(images, (reach,) * 4, mode="reflect")
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            shifted = padded[:, :, down : down + height, right : right + width]
            unlike = (shifted - images).square().mean(1, keepdim=True)
            margin = functional.pad(unlike, (patch // 2,) * 4, mode="replicate")
            weight = torch.exp(-functional.avg_pool2d(margin, patch, 1) / h**2)
            total += weight * shifted
            weights += weight
    mean: Tensor = total / weights
    return mean


def _softmax(model: nn.Module, images: Tensor) -> Tensor:
    return finite_logits(model, images).double().softmax(1)
