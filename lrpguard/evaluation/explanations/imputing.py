"""Noisy linear imputation: what stands in for removed pixels without showing which they were.

A mean colour leaves an edge around what was removed, by which a model may know the class. Here
each removed pixel is the weighted mean of its eight neighbours, removed ones among them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu
from torch import Tensor

from lrpguard.errors import ConfigurationError
from lrpguard.noise import gaussian_copies, image_digest

WEIGHTS = {
    (0, 1): 1 / 6,
    (1, 0): 1 / 6,
    (0, -1): 1 / 6,
    (-1, 0): 1 / 6,
    (1, 1): 1 / 12,
    (1, -1): 1 / 12,
    (-1, 1): 1 / 12,
    (-1, -1): 1 / 12,
}
"""Weight of each neighbour of a pixel, by its distance down and to the right."""

NOISE = 0.01
"""Standard deviation of the noise on imputed pixels, on the [0, 1] scale."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def impute(images: Tensor, removed: Tensor, *, key: bytes) -> Tensor:
    """Return images whose removed pixels follow from their neighbours.

    Args:
        images: Pixels in [0, 1], [B, C, H, W].
        removed: Which pixels are gone, bool [B, H, W]; one of each image must remain.
        key: Of the noise, which depends on the image.

    Raises:
        ConfigurationError: All pixels of an image are removed.

    Source: Rong et al. 2022 (arXiv 2202.00449), noisy linear imputation.
    """
    if bool(removed.flatten(1).all(1).any()):
        raise ConfigurationError("all pixels of an image are removed; nothing is left to go by.")
    filled = [
        torch.from_numpy(_solve(image.double().cpu().numpy(), gone.cpu().numpy()))
        for image, gone in zip(images, removed, strict=True)
    ]
    noise = [gaussian_copies(image_digest(i, b"impute" + key), 0, 1, i.shape)[0] for i in images]
    noisy = torch.stack(filled) + NOISE * torch.stack(noise)
    whole = noisy.clamp(0, 1).to(images)
    return torch.where(removed[:, None], whole, images)


def _solve(image: Floats, gone: Bools) -> Floats:
    """Return an image [C, H, W] with the removed pixels solved for, without noise."""
    unknown = np.flatnonzero(gone)
    if not len(unknown):
        return image
    height, width = gone.shape
    flat = image.reshape(len(image), -1)
    number = np.full(height * width, -1)
    number[unknown] = np.arange(len(unknown))
    rows, columns = np.divmod(unknown, width)
    weight_of_all = np.zeros(len(unknown))
    known = np.zeros((len(unknown), len(image)))
    entries: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], float]] = []
    for (down, right), weight in WEIGHTS.items():
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        at = np.flatnonzero(inside)
        neighbour = y[at] * width + x[at]
        weight_of_all[at] += weight
        kept = number[neighbour] < 0
        known[at[kept]] += weight * flat[:, neighbour[kept]].T
        entries.append((at[~kept], number[neighbour[~kept]], weight))
    diagonal = np.arange(len(unknown))
    matrix = csc_array(
        (
            np.concatenate([weight_of_all, *(np.full(len(i), -w) for i, _, w in entries)]),
            (
                np.concatenate([diagonal, *(i for i, _, _ in entries)]),
                np.concatenate([diagonal, *(j for _, j, _ in entries)]),
            ),
        ),
        shape=(len(unknown), len(unknown)),
    )
    solved = flat.copy()
    solved[:, unknown] = splu(matrix).solve(known).T
    return solved.reshape(image.shape)
