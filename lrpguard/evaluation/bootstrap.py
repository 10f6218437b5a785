"""Intervals by resampling images, all attacks and detectors of an image together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 1000
"""Resamples behind an interval."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with a 95 % percentile interval.

    Attributes:
        value: The value on the images themselves; None where it does not exist.
        low: Lower end.
        high: Upper end.
    """

    value: float | None
    low: float | None
    high: float | None


def image_weights(n: int, *, seed: int, draws: int = DRAWS) -> Floats:
    """Return how often each image stands in each resample, [draws + 1, n].

    The first row is ones: the images themselves.
    """
    generator = np.random.default_rng(seed)
    resampled = generator.multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([np.ones(n), resampled]).astype(np.float64)


def weighted_share(weights: Floats, hits: Floats, among: Floats) -> Floats:
    """Return the share of hits among some images in each resample; NaN where there are none.

    Args:
        weights: [D, n].
        hits: 1 where an image counts [n]; only where ``among`` is 1.
        among: 1 where an image takes part [n].
    """
    total = weights @ among
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Floats = np.where(total > 0, (weights @ hits) / total, np.nan)
    return share


def weighted_auroc(
    weights: Floats, clean: Floats, attacked: Floats, positions: npt.NDArray[np.int64]
) -> Floats:
    """Return the area under the ROC curve in each resample, ties counting half; NaN without images.

    Args:
        weights: [D, n].
        clean: Scores of all n clean images; larger is more anomalous.
        attacked: Scores of m attacked images.
        positions: Which of the n images each attacked one is made of [m].
    """
    above = (attacked[:, None] > clean).astype(np.float64)
    above += 0.5 * (attacked[:, None] == clean)
    rows = weights[:, positions]
    pairs = rows.sum(1) * weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = np.where(pairs > 0, ((rows @ above) * weights).sum(1) / pairs, np.nan)
    return area


def interval(draws: Floats) -> Interval:
    """Return the value of the first draw with the 95 % interval of the others."""
    rest = draws[1:][~np.isnan(draws[1:])]
    if np.isnan(draws[0]) or len(rest) == 0:
        return Interval(None, None, None)
    low, high = np.quantile(rest, [0.025, 0.975])
    return Interval(float(draws[0]), float(low), float(high))


def mean_of(draws: Sequence[Floats] | Mapping[str, Floats]) -> Floats:
    """Return the mean over attacks in each resample, of those attacks that have a value."""
    stacked = np.array(list(draws.values() if isinstance(draws, Mapping) else draws))
    if len(stacked) == 0:
        return np.full(1, np.nan)
    known = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, stacked, 0).sum(0) / known.sum(0))
