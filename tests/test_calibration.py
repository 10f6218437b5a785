"""Conformal p-values, the threshold and the band they promise."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpguard.conformal import check_size
from lrpguard.errors import (
    CalibrationMismatchError,
    CalibrationSizeError,
    ConfigurationError,
    InputShapeError,
    NonFiniteScoreError,
)
from tests.support import make_calibration

few_values = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0])  # so that ties are the rule


class TestPValues:
    @given(
        clean=st.lists(few_values, min_size=9, max_size=40),
        asked=st.lists(st.one_of(few_values, st.floats(-3, 3)), min_size=1, max_size=10),
    )
    @settings(max_examples=200, deadline=None)
    def test_formula_by_brute_force_with_ties(self, clean: list[float], asked: list[float]) -> None:
        found = make_calibration(clean).p_values(torch.tensor(asked, dtype=torch.float64))
        wanted = [(1 + sum(c >= s for c in clean)) / (len(clean) + 1) for s in asked]
        assert found.tolist() == wanted
        assert found.dtype == torch.float64

    def test_beyond_both_ends(self) -> None:
        calibration = make_calibration([float(i) for i in range(9)])
        p = calibration.p_values(torch.tensor([-1e300, 1e300, torch.inf, -torch.inf]).double())
        assert p.tolist() == [1.0, 0.1, 0.1, 1.0]

    def test_of_a_calibration_image_itself(self) -> None:
        calibration = make_calibration([float(i) for i in range(9)])
        assert calibration.p_values(calibration.anomalies).tolist() == [
            (10 - i) / 10 for i in range(9)
        ]

    def test_are_valid_on_exchangeable_data(self) -> None:
        # P(p <= alpha) <= alpha over calibration and request together, with many ties.
        draws = np.random.default_rng(0).integers(0, 30, (4000, 20)).astype(float)
        flags = 0
        for *clean, request in draws:
            p = make_calibration(clean).p_values(torch.tensor([request], dtype=torch.float64))
            flags += bool(p <= 0.1)
        assert flags / 4000 <= 0.1 + 3 * math.sqrt(0.09 / 4000)


class TestThreshold:
    @given(
        clean=st.lists(few_values, min_size=19, max_size=60),
        alpha=st.sampled_from([0.05, 0.07, 0.1, 0.25, 1 / 3, 0.5, 0.9]),
    )
    @settings(max_examples=200, deadline=None)
    def test_larger_scores_are_flagged_and_no_others(
        self, clean: list[float], alpha: float
    ) -> None:
        calibration = make_calibration(clean, alpha=alpha)
        asked = torch.linspace(-1, 3, 81, dtype=torch.float64)
        flagged = calibration.flags(calibration.p_values(asked))
        assert torch.equal(flagged, asked > calibration.threshold)

    @pytest.mark.parametrize(
        ("n", "alpha", "rank"),
        [(19, 0.05, 1), (20, 0.05, 1), (38, 0.05, 1), (39, 0.05, 2), (99, 0.07, 7), (9, 0.1, 1)],
    )
    def test_is_the_kth_largest_score(self, n: int, alpha: float, rank: int) -> None:
        calibration = make_calibration([float(i) for i in range(n)], alpha=alpha)
        assert calibration.threshold == n - rank

    @pytest.mark.parametrize("n", [19, 20, 59, 60, 99, 199, 999])
    @pytest.mark.parametrize("alpha", [0.05, 0.07, 0.1, 0.15, 0.29, 0.3, 0.57])
    def test_rank_is_exact_where_binary_fractions_are_not(self, n: int, alpha: float) -> None:
        rank = math.floor(Fraction(str(alpha)) * (n + 1))
        calibration = make_calibration([float(i) for i in range(n)], alpha=alpha)
        assert calibration.threshold == n - rank
        p = calibration.p_values(torch.arange(n).double() + 0.5)
        assert int(calibration.flags(p).sum()) == rank

    @pytest.mark.parametrize("alpha", [1 - 0.9, 1 - 0.8, 1 / 3, 1 / 30, 2 / 3])
    @pytest.mark.parametrize("times", [1, 10])
    def test_a_computed_alpha_flags_its_share(self, alpha: float, times: int) -> None:
        n = times * 30 - 1
        calibration = make_calibration([float(i) for i in range(n)], alpha=alpha)
        flagged = calibration.flags(calibration.p_values(torch.arange(n + 1).double() - 0.5))
        assert int(flagged.sum()) == round(alpha * (n + 1))


class TestBand:
    @pytest.mark.parametrize(("n", "alpha"), [(99, 0.05), (199, 0.05), (60, 0.1), (30, 0.2)])
    def test_against_a_simulation(self, n: int, alpha: float) -> None:
        rng = np.random.default_rng(0)
        realised = []
        for clean in rng.exponential(size=(3000, n)):
            threshold = make_calibration(torch.from_numpy(clean), alpha=alpha).threshold
            realised.append(math.exp(-threshold))  # share of the law above it
        low, high = make_calibration([0.0] * n, alpha=alpha).fpr_band()
        assert np.quantile(realised, [0.025, 0.975]) == pytest.approx([low, high], rel=0.06)
        assert np.mean(realised) <= alpha + 0.002

    def test_narrows_with_n_and_widens_with_confidence(self) -> None:
        def width(n: int, confidence: float) -> float:
            low, high = make_calibration([0.0] * n, alpha=0.05).fpr_band(confidence)
            assert 0 < low < 0.05 < high < 1
            return high - low

        assert width(99, 0.95) > 2 * width(999, 0.95)
        assert width(99, 0.8) < width(99, 0.95) < width(99, 0.99)

    def test_at_200_images_is_what_the_literature_says(self) -> None:
        low, high = make_calibration([0.0] * 200, alpha=0.05).fpr_band()
        assert (low, high) == pytest.approx((0.024, 0.083), abs=0.002)


class TestRefusals:
    @pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.3, 3)])
    def test_alpha_below_the_smallest_p_value(self, alpha: float, needed: int) -> None:
        make_calibration([0.0] * needed, alpha=alpha)
        with pytest.raises(CalibrationSizeError, match=f"{needed - 1} .*at least {needed}"):
            make_calibration([0.0] * (needed - 1), alpha=alpha)
        with pytest.raises(CalibrationSizeError):
            check_size(0, alpha)

    @pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0, math.nan, math.inf])
    def test_alpha_outside_0_to_1(self, alpha: float) -> None:
        with pytest.raises(ConfigurationError, match="alpha is"):
            make_calibration([0.0] * 50, alpha=alpha)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_scores(self, bad: float) -> None:
        with pytest.raises(NonFiniteScoreError, match="2 of 22"):
            make_calibration([0.0] * 20 + [bad, bad])

    def test_unsorted_scores(self) -> None:
        import dataclasses

        calibration = make_calibration([float(i) for i in range(20)])
        shuffled = dataclasses.replace(calibration, anomalies=calibration.anomalies.flip(0))
        asked = torch.tensor([18.5]).double()
        assert torch.equal(shuffled.p_values(asked), calibration.p_values(asked))

    def test_another_model_or_precision(self) -> None:
        calibration = make_calibration([0.0] * 20)
        calibration.check_matches("f" * 64, "float32")
        with pytest.raises(CalibrationMismatchError, match="fingerprint is eeeeeeeeeeee…"):
            calibration.check_matches("e" * 64, "float32")
        with pytest.raises(CalibrationMismatchError, match=r"runs in bfloat16.*in float32"):
            calibration.check_matches("f" * 64, "bfloat16")

    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 9), (3, 16, 16)])
    def test_another_image_size(self, shape: tuple[int, int, int]) -> None:
        calibration = make_calibration([0.0] * 20)
        calibration.check_shape(torch.zeros(2, 3, 8, 8))
        with pytest.raises(InputShapeError, match=r"\[3, 8, 8\].*Resize"):
            calibration.check_shape(torch.zeros(2, *shape))
