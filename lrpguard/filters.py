"""Filters of an image [C, H, W] in [0, 1], float32: what they take away, an attack needs."""

from __future__ import annotations

import math
from io import BytesIO

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

TV_WEIGHT = 0.1
TV_STEPS = 20
"""Weight of the total variation, and steps of the iteration that lowers it."""


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


def mirrored(image: Tensor) -> Tensor:
    """Return the image with left and right exchanged; any [C, H, W]."""
    return image.flip(2)


def shifted(image: Tensor) -> Tensor:
    """Move the image up by one pixel; the row that comes free repeats the last one."""
    return torch.cat([image[:, 1:], image[:, -1:]], dim=1)


def filled(image: Tensor, known: Tensor, sigma: float) -> Tensor:
    """Return the image with its unknown pixels painted by the Gaussian mean of the known ones.

    A pixel with none within three sigma stays.

    Args:
        image: Pixels [C, H, W].
        known: 1 where a pixel is known, 0 where it is painted over [1, H, W].
        sigma: Of the Gaussian, in pixels.
    """
    mass = gaussian(known, sigma)
    cover = gaussian(image * known, sigma) / mass.clamp_min(1e-6)
    return torch.where((known > 0) | (mass == 0), image, cover)


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


def total_variation(image: Tensor, weight: float = TV_WEIGHT) -> Tensor:
    """Return the image of least ``|x - image|^2 / 2 + weight TV(x)``, nearly.

    The variation is that of all channels together. Source: Chambolle 2004, a fixed number of
    steps of the dual iteration (9), of length 1/4.
    """
    dual = torch.zeros(2, *image.shape, dtype=image.dtype, device=image.device)
    for _ in range(TV_STEPS):
        slope = _slopes(_divergence(dual) - image / weight)
        dual = (dual + slope / 4) / (1 + (slope**2).sum((0, 1)).sqrt() / 4)
    return (image - weight * _divergence(dual)).clamp(0, 1)


def _slopes(image: Tensor) -> Tensor:
    """Return the forward differences down and to the right, 0 at the far border [2, C, H, W]."""
    down = functional.pad(image[:, 1:] - image[:, :-1], (0, 0, 0, 1))
    right = functional.pad(image[:, :, 1:] - image[:, :, :-1], (0, 1))
    return torch.stack([down, right])


def _divergence(field: Tensor) -> Tensor:
    """Return the negative adjoint of :func:`_slopes`, [C, H, W] of [2, C, H, W]."""
    down, right = field.unbind(0)
    total = down + right
    total[:, 1:] -= down[:, :-1]
    total[:, :, 1:] -= right[:, :, :-1]
    return total


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
    total = torch.zeros_like(image)
    for start, weight in enumerate(kernel):
        total += weight * padded.narrow(axis, start, size)
    return total


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
