"""Curves from the rows of an evaluation, each with its band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lrpguard.evaluation.bootstrap import image_weights
from lrpguard.evaluation.outcomes import Attacked, Clean

Floats = npt.NDArray[np.float64]
Band = Callable[[float], Sequence[float]]


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve with a pointwise 95 % band.

    Attributes:
        x: Where it is given [P].
        y: Its values [P].
        low: Lower end of the band [P].
        high: Upper end of the band [P].
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats

    def points(self, which: str = "y") -> list[tuple[float, float]]:
        """Return the points of the curve, or of an end of its band."""
        return list(zip(self.x.tolist(), getattr(self, which).tolist(), strict=True))


GRID = np.unique(np.concatenate([np.linspace(0, 0.1, 41), np.linspace(0.1, 1, 46)]))
"""False-positive rates at which a ROC curve is given."""


def roc(clean: Clean, attacks: Sequence[Attacked], detector: str, *, seed: int) -> Curve:
    """Return the ROC curve of several attacks, each counting once.

    True positives are successful attacks, false positives clean images. The band is a percentile
    bootstrap over images, all attacks of an image together.

    Args:
        clean: The untouched test images.
        attacks: Attacks, each successful on at least one image.
        detector: Whose scores.
        seed: Seed of the bootstrap.
    """
    weights = image_weights(len(clean.labels), seed=seed)
    scores = clean.scores[detector]
    thresholds = np.unique(scores)[::-1]
    false = _above(weights, scores, np.arange(len(scores)), thresholds)
    true = np.mean(
        [
            _above(
                weights,
                attack.scores[detector][attack.fooled],
                attack.positions[attack.fooled],
                thresholds,
            )
            for attack in attacks
        ],
        axis=0,
    )
    curves = np.array([_on_grid(f, t) for f, t in zip(false, true, strict=True)])
    rest = curves[1:][~np.isnan(curves[1:]).any(1)]
    low, high = np.quantile(rest, [0.025, 0.975], axis=0)
    return Curve(GRID, curves[0], low, high)


def _above(
    weights: Floats, scores: Floats, positions: npt.NDArray[np.int64], thresholds: Floats
) -> Floats:
    """Return the share of scores above each threshold, in each resample [D, T]."""
    rows = weights[:, positions]
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Floats = rows @ (scores[:, None] > thresholds) / rows.sum(1, keepdims=True)
    return share


def _on_grid(false: Floats, true: Floats) -> Floats:
    """Return the largest true-positive rate at each false-positive rate of the grid.

    A step of the staircase, not a line between its corners, which no threshold reaches.
    """
    place = np.searchsorted(false, GRID + 1e-12, side="right") - 1
    curve = np.where(GRID >= 1, 1.0, true[np.maximum(place, 0)])
    return np.asarray(np.where(np.isnan(true).any(), np.nan, curve), dtype=np.float64)


def worst_per_sample(clean: Clean, attacks: Sequence[Attacked]) -> Attacked | None:
    """Return for each image the attack that fools the model with the lowest score of the guard.

    None where no attack fools the model.
    """
    best: dict[int, tuple[float, Attacked, int]] = {}
    for attack in attacks:
        own = next(iter(attack.scores))
        for row in np.flatnonzero(attack.fooled):
            place, score = int(attack.positions[row]), float(attack.scores[own][row])
            if place not in best or score < best[place][0]:
                best[place] = (score, attack, int(row))
    if not best:
        return None
    chosen = [best[place] for place in sorted(best)]
    own = next(iter(clean.scores))
    return Attacked(
        "worst per sample",
        np.array(sorted(best), dtype=np.int64),
        np.array([a.labels[r] for _, a, r in chosen], dtype=np.int64),
        np.array([a.predicted[r] for _, a, r in chosen], dtype=np.int64),
        np.array([a.final[r] for _, a, r in chosen], dtype=np.int64),
        {own: np.array([a.p_values[own][r] for _, a, r in chosen])},
        {own: np.array([score for score, _, _ in chosen])},
    )


def reliability(p_values: Floats, band: Band, *, points: int = 40) -> Curve:
    """Return the share of p-values at most a, for a in (0, 1), with the band that is expected.

    Args:
        p_values: p-values of clean images [n].
        band: From a to the ends of the central 95 % of that share, were p-values valid.
        points: Steps of a.
    """
    levels = np.arange(1, points) / points
    shares = np.array([(p_values <= level).mean() for level in levels])
    ends = np.array([band(float(level)) for level in levels])
    return Curve(levels, shares, ends[:, 0], ends[:, 1])
