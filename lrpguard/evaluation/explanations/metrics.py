"""How good a relevance map is: six figures, each a function of maps and numbers.

Each takes a batch and returns one float64 value an image [B].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from lrpguard.errors import ConfigurationError
from lrpguard.lrp.engine import plain_logits

Fill = Callable[[Tensor, Tensor], Tensor]
"""From images [B, C, H, W] and the pixels removed, bool [B, H, W], to the images without them."""

FRACTIONS = (0.05, 0.1, 0.2, 0.4)
"""Shares of the pixels that pixel-flipping removes."""

_TINY = 1e-300


def mean_colour(images: Tensor, removed: Tensor) -> Tensor:
    """Return images [B, C, H, W] whose removed pixels [B, H, W] have the image's mean colour."""
    return torch.where(removed[:, None], images.mean((2, 3), keepdim=True), images)


def deletion_curves(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    label: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    fill: Fill = mean_colour,
) -> tuple[Tensor, Tensor]:
    """Remove pixels in the order of their relevance, and watch the class go (pixel-flipping).

    Pixels of equal relevance go from left to right and from top to bottom.

    Args:
        model: Module in eval mode from [B, C, H, W] in [0, 1] to logits [B, K].
        images: Pixels [B, C, H, W].
        maps: Signed relevance [B, H, W].
        label: Explained classes [B].
        fractions: Shares of the pixels removed [F], each in [0, 1].
        fill: What stands in for removed pixels.

    Returns:
        Softmax probability of the explained class, the most relevant pixels removed first, and
        the least relevant first, each [B, F].

    Source: Bach et al. 2015; Samek et al. 2017 (arXiv 1509.06321).
    """
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ConfigurationError(f"fractions are {list(fractions)}; each must lie in [0, 1].")
    flat = maps.flatten(1)
    curves = []
    for descending in (True, False):
        order = flat.argsort(dim=1, descending=descending, stable=True)
        points = []
        for fraction in fractions:
            gone = order[:, : round(fraction * flat.shape[1])]
            removed = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, gone, True)
            flipped = fill(images, removed.view_as(maps))
            probability = plain_logits(model, flipped).double().softmax(1)
            points.append(probability.gather(1, label[:, None]).squeeze(1))
        curves.append(torch.stack(points, 1))
    return curves[0], curves[1]


def relevance_gain(most_first: Tensor, least_first: Tensor) -> Tensor:
    """Return how much later the class goes when the least relevant pixels go first.

    The mean over the fractions of the difference of both curves, in [-1, 1]: 0 for a map that
    knows nothing, larger is better. What removing pixels does to any image, whichever go,
    cancels out.

    Args:
        most_first: Curve of :func:`deletion_curves` [B, F].
        least_first: The other one [B, F].

    Source: Blücher, Vielhaben, Strodthoff 2024 (arXiv 2401.06654), symmetric relevance gain.
    """
    return (least_first - most_first).mean(1)


def max_sensitivity(maps: Tensor, moved: Tensor) -> Tensor:
    """Return the largest relative change of a map under small changes of its image.

    Args:
        maps: Maps [B, H, W].
        moved: Maps of the same classes for K changed images [K, B, H, W].

    Returns:
        Euclidean distance over the length of the map, the largest of the K; smaller is steadier.

    Source: Yeh et al. 2019 (arXiv 1901.09392), equation (4), relative to the map.
    """
    change = (moved.double() - maps.double()).flatten(2).norm(dim=2).amax(0)
    relative: Tensor = change / maps.double().flatten(1).norm(dim=1).clamp(min=_TINY)
    return relative


def conservation_gap(maps: Tensor, logit: Tensor) -> Tensor:
    """Return how far a map's sum is from the explained logit, relative to that.

    0 where all of the logit has reached the pixels; biases take their share under LRP.

    Args:
        maps: Maps [B, H, W].
        logit: Clean logits of the explained classes [B].
    """
    total = maps.double().flatten(1).sum(1)
    return (total - logit.double()).abs() / logit.double().abs().clamp(min=_TINY)


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Return Spearman's correlation of the maps' absolute values, in [-1, 1]; NaN for constants.

    Args:
        maps: Maps [B, H, W].
        others: As many others, e.g. of a randomised model [B, H, W].

    Source: Adebayo et al. 2018 (arXiv 1810.03292), rank correlation with absolute values.
    """
    ranks = [rankdata(values.abs().flatten(1).cpu().numpy(), axis=1) for values in (maps, others)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        found = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return torch.from_numpy(found)


def gini_index(maps: Tensor) -> Tensor:
    """Return the sparseness of a map: the Gini index of its absolute values, in [0, 1).

    0 where all pixels have the same share, near 1 where one pixel has all.

    Args:
        maps: Maps [B, H, W].

    Source: Hurley and Rickard 2009, table II; Chalasani et al. 2020 (arXiv 1810.06583).
    """
    values = maps.double().abs().flatten(1).sort(1).values
    count = values.shape[1]
    weight = (count - torch.arange(1, count + 1, device=values.device) + 0.5) / count
    shares = values / values.sum(1, keepdim=True).clamp(min=_TINY)
    return torch.where(values.sum(1) > 0, 1 - 2 * (shares * weight).sum(1), 0.0)


def randomised(model: nn.Module, *, seed: int) -> nn.Module:
    """Return a copy of a model, the values of each of its parameters shuffled.

    Each parameter keeps its distribution of values and loses what was learned. Running
    statistics of batch normalisations stay.

    Args:
        model: The model, which is left alone.
        seed: Seed of the shuffles.

    Source: Adebayo et al. 2018, section 3 (weights drawn anew there).
    """
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other
