"""From readings to one anomaly: the paper's detector and the combined one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lrpguard.consistency import Candidates, ConsistencyModel
from lrpguard.detector import (
    COMBINED_SCORES,
    FIT_IMAGES_PER_SCORE,
    FOLDS,
    PAINTED_LEVEL,
    SIDES,
    CombinedDetector,
    Detector,
    PaperDetector,
    fit_detector,
    load_detector,
    needs_fit,
)
from lrpguard.errors import CalibrationSizeError, ConfigurationError
from lrpguard.readings import VALUES, Readings
from tests.support import make_candidates, make_readings

THREE = ("chroma_noise", "line_noise", "relevance_roughness")
"""Scores of which large is suspicious."""

NEEDED = FIT_IMAGES_PER_SCORE * (1 + len(COMBINED_SCORES))


def clean(n: int, columns: int = 3, *, seed: int = 0) -> Tensor:
    """Return independent standard normal scores [n, columns]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, columns, generator=generator, dtype=torch.float64)


def readings(scores: Tensor, names: tuple[str, ...] = THREE, *, seed: int = 0) -> Readings:
    """Return readings with these scores [n, S], and candidates at random."""
    return Readings(names, scores, make_candidates(len(scores), seed=seed))


def fitted(scores: Tensor, names: tuple[str, ...] = THREE) -> CombinedDetector:
    return CombinedDetector.fit(readings(scores, names), names)


def calm(scores: Tensor, names: tuple[str, ...] = THREE) -> Readings:
    """Return readings with these scores whose candidates move as the mean clean image does."""
    n = len(scores)
    return Readings(names, scores, make_candidates(n, values=torch.zeros(n, 4, VALUES)))


def row(value: float, column: int = 0, columns: int = 3) -> Tensor:
    """Return one vector of typical scores but for one [1, columns]."""
    scores = torch.zeros(1, columns, dtype=torch.float64)
    scores[0, column] = value
    return scores


def shifted(found: Candidates, gain: float) -> Candidates:
    """Return candidates of which the first gains this much on every view."""
    values = found.values.clone()
    values[:, 0, 1:] += gain
    return dataclasses.replace(found, values=values)


class TestPaper:
    def test_is_its_one_score_wherever_it_stands(self) -> None:
        detector = PaperDetector()
        assert detector.score_names == ("relevance_variance",)
        assert not detector.takes_views
        scores = torch.tensor([[9.0, 3.0], [9.0, -1.0], [9.0, 0.0]])
        found = Readings(("max_logit", "relevance_variance"), scores, None)
        assert detector.anomaly(found).tolist() == [3.0, -1.0, 0.0]
        assert detector.state() == {}

    def test_is_made_without_a_fit(self) -> None:
        assert not needs_fit("paper")
        assert isinstance(fit_detector("paper", make_readings(0)), PaperDetector)


class TestConsistency:
    """The first score: how much more than clean images noise and views speak for another class."""

    def test_grows_with_what_a_candidate_gains(self) -> None:
        detector = fitted(clean(400))
        fresh = calm(torch.zeros(1, 3, dtype=torch.float64))
        assert fresh.candidates is not None
        gains = [0.0, 1.0, 2.0, 4.0, 8.0, 100.0]
        found = [dataclasses.replace(fresh, candidates=shifted(fresh.candidates, g)) for g in gains]
        anomalies = [detector.anomaly(one).item() for one in found]
        assert all(b > 1.2 * a + 0.1 for a, b in itertools.pairwise(anomalies[1:]))

    def test_candidate_that_loses_is_nothing(self) -> None:
        detector = fitted(clean(400))
        fresh = calm(torch.full((1, 3), -5.0, dtype=torch.float64))
        values = torch.full((1, 4, VALUES), -9.0, dtype=torch.float64)
        values[..., 0] = 0
        losing = dataclasses.replace(fresh, candidates=make_candidates(1, values=values))
        assert detector.anomaly(losing).item() == pytest.approx(0, abs=1e-3)

    def test_covering_has_no_say(self) -> None:
        """It is for the restoration alone, where a place is painted."""
        detector, fresh = CombinedDetector.fit(make_readings(100)), make_readings(20, seed=1)
        assert fresh.candidates is not None
        values = fresh.candidates.values.clone()
        values[..., -1] += 100
        covered = dataclasses.replace(fresh.candidates, values=values)
        changed = dataclasses.replace(fresh, candidates=covered)
        assert torch.equal(detector.anomaly(changed), detector.anomaly(fresh))

    def test_fit_images_are_judged_by_models_that_have_not_seen_them(self) -> None:
        whole = make_readings(80)
        found = whole.candidates
        assert found is not None
        wanted = []
        for i in range(80):
            others = torch.tensor([k for k in range(80) if k % FOLDS != i % FOLDS])
            model = ConsistencyModel.fit(found.select(others))
            wanted.append(model.suspicion(found.select(slice(i, i + 1))))
        reference = CombinedDetector.fit(whole).reference
        assert torch.equal(reference[:, 0], torch.cat(wanted).sort().values)

    def test_the_model_that_judges_has_seen_all_of_them(self) -> None:
        whole = make_readings(80)
        assert whole.candidates is not None
        model = CombinedDetector.fit(whole).consistency
        for name, part in ConsistencyModel.fit(whole.candidates).state().items():
            assert torch.equal(model.state()[name], part)

    @pytest.mark.parametrize("classes", [2, 10, 300])
    def test_fresh_clean_images_look_like_the_fit_images(self, classes: int) -> None:
        """With many classes most pairs are seen once or never: there the folds matter."""
        n, names = 1500, COMBINED_SCORES
        fit, fresh = (
            Readings(
                names,
                clean(n, len(names), seed=seed),
                make_candidates(n, classes=classes, seed=seed),
            )
            for seed in (0, 1)
        )
        detector = CombinedDetector.fit(fit)
        assert fresh.candidates is not None
        score = detector.consistency.suspicion(fresh.candidates)
        for level in (0.5, 0.9):
            threshold = detector.reference[:, 0].quantile(level)
            beyond = (score > threshold).double().mean().item()
            assert beyond == pytest.approx(1 - level, abs=4 * math.sqrt(2 * 0.25 / n))

    def test_without_candidates_is_refused_with_the_mend(self) -> None:
        without = Readings(COMBINED_SCORES, clean(60, len(COMBINED_SCORES)), None)
        with pytest.raises(ConfigurationError, match="views=True"):
            CombinedDetector.fit(without)
        detector = CombinedDetector.fit(make_readings(60))
        with pytest.raises(ConfigurationError, match="views=True"):
            detector.anomaly(without)


def by_hand(covariance: Tensor, names: tuple[str, ...]) -> CombinedDetector:
    """Return a detector with this covariance of the mapped scores, consistency first."""
    n = 2000
    grid = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 1) / (n + 1))
    inverse = torch.linalg.inv(covariance)
    return CombinedDetector(
        consistency=ConsistencyModel.fit(make_candidates(50)),
        score_names=names,
        reference=grid[:, None].repeat(1, 1 + len(names)),  # mapped scores are the scores
        root=torch.linalg.cholesky(inverse).T.contiguous(),
    )


def mapped_onto(detector: CombinedDetector, points: Tensor) -> Readings:
    """Return readings whose scores, consistency first, are these points [B, S].

    One candidate of a pair never seen, whose gap alone makes the consistency.
    """
    model, n = detector.consistency, len(points)
    values = model.base_mean.repeat(n, 1, 1)
    values[:, 0, 0] += points[:, 0] / model.weights[0, 0] * model.base_scale[0]
    far = torch.full((n, 1), 10**6)
    drawn = make_candidates(n)  # the anomaly reads no support
    found = Candidates(far[:, 0], far + 1, values, drawn.support[:, :1], drawn.kept)
    return Readings(detector.score_names, points[:, 1:], found)


def brute_force(point: Tensor, covariance: Tensor) -> float:
    """Return the largest squared norm over all sets of scores that may be the shifted ones.

    For each set of active coordinates the shift is the unconstrained best one there; those with
    a negative part are no points of the cone.
    """
    inverse = torch.linalg.inv(covariance)
    best, size = 0.0, len(point)
    for count in range(1, size + 1):
        for active in map(list, itertools.combinations(range(size), count)):
            block = inverse[active][:, active]
            shift = torch.linalg.solve(block, inverse[active] @ point)
            if bool((shift >= 0).all()):
                best = max(best, float(shift @ block @ shift))
    return best


def random_covariance(size: int, seed: int) -> Tensor:
    """Return a random correlation matrix [size, size]."""
    factor = clean(size, size, seed=seed)
    covariance = factor @ factor.T + 0.3 * torch.eye(size, dtype=torch.float64)
    scale = covariance.diagonal().sqrt()
    return covariance / scale / scale[:, None]


class TestTowardsTheCone:
    @pytest.mark.parametrize("size", [3, 4])
    @pytest.mark.parametrize("seed", range(3))
    def test_statistic_by_brute_force_over_the_active_scores(self, size: int, seed: int) -> None:
        covariance = random_covariance(size, seed)
        detector = by_hand(covariance, THREE[: size - 1])
        points = 2 * clean(60, size, seed=10 + seed)
        points = points.clamp(-3, 3)  # inside the reference, where the map is the identity
        found = detector.anomaly(mapped_onto(detector, points)).tolist()
        wanted = [brute_force(point, covariance) for point in points]
        assert found == pytest.approx(wanted, rel=1e-2, abs=1e-2)  # knots, linear between
        assert min(wanted) < 1 < 5 < max(wanted)

    def test_statistic_to_rounding_where_the_map_is_exact(self) -> None:
        covariance = random_covariance(4, 7)
        detector = by_hand(covariance, THREE)
        knots = detector.reference[:, 0]
        generator = torch.Generator().manual_seed(0)
        points = knots[torch.randint(len(knots), (40, 4), generator=generator)]
        # The consistency passes through a division, so it meets its knot but for rounding.
        rank = torch.searchsorted(knots.contiguous(), points.contiguous()).double() + 0.5
        exact = torch.special.ndtri((rank + 0.5) / (len(knots) + 1))
        found = detector.anomaly(mapped_onto(detector, points)).tolist()
        assert found == pytest.approx([brute_force(p, covariance) for p in exact], abs=1e-6)

    def test_is_zero_where_every_score_is_on_the_innocent_side(self) -> None:
        detector = by_hand(torch.eye(4, dtype=torch.float64), THREE)
        points = -clean(50, 4).abs() * torch.logspace(-3, 8, 50, dtype=torch.float64)[:, None]
        assert detector.anomaly(mapped_onto(detector, points)).tolist() == [0.0] * 50

    @pytest.mark.parametrize("seed", range(3))
    def test_is_zero_on_the_polar_cone_and_only_there(self, seed: int) -> None:
        covariance = random_covariance(4, seed)
        detector = by_hand(covariance, THREE)
        polar = -clean(40, 4, seed=seed).abs() @ covariance  # where covariance^-1 m <= 0
        assert detector.anomaly(mapped_onto(detector, polar)).max() < 1e-9
        outside = polar + 6 * covariance[0]
        assert detector.anomaly(mapped_onto(detector, outside)).min() > 0.1

    def test_independent_scores_add_their_squares_above_zero(self) -> None:
        detector = by_hand(torch.eye(4, dtype=torch.float64), THREE)
        points = torch.tensor([[2.0, -3.0, 1.0, 0.5], [-1.0, -1.0, -1.0, 1.5]]).double()
        found = detector.anomaly(mapped_onto(detector, points)).tolist()
        assert found == pytest.approx([4 + 1 + 0.25, 2.25], rel=0.01)

    @pytest.mark.parametrize("column", range(4))
    def test_never_falls_as_an_independent_score_rises(self, column: int) -> None:
        detector = by_hand(torch.eye(4, dtype=torch.float64), THREE)
        points = clean(1, 4, seed=column).repeat(400, 1)
        points[:, column] = torch.linspace(-9, 9, 400, dtype=torch.float64)
        anomaly = detector.anomaly(mapped_onto(detector, points))
        assert bool((anomaly.diff() >= -1e-9).all())
        assert anomaly[-1] > anomaly[0] + 50

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("column", range(4))
    def test_never_falls_as_a_score_rises_and_the_others_with_it(
        self, column: int, seed: int
    ) -> None:
        """Correlated scores rise together: alone, one may explain the other away."""
        covariance = random_covariance(4, seed)
        detector = by_hand(covariance, THREE)
        steps = torch.linspace(-3, 3, 200, dtype=torch.float64)[:, None]
        points = 0.3 * clean(1, 4, seed=seed) + steps * covariance[column]
        anomaly = detector.anomaly(mapped_onto(detector, points))
        assert bool((anomaly.diff() >= -1e-3).all())  # the map is linear between its knots
        assert anomaly[-1] > anomaly[0] + 1

    def test_is_continuous(self) -> None:
        detector = by_hand(random_covariance(4, 1), THREE)
        points, way = 3 * clean(300, 4), clean(300, 4, seed=1)
        before = detector.anomaly(mapped_onto(detector, points))
        for change in (1e-9, 1e-6):
            after = detector.anomaly(mapped_onto(detector, points + change * way))
            assert (after - before).abs().max() < 1e4 * change

    def test_far_out_scores_do_not_cancel(self) -> None:
        detector = by_hand(torch.eye(4, dtype=torch.float64), THREE)
        points = torch.tensor([[-1e9, 2.0, -1e9, -1e9]], dtype=torch.float64)
        assert detector.anomaly(mapped_onto(detector, points)).item() == pytest.approx(4, rel=0.01)


class TestCombined:
    @pytest.mark.parametrize("seed", range(3))
    def test_clean_anomalies_have_the_size_of_chi_bar_square(self, seed: int) -> None:
        detector = fitted(clean(2000, seed=seed))
        fresh = detector.anomaly(readings(clean(2000, seed=100 + seed), seed=200 + seed))
        # Four independent scores, each above the median half of the time: 4 * 1 / 2.
        assert fresh.mean().item() == pytest.approx(2, rel=0.15)
        assert bool((fresh >= 0).all())

    @pytest.mark.parametrize("name", SIDES)
    def test_each_score_is_anomalous_at_its_suspicious_end_alone(self, name: str) -> None:
        detector = CombinedDetector.fit(make_readings(400), tuple(SIDES))
        detector = dataclasses.replace(detector, root=torch.eye(1 + len(SIDES)).double())
        side, column = SIDES[name], list(SIDES).index(name)

        def anomaly(value: float) -> float:
            scores = row(side * value, column, len(SIDES))
            return detector.anomaly(calm(scores, tuple(SIDES))).item()

        typical = anomaly(0.0)
        for value in (2.2, 10.0):
            assert anomaly(value) > typical + 3
            assert anomaly(-value) <= typical + 1e-9  # rounding

    def test_margin_is_suspicious_where_small_and_the_others_where_large(self) -> None:
        assert dict(SIDES) == {
            "margin": -1.0,
            "chroma_noise": 1.0,
            "line_noise": 1.0,
            "place_roughness": 1.0,
            "relevance_roughness": 1.0,
        }

    def test_grows_beyond_the_range_of_the_fit(self) -> None:
        detector = fitted(clean(2000))
        values = [detector.anomaly(calm(row(v))).item() for v in (4, 6, 10, 1e3, 1e6)]
        assert all(b > 1.5 * a for a, b in itertools.pairwise(values))
        assert math.isfinite(values[-1])
        assert values[3] == pytest.approx(1e6, rel=0.5)  # linear in standard deviations, squared

    def test_never_falls_as_one_score_rises(self) -> None:
        detector = fitted(clean(60))
        eye = torch.eye(4, dtype=torch.float64)
        independent = dataclasses.replace(detector, root=eye)
        scores = torch.zeros(500, 3, dtype=torch.float64)
        scores[:, 0] = torch.linspace(-8, 8, 500, dtype=torch.float64)
        assert bool((independent.anomaly(calm(scores)).diff() >= -1e-12).all())

    @pytest.mark.parametrize("transform", [lambda x: 1e-6 * x - 3, lambda x: x**3, torch.exp])
    def test_monotone_change_of_a_score_means_nothing_inside_the_range(
        self, transform: Callable[[Tensor], Tensor]
    ) -> None:
        fit, inside = clean(300), clean(200, seed=1).clamp(-1.5, 1.5)
        detector, changed = fitted(fit), fitted(transform(fit))
        torch.testing.assert_close(
            changed.anomaly(readings(transform(fit))), detector.anomaly(readings(fit))
        )
        torch.testing.assert_close(  # linear between the fit's scores, so not exactly
            changed.anomaly(calm(transform(inside))),
            detector.anomaly(calm(inside)),
            rtol=0.02,
            atol=0.01,
        )

    @pytest.mark.parametrize("factor", [1e-9, 1e6])
    def test_change_of_units_means_nothing_anywhere(self, factor: float) -> None:
        fit, fresh = clean(300), 20 * clean(200, seed=1)
        detector, changed = fitted(fit), fitted(factor * fit)
        torch.testing.assert_close(
            changed.anomaly(readings(factor * fresh)), detector.anomaly(readings(fresh))
        )

    def test_correlated_scores_do_not_count_twice(self) -> None:
        base = clean(400, 1)
        fit = torch.cat([base, base + 0.1 * clean(400, 1, seed=1)], dim=1)
        pair, apart = fitted(fit, THREE[:2]), fitted(clean(400, 2), THREE[:2])
        high = torch.full((1, 2), 2.0, dtype=torch.float64)
        once = pair.anomaly(calm(high, THREE[:2]))
        twice = apart.anomaly(calm(high, THREE[:2]))
        assert once < 0.7 * twice

    def test_each_request_is_judged_alone_bit_for_bit(self) -> None:
        detector, fresh = CombinedDetector.fit(make_readings(100)), make_readings(33, seed=1)
        together = detector.anomaly(fresh)
        alone = [detector.anomaly(fresh.select(slice(i, i + 1))) for i in range(33)]
        assert torch.equal(torch.cat(alone), together)
        order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
        assert torch.equal(detector.anomaly(fresh.select(order)), together[order])

    def test_is_continuous_in_the_scores(self) -> None:
        fit = clean(60)
        detector = fitted(fit)
        for change in (1e-9, -1e-9):  # rounding, when the same image comes in another batch
            torch.testing.assert_close(
                detector.anomaly(readings(fit + change)),
                detector.anomaly(readings(fit)),
                rtol=1e-5,
                atol=1e-6,
            )

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_non_finite_scores_are_not_hidden(self, bad: float) -> None:
        detector = fitted(clean(100))
        assert not bool(torch.isfinite(detector.anomaly(calm(row(bad)))).any())

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_non_finite_candidates_are_not_hidden(self, bad: float) -> None:
        detector = fitted(clean(100))
        fresh = calm(row(0.0))
        assert fresh.candidates is not None
        broken = dataclasses.replace(fresh, candidates=shifted(fresh.candidates, bad))
        assert not bool(torch.isfinite(detector.anomaly(broken)).any())


class TestDiscreteScores:
    @pytest.fixture(scope="class")
    @staticmethod
    def fit() -> Tensor:
        """Scores of 100 images, of which the last rises above 0 on 4 alone."""
        scores = clean(100)
        scores[:, 2] = 0
        scores[:4, 2] = torch.tensor([0.125, 0.125, 0.125, 0.25])
        return scores

    def test_mostly_zero(self, fit: Tensor) -> None:
        detector = fitted(fit)
        anomaly = detector.anomaly(readings(fit))
        assert bool(torch.isfinite(anomaly).all())
        assert anomaly[4:].max() < 40  # the many zeros are ordinary
        rows = torch.zeros(5, 3, dtype=torch.float64)
        rows[:, 2] = torch.tensor([0.0, 0.125, 0.25, 0.5, 1.0])
        assert bool((detector.anomaly(calm(rows)).diff() > 1).all())

    def test_does_not_drown_the_other_scores(self, fit: Tensor) -> None:
        detector = fitted(fit)
        assert detector.anomaly(calm(row(12.0, 0))) > detector.anomaly(calm(row(0.125, 2)))

    def test_constant_in_the_fit(self, fit: Tensor) -> None:
        constant = fit.clone()
        constant[:, 2] = 0
        detector = fitted(constant)
        assert bool(torch.isfinite(detector.anomaly(readings(constant))).all())
        little = detector.anomaly(calm(row(1 / 50, 2)))
        far_out = detector.anomaly(calm(row(1000.0, 0)))
        assert far_out > little > detector.anomaly(calm(row(0, 2)))

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 1e5 + 0.1])
    def test_constant_that_is_no_binary_fraction(self, fit: Tensor, value: float) -> None:
        fit = fit.clone()
        fit[:, 2] = value
        detector = fitted(fit)
        changed = fit[:1].clone()
        changed[0, 2] = value * (1 + 1e-12)  # rounding
        torch.testing.assert_close(
            detector.anomaly(calm(changed)), detector.anomaly(calm(fit[:1])), rtol=1e-3, atol=1e-3
        )
        changed[0, 2] = value + 0.02
        assert detector.anomaly(calm(changed)) < 1e3

    def test_constant_everywhere(self) -> None:
        names, n = THREE, 40
        same = calm(torch.full((n, 3), 2.5, dtype=torch.float64), names)
        detector = CombinedDetector.fit(same, names)
        one = same.select(slice(1))
        assert detector.anomaly(one).item() == pytest.approx(0, abs=1e-6)
        other = dataclasses.replace(one, scores=one.scores + 0.1)
        assert detector.anomaly(other) > 1
        assert bool(torch.isfinite(detector.anomaly(other)).all())


class TestPainted:
    """Which requests have a place that is rougher than nearly all clean images' roughest."""

    NAMES = ("margin", "place_roughness")

    def test_by_hand(self) -> None:
        detector = by_hand(torch.eye(3, dtype=torch.float64), self.NAMES)
        points = torch.full((6, 3), -9.0, dtype=torch.float64)
        points[:, 2] = torch.tensor([-50.0, 0.0, 1.99, 2.01, 3.0, 50.0])
        assert PAINTED_LEVEL == 2.0
        painted = detector.painted(mapped_onto(detector, points))
        assert painted.dtype == torch.bool
        assert painted.tolist() == [False, False, False, True, True, True]

    def test_the_other_scores_have_no_say(self) -> None:
        detector = by_hand(torch.eye(3, dtype=torch.float64), self.NAMES)
        points = torch.full((2, 3), 50.0, dtype=torch.float64)
        points[:, 2] = torch.tensor([1.0, 3.0])
        for sign in (1, -1):
            points[:, :2] *= sign
            assert detector.painted(mapped_onto(detector, points)).tolist() == [False, True]

    def test_is_measured_by_the_clean_images_own_places(self) -> None:
        places = 10 + 0.5 * clean(400, 1)[:, 0]
        detector = CombinedDetector.fit(make_readings(400, place_roughness=places))
        limit = torch.special.ndtr(torch.tensor(2.0).double()).item()  # 97.7 % of them lie below
        asked = torch.tensor([0.0, 9.0, 10.5, 10.8, 11.3, 12.0, 99.0]).double()
        wanted = (places[:, None] < asked).double().mean(0) > limit
        assert 0 < int(wanted.sum()) < len(wanted)
        fresh = make_readings(len(asked), place_roughness=asked)
        assert torch.equal(detector.painted(fresh), wanted)

    def test_is_about_one_of_forty_clean_images(self) -> None:
        detector = CombinedDetector.fit(make_readings(4000))
        share = detector.painted(make_readings(4000, seed=1)).double().mean().item()
        rate = 0.02275  # beyond two standard deviations, in the fit and in what is asked
        assert share == pytest.approx(rate, abs=4 * math.sqrt(2 * rate / 4000))

    @pytest.mark.parametrize("names", [(), THREE, ("margin",)])
    def test_never_without_the_score(self, names: tuple[str, ...]) -> None:
        detector = CombinedDetector.fit(make_readings(100), names)
        rough = make_readings(5, place_roughness=torch.full((5,), 1e6).double())
        assert detector.painted(rough).tolist() == [False] * 5

    def test_takes_its_score_by_name(self) -> None:
        detector = CombinedDetector.fit(make_readings(100))
        rising = torch.linspace(-4, 4, 40, dtype=torch.float64)
        fresh = make_readings(40, seed=1, place_roughness=rising)
        painted = detector.painted(fresh)
        assert painted.tolist() == sorted(painted.tolist())
        assert set(painted.tolist()) == {False, True}
        backwards = Readings(fresh.names[::-1], fresh.scores.flip(1), fresh.candidates)
        assert torch.equal(detector.painted(backwards), painted)
        without = Readings(fresh.names, fresh.scores, None)  # candidates have no say
        assert torch.equal(detector.painted(without), painted)

    def test_each_request_alone_and_after_a_round_trip(self) -> None:
        detector = CombinedDetector.fit(make_readings(100))
        fresh = make_readings(60, seed=1)
        again = load_detector("combined", detector.score_names, detector.state())
        assert isinstance(again, CombinedDetector)
        whole = detector.painted(fresh)
        assert torch.equal(again.painted(fresh), whole)
        alone = [detector.painted(fresh.select(slice(i, i + 1))) for i in range(60)]
        assert torch.equal(torch.cat(alone), whole)


class TestFitAndState:
    def test_too_few_images(self) -> None:
        few = make_readings(NEEDED - 1)
        with pytest.raises(CalibrationSizeError, match=f"{NEEDED - 1} clean.*at least {NEEDED}"):
            fit_detector("combined", few)
        enough = fit_detector("combined", make_readings(NEEDED))
        assert bool(torch.isfinite(enough.anomaly(make_readings(5, seed=1))).all())

    @pytest.mark.parametrize("name", ["paper", "combined"])
    def test_state_round_trip(self, name: str) -> None:
        fresh = make_readings(50, seed=1)
        made: Detector = fit_detector(name, make_readings(100))
        again = load_detector(made.name, made.score_names, made.state())
        assert again.name == made.name == name
        assert again.score_names == made.score_names
        assert again.takes_views == made.takes_views == (name == "combined")
        assert torch.equal(again.anomaly(fresh), made.anomaly(fresh))
        assert again.state().keys() == made.state().keys()
        assert all(torch.equal(again.state()[k], v) for k, v in made.state().items())

    def test_combined_takes_its_scores_in_order(self) -> None:
        made = fit_detector("combined", make_readings(100))
        assert made.score_names == ("margin", "chroma_noise", "line_noise", "place_roughness")
        assert set(made.score_names) <= set(SIDES)

    def test_takes_its_scores_by_name_and_no_others(self) -> None:
        made = CombinedDetector.fit(make_readings(100))
        fresh = make_readings(20, seed=1)
        backwards = Readings(fresh.names[::-1], fresh.scores.flip(1), fresh.candidates)
        assert torch.equal(made.anomaly(backwards), made.anomaly(fresh))
        unread = make_readings(20, seed=1, max_logit=torch.full((20,), 1e9).double())
        assert torch.equal(made.anomaly(unread), made.anomaly(fresh))

    def test_fit_leaves_its_readings_alone(self) -> None:
        whole, again = make_readings(100), make_readings(100)
        CombinedDetector.fit(whole)
        assert whole.to_rows() == again.to_rows()

    @pytest.mark.parametrize(
        "function", [needs_fit, lambda name: fit_detector(name, make_readings(100))]
    )
    def test_unknown_detector_is_refused_with_the_known_ones(
        self, function: Callable[[str], object]
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"'mine'.*'combined', 'paper'"):
            function("mine")

    def test_unknown_score_is_refused(self) -> None:
        state = fit_detector("combined", make_readings(100)).state()
        with pytest.raises(ConfigurationError, match="entropy"):
            load_detector("paper", ("entropy",), {})
        with pytest.raises(ConfigurationError, match="max_logit"):  # it has no suspicious end
            load_detector("combined", ("max_logit",), state)

    @pytest.mark.parametrize("part", ["reference", "root", "consistency.mean", "consistency.trust"])
    def test_missing_state_is_refused(self, part: str) -> None:
        state = fit_detector("combined", make_readings(100)).state()
        del state[part]
        with pytest.raises(KeyError, match=part.removeprefix("consistency.")):
            load_detector("combined", COMBINED_SCORES, state)
