"""Is the traffic still like the calibration? Two tests of each window of distinct images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom, binomtest, ks_2samp

from lrpguard.calibration import Calibration
from lrpguard.conformal import flagged_rank


@dataclass(frozen=True)
class Window:
    """What the tests say of one window.

    Attributes:
        first: Request of the first image.
        last: Request of the last.
        n: Distinct images.
        flagged: Those that were flagged.
        alpha: Share that is flagged of traffic like the calibration.
        rate_p_value: Exact two-sided binomial test of the flag rate, with the rate's own
            uncertainty; see :func:`flag_rate_p_value`.
        nominal_p_value: The plain exact binomial test against alpha, which takes the calibration
            to be infinite.
        score_p_value: Two-sample Kolmogorov-Smirnov test of the scores against the calibration's;
            1 where there are none to compare.
        level: False alarms of one test of one window.
    """

    first: str
    last: str
    n: int
    flagged: int
    alpha: float
    rate_p_value: float
    nominal_p_value: float
    score_p_value: float
    level: float

    @property
    def alarms(self) -> tuple[str, ...]:
        """Tests that reject."""
        tests = {"flag_rate": self.rate_p_value, "scores": self.score_p_value}
        return tuple(name for name, p_value in tests.items() if p_value <= self.level)


def flag_rate_p_value(flagged: int, n: int, calibration: Calibration) -> float:
    """Return the exact two-sided p-value of a number of flags, for traffic like the calibration.

    Given the calibration, flags are binomial with a rate that is not alpha itself: over
    calibrations of this size it follows Beta(k, m + 1 - k), k = floor(alpha (m + 1)). So the
    number of flags follows the beta-binomial law, which is the binomial one with rate k / (m + 1)
    in the limit of large m. A plain binomial test would take a calibration that happened to be
    strict for a drift.

    Args:
        flagged: Flagged images of the window.
        n: Images of the window.
        calibration: The calibration, of m images.

    Source: Vovk 2012, proposition 2 (the law of the rate).
    """
    k = flagged_rank(calibration.n, calibration.alpha)
    law = betabinom(n, k, calibration.n + 1 - k)
    tail = min(float(law.cdf(flagged)), float(law.sf(flagged - 1)))
    return min(1.0, 2 * tail)


def score_p_value(scores: npt.ArrayLike, calibration: Calibration) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test against the calibration."""
    return float(ks_2samp(np.asarray(scores), calibration.anomalies.numpy()).pvalue)


def judge_window(
    seen: Sequence[tuple[str, bool, float | None]], calibration: Calibration, *, level: float
) -> Window:
    """Test one window.

    Args:
        seen: Request, flag and score of each distinct image, in order; at least one. The score
            is None where it is none of the calibration's kind.
        calibration: What the traffic is compared with.
        level: False alarms of one test of one window.
    """
    flagged = sum(flag for _, flag, _ in seen)
    scores = [score for _, _, score in seen if score is not None]
    return Window(
        first=seen[0][0],
        last=seen[-1][0],
        n=len(seen),
        flagged=flagged,
        alpha=calibration.alpha,
        rate_p_value=flag_rate_p_value(flagged, len(seen), calibration),
        nominal_p_value=float(binomtest(flagged, len(seen), calibration.alpha).pvalue),
        score_p_value=score_p_value(scores, calibration) if scores else 1.0,
        level=level,
    )


@dataclass
class DriftWatch:
    """Gathers verdicts into windows that do not overlap.

    An image that comes again within a window counts once: a probe or a retry is no drift.

    Attributes:
        calibration: What the traffic is compared with.
        size: Distinct images of a window.
        level: False alarms of one test of one window.
    """

    calibration: Calibration
    size: int
    level: float
    _seen: dict[str, tuple[str, bool, float | None]] = field(default_factory=dict)

    def add(self, image: str, request: str, flagged: bool, score: float | None) -> Window | None:
        """Enter a verdict; return the tests of the window where it is the last of one.

        Args:
            image: Hash of the image.
            request: Its request.
            flagged: Whether it was flagged.
            score: Its anomaly score; None where fewer copies were made than the calibration's,
                or early stopping chose their number.
        """
        self._seen.setdefault(image, (request, flagged, score))
        if len(self._seen) < self.size:
            return None
        seen = list(self._seen.values())
        self._seen.clear()
        return judge_window(seen, self.calibration, level=self.level)
