"""From scores to one anomaly: the paper's detector and the combined one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lrpguard.detector import (
    FIT_IMAGES_PER_SCORE,
    CombinedDetector,
    Detector,
    PaperDetector,
    fit_detector,
    load_detector,
    needs_fit,
)
from lrpguard.errors import CalibrationSizeError, ConfigurationError
from lrpguard.scores import SCORES

NAMES = tuple(SCORES)
THREE = NAMES[:3]
LABELS = NAMES.index("label_disagreement")


def clean(n: int, columns: int = 3, *, seed: int = 0) -> Tensor:
    """Return independent standard normal scores [n, columns]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, columns, generator=generator, dtype=torch.float64)


def one_changed(value: float, column: int = 0, columns: int = 3) -> Tensor:
    """Return one vector of typical scores but for one [1, columns]."""
    scores = torch.zeros(1, columns, dtype=torch.float64)
    scores[0, column] = value
    return scores


class TestPaper:
    def test_is_the_identity_on_its_one_score(self) -> None:
        detector = PaperDetector()
        assert detector.score_names == ("relevance_variance",)
        assert detector.anomaly(torch.tensor([[3.0], [-1.0], [0.0]])).tolist() == [3.0, -1.0, 0.0]
        assert detector.state() == {}

    def test_is_made_without_a_fit(self) -> None:
        assert not needs_fit("paper")
        assert isinstance(fit_detector("paper", torch.zeros(0, len(NAMES))), PaperDetector)


class TestCombined:
    @pytest.mark.parametrize("seed", range(3))
    def test_clean_anomalies_have_the_size_of_chi_square(self, seed: int) -> None:
        detector = CombinedDetector.fit(clean(2000, seed=seed), THREE)
        fresh = detector.anomaly(clean(2000, seed=100 + seed))
        assert fresh.mean().item() == pytest.approx(3, rel=0.15)
        assert bool((fresh >= 0).all())

    @pytest.mark.parametrize("column", range(3))
    def test_unusually_low_and_unusually_high_are_both_anomalous(self, column: int) -> None:
        detector = CombinedDetector.fit(clean(200), THREE)
        typical = detector.anomaly(one_changed(0.0))
        for value in (-2.2, 2.2, -10, 10):
            assert detector.anomaly(one_changed(value, column)) > typical + 3

    def test_is_as_strict_below_as_above_on_symmetric_scores(self) -> None:
        half = clean(500).abs()
        detector = CombinedDetector.fit(torch.cat([half, -half]), THREE)
        for value in (0.7, 2.0, 6.0, 50.0):
            low, high = (detector.anomaly(one_changed(v, 1)).item() for v in (-value, value))
            assert low == pytest.approx(high, rel=0.1)

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_grows_beyond_the_range_of_the_fit(self, sign: int) -> None:
        detector = CombinedDetector.fit(clean(2000), THREE)
        values = [detector.anomaly(one_changed(sign * v)).item() for v in (4, 6, 10, 1e3, 1e6)]
        assert all(b > 1.5 * a for a, b in itertools.pairwise(values))
        assert math.isfinite(values[-1])
        assert values[3] == pytest.approx(1e6, rel=0.5)  # linear in standard deviations, squared

    def test_never_falls_as_one_score_rises_above_the_median(self) -> None:
        detector = CombinedDetector.fit(clean(60), THREE)
        independent = CombinedDetector(THREE, detector.reference, torch.eye(3, dtype=torch.float64))
        values = torch.linspace(0.8, 8, 500, dtype=torch.float64)
        scores = torch.zeros(500, 3, dtype=torch.float64)
        scores[:, 0] = values
        assert bool((independent.anomaly(scores).diff() >= -1e-12).all())

    @pytest.mark.parametrize("transform", [lambda x: 1e-6 * x - 3, lambda x: x**3, torch.exp])
    def test_monotone_change_of_a_score_means_nothing_inside_the_range(
        self, transform: Callable[[Tensor], Tensor]
    ) -> None:
        fit, inside = clean(300), clean(200, seed=1).clamp(-1.5, 1.5)
        detector = CombinedDetector.fit(fit, THREE)
        changed = CombinedDetector.fit(transform(fit), THREE)
        torch.testing.assert_close(changed.anomaly(transform(fit)), detector.anomaly(fit))
        torch.testing.assert_close(  # linear between the fit's scores, so not exactly
            changed.anomaly(transform(inside)), detector.anomaly(inside), rtol=0.02, atol=0.01
        )

    @pytest.mark.parametrize("factor", [1e-9, 1e6])
    def test_change_of_units_means_nothing_anywhere(self, factor: float) -> None:
        fit, fresh = clean(300), 20 * clean(200, seed=1)
        detector = CombinedDetector.fit(fit, THREE)
        changed = CombinedDetector.fit(factor * fit, THREE)
        torch.testing.assert_close(changed.anomaly(factor * fresh), detector.anomaly(fresh))

    def test_correlated_scores_count_together(self) -> None:
        base = clean(400, 1)
        fit = torch.cat([base, base + 0.1 * clean(400, 1, seed=1)], dim=1)
        detector = CombinedDetector.fit(fit, NAMES[:2])
        with_law = detector.anomaly(torch.tensor([[1.5, 1.5]], dtype=torch.float64))
        against = detector.anomaly(torch.tensor([[1.5, -1.5]], dtype=torch.float64))
        assert against > 5 * with_law

    def test_each_request_is_judged_alone(self) -> None:
        detector, fresh = CombinedDetector.fit(clean(100), THREE), clean(7, seed=1)
        together = detector.anomaly(fresh)
        alone = torch.cat([detector.anomaly(row[None]) for row in fresh])
        torch.testing.assert_close(alone, together, rtol=1e-12, atol=0)

    def test_is_continuous_in_the_scores(self) -> None:
        fit = clean(60)
        detector = CombinedDetector.fit(fit, THREE)
        for change in (1e-9, -1e-9):  # rounding, when the same image comes in another batch
            torch.testing.assert_close(
                detector.anomaly(fit + change), detector.anomaly(fit), rtol=1e-5, atol=1e-6
            )

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_non_finite_scores_are_not_hidden(self, bad: float) -> None:
        detector = CombinedDetector.fit(clean(100), THREE)
        assert not bool(torch.isfinite(detector.anomaly(one_changed(bad))).any())


class TestDiscreteScores:
    @pytest.fixture(scope="class")
    @staticmethod
    def fit() -> Tensor:
        """Scores of 100 images, of which the label of 4 falters on 1 or 2 of 8 copies."""
        scores = clean(100, len(NAMES))
        scores[:, LABELS] = 0
        scores[:4, LABELS] = torch.tensor([0.125, 0.125, 0.125, 0.25])
        return scores

    def test_mostly_zero(self, fit: Tensor) -> None:
        detector = fit_detector("combined", fit)
        anomaly = detector.anomaly(fit)
        assert bool(torch.isfinite(anomaly).all())
        assert anomaly[4:].max() < 40  # the many zeros are ordinary
        votes = torch.tensor([0.0, 0.125, 0.25, 0.5, 1.0], dtype=torch.float64)
        rows = torch.zeros(5, len(NAMES), dtype=torch.float64)
        rows[:, LABELS] = votes
        assert bool((detector.anomaly(rows).diff() > 1).all())

    def test_does_not_drown_the_other_scores(self, fit: Tensor) -> None:
        detector = fit_detector("combined", fit)
        other = one_changed(12.0, NAMES.index("log_odds_shift"), len(NAMES))
        faltering = one_changed(0.125, LABELS, len(NAMES))
        assert detector.anomaly(other) > detector.anomaly(faltering)

    def test_constant_in_the_fit(self, fit: Tensor) -> None:
        constant = fit.clone()
        constant[:, LABELS] = 0
        detector = fit_detector("combined", constant)
        assert bool(torch.isfinite(detector.anomaly(constant)).all())
        one_vote = detector.anomaly(one_changed(1 / 50, LABELS, len(NAMES)))
        far_out = detector.anomaly(one_changed(1000.0, 0, len(NAMES)))
        assert far_out > one_vote > detector.anomaly(one_changed(0, LABELS, len(NAMES)))

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 1e5 + 0.1])
    def test_constant_that_is_no_binary_fraction(self, fit: Tensor, value: float) -> None:
        fit = fit.clone()
        fit[:, LABELS] = value
        detector = fit_detector("combined", fit)
        changed = fit[:1].clone()
        changed[0, LABELS] = value * (1 + 1e-12)  # rounding
        torch.testing.assert_close(
            detector.anomaly(changed), detector.anomaly(fit[:1]), rtol=1e-3, atol=1e-3
        )
        changed[0, LABELS] = value + 0.02
        assert detector.anomaly(changed) < 1e3

    def test_constant_everywhere(self) -> None:
        detector = CombinedDetector.fit(torch.full((30, 3), 2.5, dtype=torch.float64), THREE)
        same = detector.anomaly(torch.full((1, 3), 2.5, dtype=torch.float64))
        other = detector.anomaly(torch.full((1, 3), 2.6, dtype=torch.float64))
        assert same.item() == pytest.approx(0, abs=1e-6)
        assert other > 1
        assert bool(torch.isfinite(other).all())


class TestFitAndState:
    def test_too_few_images(self) -> None:
        needed = FIT_IMAGES_PER_SCORE * len(NAMES)
        with pytest.raises(CalibrationSizeError, match=f"{needed - 1} clean.*at least {needed}"):
            fit_detector("combined", clean(needed - 1, len(NAMES)))
        fitted = fit_detector("combined", clean(needed, len(NAMES)))
        assert bool(torch.isfinite(fitted.anomaly(clean(5, len(NAMES), seed=1))).all())

    @pytest.mark.parametrize("name", ["paper", "combined"])
    def test_state_round_trip(self, name: str) -> None:
        fresh = 3 * clean(50, len(NAMES), seed=1)
        fitted: Detector = fit_detector(name, clean(100, len(NAMES)))
        again = load_detector(fitted.name, fitted.score_names, fitted.state())
        columns = [NAMES.index(score) for score in fitted.score_names]
        assert again.name == fitted.name == name
        assert again.score_names == fitted.score_names
        assert torch.equal(again.anomaly(fresh[:, columns]), fitted.anomaly(fresh[:, columns]))

    def test_combined_uses_the_whole_registry_in_order(self) -> None:
        assert fit_detector("combined", clean(100, len(NAMES))).score_names == NAMES

    def test_fit_leaves_its_scores_alone(self) -> None:
        scores = clean(100)
        CombinedDetector.fit(scores, THREE)
        assert torch.equal(scores, clean(100))

    def test_order_of_the_fit_images_does_not_matter(self) -> None:
        order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
        fresh = 2 * clean(20, seed=1)
        one = CombinedDetector.fit(clean(100), THREE).anomaly(fresh)
        other = CombinedDetector.fit(clean(100)[order], THREE).anomaly(fresh)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("function", [needs_fit, lambda name: fit_detector(name, clean(100))])
    def test_unknown_detector_is_refused_with_the_known_ones(
        self, function: Callable[[str], object]
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"'mine'.*'combined', 'paper'"):
            function("mine")

    def test_unknown_score_or_missing_state_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="entropy"):
            load_detector("paper", ("entropy",), {})
        with pytest.raises(KeyError, match="precision"):
            load_detector("combined", THREE, {"reference": clean(100)})
