"""Shares with their intervals, and the area under the ROC curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, rankdata
from torch import Tensor

from lrpguard.errors import ConfigurationError, NonFiniteScoreError

DEFAULT_CONFIDENCE = 0.95
"""Confidence of an interval where none is asked for."""


@dataclass(frozen=True)
class Proportion:
    """A share of n trials, and the interval that holds its true value.

    Prints as ``54.5 % (48.4-60.6), 138/253``.

    Attributes:
        successes: Trials that succeeded.
        n: Trials.
        low: Lower end of the interval, in [0, 1]; NaN where n is 0.
        high: Upper end of the interval, in [0, 1]; NaN where n is 0.
    """

    successes: int
    n: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Share of successes, in [0, 1]; NaN where n is 0."""
        return self.successes / self.n if self.n else math.nan

    def __str__(self) -> str:
        if self.n == 0:
            return "- (n = 0)"
        rate, low, high = (f"{100 * value:.1f}" for value in (self.rate, self.low, self.high))
        return f"{rate} % ({low}-{high}), {self.successes}/{self.n}"


def proportion(successes: int, n: int, *, confidence: float = DEFAULT_CONFIDENCE) -> Proportion:
    """Return a share with its Wilson score interval.

    Args:
        successes: Trials that succeeded, 0 <= successes <= n.
        n: Trials. None at all gives NaN for the rate and the interval.
        confidence: Confidence level of the interval, in (0, 1).

    Raises:
        ConfigurationError: A count or the confidence is out of its range.

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= n:
        raise ConfigurationError(
            f"successes is {successes} of n = {n}; expected 0 <= successes <= n."
        )
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence is {confidence}; expected a level in (0, 1).")
    if n == 0:
        return Proportion(0, 0, math.nan, math.nan)
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Proportion(successes, n, float(interval.low), float(interval.high))


def auroc(clean: npt.ArrayLike | Tensor, adversarial: npt.ArrayLike | Tensor) -> float:
    """Return the area under the ROC curve of an anomaly score.

    It is the chance that an adversarial image scores higher than a clean one, ties counting
    half: 1 separates perfectly, 0.5 is chance, below 0.5 the score points the wrong way.

    Args:
        clean: Scores of the clean images, [n].
        adversarial: Scores of the adversarial images, [m]; higher means more anomalous.

    Raises:
        ConfigurationError: One of the two is empty.
        NonFiniteScoreError: A score is NaN or infinite.

    Source:
        Mann and Whitney 1947; Hanley and McNeil 1982.
    """
    negatives, positives = _scores(clean, "clean"), _scores(adversarial, "adversarial")
    ranks = rankdata(np.concatenate([positives, negatives]))
    m, n = len(positives), len(negatives)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def _scores(values: npt.ArrayLike | Tensor, name: str) -> npt.NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    scores = np.asarray(values, dtype=np.float64).ravel()
    if scores.size == 0:
        raise ConfigurationError(f"there are no {name} scores; the AUROC needs at least one each.")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise NonFiniteScoreError(
            f"{bad} of {scores.size} {name} scores are NaN or infinite; drop those images, and "
            "count them as failures."
        )
    return scores
