"""How noisy the quietest parts of an image are.

Cameras and JPEG leave smooth patches smooth, and their colour even smoother; a perturbation drawn
from a gradient's sign does not. These look at the pixels alone: an attacker who perturbs only
brightness, or only textured parts, passes them (docs/method.md, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrpguard.views import neighbourhood_mean

PATCH_QUANTILE = 0.1
LINE_QUANTILE = 0.3
FLOOR = 0.25 / 255
"""Keeps logarithms finite: a quarter of a level of an 8-bit image."""


def chroma_noise(image: Tensor) -> float:
    """Return the logarithm of the noise in the quietest tenth of the 3 x 3 patches.

    Noise is the second difference along both axes (Immerkaer 1996) of each channel less the mean
    of the channels; of the image itself where it has one channel.

    Args:
        image: Pixels in [0, 1], [C, H, W].
    """
    mixed = second_difference(second_difference(_chroma(image), 1), 2) / 6
    energy = neighbourhood_mean((mixed**2).mean(0))
    return float(torch.log(_quantile(energy.sqrt(), PATCH_QUANTILE) + FLOOR))


def line_noise(image: Tensor) -> float:
    """Return the logarithm of the noise along the noisier axis, in its quietest three tenths.

    The second difference along one axis of what :func:`chroma_noise` looks at: stripes, which
    the mixed difference does not see.

    Args:
        image: Pixels in [0, 1], [C, H, W].
    """
    chroma = _chroma(image)
    axes = [second_difference(chroma, axis).abs() / 6**0.5 for axis in (1, 2)]
    return float(torch.log(max(_quantile(axis, LINE_QUANTILE) for axis in axes) + FLOOR))


def second_difference(planes: Tensor, axis: int) -> Tensor:
    """Return ``x[i - 1] - 2 x[i] + x[i + 1]`` along an axis of [C, H, W], borders repeated."""
    pad = (0, 0, 1, 1) if axis == 1 else (1, 1, 0, 0)
    padded = functional.pad(planes[None], pad, mode="replicate")[0]
    size = planes.shape[axis]
    before, here, after = (padded.narrow(axis, start, size) for start in range(3))
    return before - 2 * here + after


def _chroma(image: Tensor) -> Tensor:
    pixels = image.float()
    return pixels if len(pixels) == 1 else pixels - pixels.mean(0, keepdim=True)


def _quantile(values: Tensor, level: float) -> Tensor:
    """Return the value below which a share of all values lies."""
    flat = values.flatten()
    return flat.kthvalue(max(1, round(level * len(flat)))).values
