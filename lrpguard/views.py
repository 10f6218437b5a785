"""Changed views of a request: what is left of it when fine detail, or one place, goes.

A perturbation that was tuned pixel by pixel does not survive a mild denoiser, a mirror or a step to
the side, and the prediction on the view says what it hid. The six differ in kind, so that no single
trick outlives them all. One painted into a small place outlives them, but not the covering of that
place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from lrpguard.filters import (
    bilateral,
    filled,
    gaussian,
    half_size,
    jpeg,
    median,
    mirrored,
    shifted,
    total_variation,
)
from lrpguard.pixels import roughest_place

STRONG_SPREAD = 0.15
STRONG_QUALITY = 30
"""What the strong bilateral filter, run twice, and the strong JPEG take in place of these."""


def changed_views(image: Tensor) -> Tensor:
    """Return every view of one image: ``VIEWS``, the covered one, then ``STRONG_VIEWS``.

    Args:
        image: Pixels in [0, 1], [C, H, W], of any size.

    Returns:
        The views [V, C, H, W], of the image's type and on its device.
    """
    pixels = image.float()
    with torch.autocast(image.device.type, enabled=False):
        mild = [view(pixels) for view in VIEWS.values()]
        views = [*mild, covered(pixels), *strong_views(pixels)]
    return torch.stack(views).to(image.dtype)


def strong_views(image: Tensor) -> list[Tensor]:
    """Return the views of ``STRONG_VIEWS``, in that order; what two of them share is made once.

    Args:
        image: Pixels in [0, 1], float32 [C, H, W].
    """
    smooth = total_variation(image)
    twice = bilateral(bilateral(image, STRONG_SPREAD), STRONG_SPREAD)
    return [jpeg(image, STRONG_QUALITY), smooth, half_size(smooth), twice]


def covered(image: Tensor) -> Tensor:
    """Return the image with its roughest place covered by what surrounds it.

    The place is that of :func:`lrpguard.pixels.roughest_place`; the cover is the Gaussian mean
    of the pixels around it, a third as wide as the place. A single pixel has nothing around it
    and stays.

    Args:
        image: Pixels in [0, 1], float32 [C, H, W].
    """
    top, left, side = roughest_place(image)
    known = torch.ones_like(image[:1])
    known[:, top : top + side, left : left + side] = 0
    return filled(image, known, max(side / 3, 1.0))


VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "bilateral": bilateral,
        "jpeg": jpeg,
        "median": median,
        "gaussian": gaussian,
        "mirrored": mirrored,
        "shifted": shifted,
    }
)
"""The mild views, by name: from an image [C, H, W] in float32 to its view."""

STRONG_VIEWS = ("strong_jpeg", "total_variation", "half_size", "strong_bilateral")
"""Views that cost clean images some of their labels, but say more of strongly attacked ones."""

VIEW_COUNT = len(VIEWS) + 1 + len(STRONG_VIEWS)
"""Views of a request: mild, covered, strong."""
