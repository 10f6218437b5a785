"""Changes that happen without an attacker; what flags these is no detector of attacks."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lrpguard.attacks.pgd import quantize
from lrpguard.errors import ConfigurationError

_CUT = 3.0
"""Radius of the Gaussian kernel, in standard deviations."""


def gaussian_noise(images: Tensor, *, sigma: float, seed: int) -> Tensor:
    """Add white Gaussian noise, as of a dim sensor.

    Args:
        images: Pixels in [0, 1], [B, C, H, W].
        sigma: Standard deviation on the [0, 1] scale.
        seed: Seed of the noise, which depends on it and on the shape of ``images``.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return (images + sigma * noise).clamp(0, 1)


def blur(images: Tensor, *, sigma: float) -> Tensor:
    """Blur with a Gaussian, as of a lens out of focus; edges are mirrored.

    Args:
        images: Pixels in [0, 1], [B, C, H, W].
        sigma: Standard deviation of the kernel in pixels, > 0.
    """
    radius = min(max(1, math.ceil(_CUT * sigma)), min(images.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    channels = images.shape[1]
    padded = torch.nn.functional.pad(images, (radius,) * 4, mode="reflect")
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = torch.nn.functional.conv2d(padded, rows, groups=channels)
    return torch.nn.functional.conv2d(down, columns, groups=channels).clamp(0, 1)


def jpeg(images: Tensor, *, quality: int) -> Tensor:
    """Compress as JPEG and read back.

    Args:
        images: Pixels in [0, 1], [B, C, H, W] with 1 or 3 channels; rounded to 8 bits first.
        quality: Pillow's, 1 … 95.

    Raises:
        ConfigurationError: The images are neither grey nor of three channels.
    """
    if images.shape[1] not in (1, 3):
        raise ConfigurationError(
            f"JPEG holds 1 or 3 channels; the images have {images.shape[1]}. Leave this control "
            "out."
        )
    levels = quantize(images).mul(255).round().to("cpu", torch.uint8)
    read = [_through_file(image, quality) for image in levels.permute(0, 2, 3, 1).numpy()]
    return torch.stack(read).to(images)


def brightness(images: Tensor, *, factor: float) -> Tensor:
    """Multiply all pixels, and clip, as of a longer exposure.

    Args:
        images: Pixels in [0, 1], [B, C, H, W].
        factor: What to multiply by, >= 0.
    """
    return (images * factor).clamp(0, 1)


def _through_file(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], quality: int) -> Tensor:
    """Return one image [C, H, W] of pixels [H, W, C] that went through a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        file, format="JPEG", quality=quality
    )
    decoded = np.asarray(Image.open(file), dtype=np.float32) / 255
    return torch.from_numpy(decoded.reshape(pixels.shape)).permute(2, 0, 1)
