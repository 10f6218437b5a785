"""Denoised views of a request: what is left of it when fine detail goes.

A perturbation that was tuned pixel by pixel does not survive a mild denoiser, and the prediction
on the view says what it hid. The four differ in kind, so that no single trick outlives them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

Levels = npt.NDArray[np.uint8]

BILATERAL_SPREAD = 0.05
"""Root mean squared difference of two pixels' colours at which they still blend, on [0, 1]."""

JPEG_QUALITY = 75
GAUSSIAN_SIGMA = 0.5

STRONG_SPREAD = 0.1
STRONG_QUALITY = 30
"""What the strong bilateral filter and the strong JPEG take in place of these."""


def denoised_views(image: Tensor) -> Tensor:
    """Return every view of one image: the mild ones of ``VIEWS``, then ``STRONG_VIEWS``.

    Args:
        image: Pixels in [0, 1], [C, H, W], of any size.

    Returns:
        The views [V, C, H, W], of the image's type and on its device.
    """
    pixels = image.float()
    with torch.autocast(image.device.type, enabled=False):
        views = [view(pixels) for view in (*VIEWS.values(), *STRONG_VIEWS.values())]
    return torch.stack(views).to(image.dtype)


def bilateral(image: Tensor, spread: float = BILATERAL_SPREAD) -> Tensor:
    """Average each pixel with those near it in place (5 x 5) and in colour.

    Source: Tomasi and Manduchi 1998.
    """
    near = _neighbours(image, 2)
    offset = torch.arange(-2, 3, device=image.device, dtype=image.dtype)
    place = torch.exp(-(offset[:, None] ** 2 + offset**2) / 2).view(-1, 1, 1, 1)
    colour = ((near - image) ** 2).mean(1, keepdim=True)
    weight = place * torch.exp(-colour / (2 * spread**2))
    return (weight * near).sum(0) / weight.sum(0)


def jpeg(image: Tensor, quality: int = JPEG_QUALITY) -> Tensor:
    """Store the image as JPEG and read it again; other than RGB, each channel by itself.

    Source: Dziugaite, Ghahramani, Roy 2016.
    """
    planes = [image] if len(image) == 3 else list(image.unbind(0))
    levels = [(plane * 255).round().clamp(0, 255).byte().cpu().numpy() for plane in planes]
    again = [_through_jpeg(level, quality) for level in levels]
    whole = np.concatenate(again) if len(image) == 3 else np.stack(again)
    return torch.from_numpy(whole).to(image.device, image.dtype) / 255


def median(image: Tensor) -> Tensor:
    """Take the median over 3 x 3 pixels, channel by channel."""
    return _neighbours(image, 1).median(0).values


def gaussian(image: Tensor, sigma: float = GAUSSIAN_SIGMA) -> Tensor:
    """Blur by a Gaussian of ``sigma`` pixels, cut off at three sigma; any [C, H, W]."""
    radius = max(1, math.ceil(3 * sigma))
    offset = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    return _weighted(_weighted(image, kernel, 1), kernel, 2)


def half_size(image: Tensor) -> Tensor:
    """Halve the image and enlarge it again; returned as it is below 4 x 4."""
    height, width = image.shape[1:]
    if min(height, width) < 4:
        return image
    small = functional.interpolate(
        image[None], size=(height // 2, width // 2), mode="bilinear", antialias=True
    )
    large = functional.interpolate(small, size=(height, width), mode="bicubic")
    return large[0].clamp(0, 1)


def strong_gaussian(image: Tensor) -> Tensor:
    """Blur by 1 pixel, and by more the larger the image: 1.5 at 224 x 224."""
    return gaussian(image, 1 + min(image.shape[1:]) / 448)


def neighbourhood_mean(plane: Tensor) -> Tensor:
    """Return the mean over 3 x 3 pixels of a plane [H, W], borders repeated."""
    return _neighbours(plane[None], 1).mean(0)[0]


def _weighted(image: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Sum shifted images along an axis of [C, H, W], weighted by the kernel, borders repeated.

    No convolution: autocast and TF32 would run it in lower precision.
    """
    radius, size = len(kernel) // 2, image.shape[axis]
    pad = (0, 0, radius, radius) if axis == 1 else (radius, radius, 0, 0)
    padded = functional.pad(image[None], pad, mode="replicate")[0]
    shifted = [padded.narrow(axis, start, size) for start in range(len(kernel))]
    return (kernel.view(-1, 1, 1, 1) * torch.stack(shifted)).sum(0)


def _neighbours(image: Tensor, radius: int) -> Tensor:
    """Return the image shifted by every offset within the radius [(2r + 1)^2, C, H, W]."""
    height, width = image.shape[1:]
    padded = functional.pad(image[None], (radius, radius, radius, radius), mode="replicate")[0]
    side = range(2 * radius + 1)
    return torch.stack([padded[:, i : i + height, j : j + width] for i in side for j in side])


def _through_jpeg(levels: Levels, quality: int) -> Levels:
    """Return 8-bit levels [3, H, W] or [H, W] as they come back from a JPEG file."""
    colour = levels.ndim == 3
    buffer = BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0) if colour else levels))
    picture.save(buffer, "JPEG", quality=quality)
    back = np.array(Image.open(buffer))
    return np.ascontiguousarray(back.transpose(2, 0, 1)) if colour else back


VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"bilateral": bilateral, "jpeg": jpeg, "median": median, "gaussian": gaussian}
)
"""The mild views, by name: from an image [C, H, W] in float32 to its view."""

STRONG_VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "half_size": half_size,
        "strong_jpeg": partial(jpeg, quality=STRONG_QUALITY),
        "strong_gaussian": strong_gaussian,
        "strong_bilateral": partial(bilateral, spread=STRONG_SPREAD),
    }
)
"""Views that cost clean images some of their labels, but say more of strongly attacked ones."""
