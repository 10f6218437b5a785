"""Scores with a gradient: the exact value of each, and the slope of a smooth stand-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from lrpguard.attacks.adaptive.looks import Looks
from lrpguard.attacks.margins import margin as lead
from lrpguard.pixels import (
    FLOOR,
    LINE_QUANTILE,
    PATCH_QUANTILE,
    chroma_noise,
    line_noise,
    place_energies,
    place_roughness,
    second_difference,
)

StandIn = Callable[[Tensor, Looks, Tensor], Tensor]
"""From images, what is looked at, and the class explained [B], to the score, float64 [B]."""


def _margin(images: Tensor, looks: Looks, label: Tensor) -> Tensor:
    return lead(looks.own, label)


def _chroma(images: Tensor, looks: Looks, label: Tensor) -> Tensor:
    return _exact(chroma_noise, images, smooth_chroma_noise(images))


def _line(images: Tensor, looks: Looks, label: Tensor) -> Tensor:
    return _exact(line_noise, images, smooth_line_noise(images))


def _place(images: Tensor, looks: Looks, label: Tensor) -> Tensor:
    return _exact(place_roughness, images, smooth_place_roughness(images))


STAND_INS: Mapping[str, StandIn] = MappingProxyType(
    {"margin": _margin, "chroma_noise": _chroma, "line_noise": _line, "place_roughness": _place}
)
"""Those that there are, by the score's name. The relevance's scores have none: the gradient of a
relevance is of second order, and no score of it is in the combined detector's set."""


def smooth_chroma_noise(images: Tensor) -> Tensor:
    """Return a smooth relative of :func:`lrpguard.pixels.chroma_noise` [B].

    The mean of twice the quantile's share of the quietest places takes the place of the quantile
    itself, whose gradient has one pixel.
    """
    chroma = _colours(images)
    flat = chroma.flatten(0, 1)
    mixed = second_difference(second_difference(flat, 1), 2).view_as(chroma) / 6
    padded = functional.pad(mixed.square().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    energy = functional.avg_pool2d(padded, 3, stride=1)
    return (_quiet((energy + 1e-12).sqrt(), PATCH_QUANTILE) + FLOOR).log()


def smooth_line_noise(images: Tensor) -> Tensor:
    """Return a smooth relative of :func:`lrpguard.pixels.line_noise` [B], as the one above."""
    chroma = _colours(images)
    axes = [second_difference(chroma.flatten(0, 1), axis).view_as(chroma) for axis in (1, 2)]
    down, along = (_quiet(axis.abs() / 6**0.5, LINE_QUANTILE) for axis in axes)
    return (torch.maximum(down, along) + FLOOR).log()


def smooth_place_roughness(images: Tensor) -> Tensor:
    """Return :func:`lrpguard.pixels.place_roughness` [B], the place taken for fixed."""
    scores = []
    for image in images:
        inside, outside = ((part + 1e-12).sqrt() + FLOOR for part in place_energies(image))
        scores.append((inside / outside).log())
    return torch.stack(scores)


def _exact(score: Callable[[Tensor], float], images: Tensor, smooth: Tensor) -> Tensor:
    """Return the exact scores [B] with the gradient of the smooth ones (straight-through)."""
    with torch.no_grad():
        exact = torch.tensor([score(image) for image in images], dtype=torch.float64)
    smooth = smooth.double()
    return exact.to(smooth.device) + (smooth - smooth.detach())


def _colours(images: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else images - images.mean(1, keepdim=True)


def _quiet(values: Tensor, share: float) -> Tensor:
    """Return the mean of twice a share of the smallest values of each image [B]."""
    flat = values.flatten(1)
    count = max(1, round(2 * share * flat.shape[1]))
    return flat.topk(count, dim=1, largest=False).values.mean(1)
