"""Images and maps as PNG within the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 224
"""Longest side of a picture, in pixels; larger ones are reduced."""

_SIGNED = ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31))
"""Blue against, red for, white at 0: safe for colour-blind eyes."""
_UNSIGNED = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From 0 up, evenly brighter."""

_CLIPPED = 0.995
"""Quantile of the values at which colours saturate, so that a few pixels do not hide the rest."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """A picture with what stands under it.

    Attributes:
        uri: The picture, as a data URI.
        caption: What it shows.
    """

    uri: str
    caption: str


@dataclass(frozen=True)
class Panels:
    """The pictures of one case."""

    panels: tuple[Panel, ...]


def image_panel(image: npt.ArrayLike, caption: str) -> Panel:
    """Return an image [C, H, W] in [0, 1], grey or RGB, as a picture."""
    levels = np.clip(np.asarray(image, dtype=np.float64), 0, 1).transpose(1, 2, 0)
    colours = np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels[:, :, :3]
    return Panel(_png(255 * colours), caption)


def signed_panel(values: npt.ArrayLike, caption: str) -> Panel:
    """Return a signed map [H, W], symmetric about 0: red for, blue against."""
    shown = np.asarray(values, dtype=np.float64)
    limit = _limit(np.abs(shown))
    return Panel(_png(_coloured(shown / limit / 2 + 0.5, _SIGNED)), caption)


def unsigned_panel(values: npt.ArrayLike, caption: str) -> Panel:
    """Return a map of non-negative values [H, W], from 0."""
    shown = np.asarray(values, dtype=np.float64)
    return Panel(_png(_coloured(shown / _limit(shown), _UNSIGNED)), caption)


def _limit(sizes: Array) -> float:
    limit = float(np.quantile(sizes, _CLIPPED))
    return limit if limit > 0 else max(float(sizes.max()), 1e-300)


def _coloured(values: Array, anchors: tuple[tuple[int, int, int], ...]) -> Array:
    places = np.linspace(0, 1, len(anchors))
    channels = [np.interp(values, places, [anchor[i] for anchor in anchors]) for i in range(3)]
    return np.stack(channels, axis=-1)


def _png(colours: Array) -> str:
    picture = Image.fromarray(colours.round().astype(np.uint8))
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
