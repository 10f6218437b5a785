"""Shares with Wilson intervals, and the AUROC, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from lrpguard.errors import ConfigurationError, NonFiniteScoreError
from lrpguard.evaluation import auroc, proportion


def test_the_papers_row_prints_with_its_interval() -> None:
    assert str(proportion(138, 253)) == "54.5 % (48.4-60.6), 138/253"


def test_wilson_interval_follows_its_formula() -> None:
    z, n, p = 1.959963984540054, 20, 3 / 20
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))

    share = proportion(3, 20)

    assert share.rate == pytest.approx(0.15)
    assert (share.low, share.high) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_interval_stays_within_0_and_1_at_the_ends() -> None:
    none, all_of_them = proportion(0, 10), proportion(10, 10)

    assert none.low == 0
    assert 0.2 < none.high < 0.35
    assert all_of_them.high == 1
    assert all_of_them.low == pytest.approx(1 - none.high)


def test_more_confidence_is_wider() -> None:
    assert proportion(5, 10, confidence=0.99).low < proportion(5, 10, confidence=0.9).low


def test_no_trials_have_no_rate() -> None:
    share = proportion(0, 0)

    assert math.isnan(share.rate)
    assert math.isnan(share.low)
    assert str(share) == "- (n = 0)"


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ConfigurationError, match="0 <= successes <= n"):
        proportion(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_level(confidence: float) -> None:
    with pytest.raises(ConfigurationError, match="confidence"):
        proportion(1, 2, confidence=confidence)


@pytest.mark.parametrize(
    ("clean", "adversarial", "expected"),
    [
        ([0.0, 1.0], [2.0, 3.0], 1.0),
        ([2.0, 3.0], [0.0, 1.0], 0.0),
        ([1.0, 1.0], [1.0, 1.0], 0.5),
        ([1.0, 2.0, 3.0], [2.0], 0.5),  # above one, level with one, below one
        ([0.0, 2.0], [1.0, 2.0], 0.625),  # 1 + 0 + 1 + 0.5 of 4 pairs
    ],
)
def test_auroc_counts_pairs_and_ties_half(
    clean: list[float], adversarial: list[float], expected: float
) -> None:
    assert auroc(clean, adversarial) == pytest.approx(expected)


def test_auroc_agrees_with_scipy_and_takes_tensors() -> None:
    generator = np.random.default_rng(0)
    clean = generator.integers(0, 30, 200).astype(float)
    adversarial = generator.integers(5, 35, 90).astype(float)
    expected = mannwhitneyu(adversarial, clean).statistic / (200 * 90)

    assert auroc(torch.tensor(clean), torch.tensor(adversarial)) == pytest.approx(expected)


def test_auroc_needs_both_and_finite_scores() -> None:
    with pytest.raises(ConfigurationError, match="no adversarial scores"):
        auroc([1.0], [])
    with pytest.raises(NonFiniteScoreError, match="1 of 2 clean scores"):
        auroc([1.0, math.nan], [1.0])
