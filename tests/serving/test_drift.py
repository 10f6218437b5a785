"""Drift: the tests are exact, and windows hold distinct images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from lrpguard.conformal import flagged_rank
from lrpguard.serving.drift import DriftWatch, flag_rate_p_value, judge_window, score_p_value
from tests.support import make_calibration

CALIBRATION = make_calibration([float(i) for i in range(199)], alpha=0.05)


def test_the_flag_rate_under_the_calibrations_own_law_is_exact() -> None:
    """The null law by hand: n new scores among m old ones, all orders alike likely."""
    n, m = 3, CALIBRATION.n
    k = flagged_rank(m, CALIBRATION.alpha)
    assert (k, m) == (10, 199)
    # P(no flag): each new score in turn falls below the k highest of those before it.
    none = np.prod([(m + 1 - k + i) / (m + 1 + i) for i in range(n)])
    every = np.prod([(k + i) / (m + 1 + i) for i in range(n)])
    assert flag_rate_p_value(0, n, CALIBRATION) == pytest.approx(min(1, 2 * none))
    assert flag_rate_p_value(n, n, CALIBRATION) == pytest.approx(2 * every)


def test_for_a_huge_calibration_it_is_the_binomial_test() -> None:
    huge = make_calibration(list(np.linspace(0, 1, 199_999)), alpha=0.05)
    upper = binomtest(40, 500, 0.05, alternative="greater").pvalue
    assert flag_rate_p_value(40, 500, huge) == pytest.approx(2 * upper, rel=0.02)


def test_false_alarms_keep_their_level_over_calibrations() -> None:
    """With the calibration's own luck in it: a plain binomial test would alarm far too often."""
    generator = np.random.default_rng(0)
    rounds, level = 400, 0.05
    exact = plain = 0
    for _ in range(rounds):
        calibration = make_calibration(generator.normal(size=99).tolist(), alpha=0.1)
        scores = generator.normal(size=300)
        flagged = int((scores > calibration.threshold).sum())
        exact += flag_rate_p_value(flagged, 300, calibration) <= level
        plain += binomtest(flagged, 300, 0.1).pvalue <= level
    assert exact <= rounds * level + 3 * (rounds * level * (1 - level)) ** 0.5
    assert plain > 2 * rounds * level


def test_shifted_scores_are_found_and_like_ones_are_not() -> None:
    generator = np.random.default_rng(1)
    calibration = make_calibration(generator.normal(size=300).tolist())
    assert score_p_value(generator.normal(size=300), calibration) > 0.01
    assert score_p_value(generator.normal(0.5, size=300), calibration) < 1e-4


def test_a_window_names_its_ends_and_its_alarms() -> None:
    seen = [(f"r{i}", True, 250.0 + i) for i in range(20)]
    window = judge_window(seen, CALIBRATION, level=0.001)
    assert (window.first, window.last, window.n, window.flagged) == ("r0", "r19", 20, 20)
    assert window.alarms == ("flag_rate", "scores")
    like = [(f"r{i}", i == 7, 10.0 * i) for i in range(19)]
    assert judge_window(like, CALIBRATION, level=0.001).alarms == ()


def test_an_image_that_comes_again_counts_once() -> None:
    watch = DriftWatch(CALIBRATION, size=3, level=0.01)
    for _ in range(50):
        assert watch.add("probe", "r", True, 300.0) is None
    assert watch.add("a", "r1", False, 1.0) is None
    window = watch.add("b", "r2", False, 2.0)
    assert window is not None
    assert (window.n, window.flagged) == (3, 1)
    assert watch.add("probe", "r3", True, 300.0) is None  # a new window has begun
