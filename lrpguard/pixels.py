"""How noisy the quietest parts of an image are, and how rough its roughest place.

Cameras and JPEG leave smooth patches smooth, and their colour even smoother; a perturbation drawn
from a gradient's sign does not. These look at the pixels alone: an attacker who perturbs only
brightness, or only textured parts, passes them (docs/method.md, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrpguard.filters import neighbourhood_mean

PATCH_QUANTILE = 0.1
LINE_QUANTILE = 0.3
PLACE = 0.2
"""Side of the roughest place, as a share of the image's smaller side."""

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


def place_roughness(image: Tensor) -> float:
    """Return the logarithm of how much rougher the roughest place is than all the rest.

    The root mean square of the second differences inside, over that outside. A patch painted
    from gradients is rougher than anything a camera sees.

    Args:
        image: Pixels in [0, 1], [C, H, W].
    """
    inside, outside = place_energies(image)
    return float(torch.log((inside.sqrt() + FLOOR) / (outside.sqrt() + FLOOR)))


def place_energies(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared second difference in the roughest place, and outside it.

    Args:
        image: Pixels in [0, 1], [C, H, W]; a gradient passes, the place taken for fixed.
    """
    energy = _roughness(image)
    top, left, side = _roughest(energy)
    inside = energy[top : top + side, left : left + side].sum()
    count = side * side
    outside = (energy.sum() - inside).clamp_min(0) / max(energy.numel() - count, 1)
    return inside / count, outside


def roughest_place(image: Tensor) -> tuple[int, int, int]:
    """Return top, left and side, in pixels, of the square of the largest second differences.

    Args:
        image: Pixels in [0, 1], [C, H, W].
    """
    return _roughest(_roughness(image))


def _roughness(image: Tensor) -> Tensor:
    """Return the mean over channels of the squared second differences of both axes [H, W]."""
    pixels = image.float()
    laplacian = second_difference(pixels, 1) + second_difference(pixels, 2)
    return (laplacian**2).mean(0)


def _roughest(energy: Tensor) -> tuple[int, int, int]:
    height, width = energy.shape
    side = max(1, round(PLACE * min(height, width)))
    sums = functional.avg_pool2d(energy[None, None], side, stride=1)[0, 0]
    place = int(sums.flatten().argmax())
    return place // sums.shape[1], place % sums.shape[1], side


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
