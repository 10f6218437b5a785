"""Candidates by hand, and the model of how clean images move."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lrpguard import Evidence
from lrpguard.consistency import (
    PRIOR_IMAGES,
    RANK_SOFTNESS,
    RANK_WEIGHT,
    SUPPORT_FLOOR,
    TRUST_FLOOR,
    TRUST_POWER,
    Candidates,
    ConsistencyModel,
    candidates,
)
from lrpguard.errors import ConfigurationError
from lrpguard.readings import SUPPORTS, VALUES
from lrpguard.views import VIEW_COUNT
from tests.support import make_candidates, make_evidence


def shares(logits: list[float]) -> list[float]:
    """Return the softmax of some logits."""
    terms = [math.exp(f) for f in logits]
    return [term / sum(terms) for term in terms]


class TestCandidates:
    def test_by_hand(self) -> None:
        mild = [[5.0, 2.0, 0.0], [4.0, 1.0, 3.0], [5.0, 1.0, 2.0], [0.0, 0.0, 0.0]]
        mild += [[6.0, 1.0, 1.0], [3.0, 3.0, 2.0]]
        covered = [1.0, 7.0, 0.0]
        strong = [[9.0, 0.0, 1.0], [0.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 5.0, 5.0]]
        evidence = make_evidence(
            logits=[[5.0, 1.0, 2.0]],
            noisy_logits=[[[4.0, 3.0, 0.0], [2.0, 5.0, 2.0]]],  # mean 3 4 1
            views=[[*mild, covered, *strong]],
        )
        found = candidates(evidence)
        assert found.label.tolist() == [0]
        assert found.classes.tolist() == [[1, 2]]
        # Class 1: gap 1 - 5; under noise 4 - 3 = 1, then 2 - 5, 1 - 4, 1 - 5, 0, 1 - 6, 0, covered
        # 7 - 1: less the gap. Class 2: gap 2 - 5; 1 - 3 = -2, then 0 - 5, 3 - 4, 2 - 5, 0, 1 - 6,
        # 2 - 3, covered 0 - 1: less the gap.
        assert found.values.tolist() == [
            [
                [-4.0, 5.0, 1.0, 1.0, 0.0, 4.0, -1.0, 4.0, 10.0],
                [-3.0, 1.0, -2.0, 2.0, 0.0, 3.0, -2.0, 2.0, 2.0],
            ]
        ]
        # Of classes 1 and 2 alone, on each of the four strong views.
        each = [shares(view[1:]) for view in strong]
        for z in (0, 1):
            wanted = [math.log(share[z] + 1e-4) for share in each]
            assert found.support[0, z].tolist() == pytest.approx(wanted)
        assert found.kept.tolist() == [[1.0, 0.0, 1.0, 0.0]]  # where class 0 is the largest
        assert found.values.dtype == found.support.dtype == found.kept.dtype == torch.float64

    def test_no_support_at_all_is_the_floor(self) -> None:
        views = [[9.0, 0.0, 999.0]] * VIEW_COUNT
        evidence = make_evidence(
            logits=[[9.0, 0.0, 0.0]], noisy_logits=[[[9.0, 0.0, 0.0]]], views=[views]
        )
        found = candidates(evidence)
        assert found.classes.tolist() == [[2, 1]]
        assert SUPPORT_FLOOR == 1e-4
        assert found.support[0, 0].tolist() == pytest.approx([math.log1p(1e-4)] * 4)
        assert found.support[0, 1].tolist() == pytest.approx([math.log(1e-4)] * 4)

    def test_kept_is_about_the_explained_class(self) -> None:
        strong = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]]
        evidence = make_evidence(
            logits=[[9.0, 0.0, 0.0]] * 3,
            noisy_logits=[[[9.0, 0.0, 0.0]]] * 3,
            views=[[*[[9.0, 0.0, 0.0]] * (VIEW_COUNT - 4), *strong]] * 3,
            label=[0, 1, 2],
        )
        assert candidates(evidence).kept.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]

    def test_of_two_classes_stand_in_the_order_of_their_mean_probability(self) -> None:
        # Class 1 has by far the larger mean logit, from one view; class 2 wins all the others.
        views = [[9.0, 99.0, 0.0], *[[9.0, 0.0, 2.0]] * (VIEW_COUNT - 1)]
        evidence = make_evidence(
            logits=[[9.0, 0.0, 0.0]], noisy_logits=[[[9.0, 0.0, 2.0]]], views=[views]
        )
        assert candidates(evidence).classes.tolist() == [[2, 1]]

    def test_never_hold_the_label_even_where_it_is_not_the_largest(self) -> None:
        options: dict[str, Any] = {
            "logits": [[1.0, 9.0, 2.0]],
            "noisy_logits": [[[1.0, 9.0, 2.0]]],
            "views": [[[1.0, 9.0, 2.0]] * VIEW_COUNT],
        }
        assert candidates(make_evidence(**options)).classes.tolist() == [[2, 0]]
        other = candidates(make_evidence(**options, label=[2]))
        assert other.classes.tolist() == [[1, 0]]
        assert other.values[0, :, 0].tolist() == [7.0, -1.0]

    @pytest.mark.parametrize(("classes", "count"), [(2, 1), (5, 4), (10, 9), (1000, 9)])
    def test_are_the_others_or_the_nearest_nine(self, classes: int, count: int) -> None:
        logits = torch.randn(3, 3 + VIEW_COUNT, classes, generator=torch.Generator().manual_seed(0))
        evidence = made_of(logits, copies=2)
        found = candidates(evidence)
        assert found.classes.shape == (3, count)
        assert found.values.shape == (3, count, VALUES)
        assert found.support.shape == (3, count, SUPPORTS)
        for i in range(3):
            label = int(logits[i, 0].argmax())
            moved = torch.cat([logits[i, 1:3].mean(0, keepdim=True), logits[i, 3:]]).double()
            moved[:, label] = -torch.inf
            order = moved.softmax(1).mean(0).argsort(descending=True)
            assert found.classes[i].tolist() == order[:count].tolist()
            support = moved[-4:].softmax(1)[:, order[:count]]
            torch.testing.assert_close(found.support[i], (support + 1e-4).log().T)
            kept = logits[i, -4:].argmax(1) == label
            assert found.kept[i].tolist() == kept.double().tolist()

    def test_of_a_request_alone_are_the_same_bit_for_bit(self) -> None:
        logits = torch.randn(9, 21 + VIEW_COUNT, 12, generator=torch.Generator().manual_seed(0))
        evidence = made_of(logits, copies=20)
        whole = candidates(evidence)
        model = ConsistencyModel.fit(whole)
        for i in range(9):
            alone = candidates(evidence.select(slice(i, i + 1)))
            for name, part in vars(alone).items():
                assert torch.equal(part[0], vars(whole)[name][i])
            assert torch.equal(model.scores(alone)[0], model.scores(whole)[i])
            assert torch.equal(model.support(alone)[0], model.support(whole)[i])

    def test_without_views_are_refused(self) -> None:
        evidence = make_evidence(logits=[[1.0, 0.0]], noisy_logits=[[[1.0, 0.0]]])
        with pytest.raises(ConfigurationError, match="views=True"):
            candidates(evidence)

    def test_select(self) -> None:
        whole = make_candidates(5)
        some = whole.select(torch.tensor([3, 1]))
        assert len(whole) == 5
        assert len(some) == 2
        for name, part in vars(some).items():
            assert torch.equal(part, vars(whole)[name][[3, 1]])


def made_of(logits: Tensor, *, copies: int) -> Evidence:
    """Return evidence of logits [B, 1 + N + V, K]: clean, copies, views."""
    return make_evidence(
        logits=logits[:, 0].tolist(),
        noisy_logits=logits[:, 1 : 1 + copies].tolist(),
        views=logits[:, 1 + copies :].tolist(),
    )


def with_values(found: Candidates, values: Tensor) -> Candidates:
    """Return the candidates with other values."""
    return dataclasses.replace(found, values=values)


def one_candidate(label: list[int], other: list[int], values: list[list[float]]) -> Candidates:
    """Return candidates, one a request, written out by hand."""
    table = torch.tensor(values, dtype=torch.float64)[:, None]
    return pairs(torch.tensor(label), torch.tensor(other), table)


def pairs(label: Tensor, other: Tensor, values: Tensor) -> Candidates:
    """Return one candidate a request, of full support, labels kept: labels [B], candidates [B]."""
    support = torch.zeros(len(label), 1, SUPPORTS, dtype=torch.float64)
    return Candidates(label, other[:, None], values, support, torch.ones_like(support[:, 0]))


class TestShrinkage:
    """Pair (0, 1) on three images, pair (0, 2) on one; two values each."""

    FOUND = one_candidate(
        [0, 0, 0, 0], [1, 1, 1, 2], [[-1.0, 2.0], [-2.0, 4.0], [-6.0, 0.0], [-7.0, -10.0]]
    )

    @pytest.fixture(scope="class")
    @staticmethod
    def model() -> ConsistencyModel:
        return ConsistencyModel.fit(TestShrinkage.FOUND)

    def test_pairs_are_those_seen(self, model: ConsistencyModel) -> None:
        assert model.pairs.tolist() == [1, 2]
        other = ConsistencyModel.fit(one_candidate([3, 1], [0, 2], [[0.0, 1.0], [1.0, 0.0]]))
        assert other.pairs.tolist() == [2**32 + 2, 3 * 2**32]

    def test_mean_is_drawn_to_that_of_all_as_by_ten_images(self, model: ConsistencyModel) -> None:
        assert PRIOR_IMAGES == 10
        assert model.base_mean.tolist() == [-4.0, -1.0]
        assert model.mean[0].tolist() == pytest.approx([(-9 - 40) / 13, (6 - 10) / 13])
        assert model.mean[1].tolist() == pytest.approx([(-7 - 40) / 11, (-10 - 10) / 11])

    def test_scale_is_drawn_to_that_of_all(self, model: ConsistencyModel) -> None:
        for value in (0, 1):
            seen = self.FOUND.values[:, 0, value].tolist()
            squares = [(v - model.mean[0, value].item()) ** 2 for v in seen[:3]]
            squares.append((seen[3] - model.mean[1, value].item()) ** 2)
            every = sum(squares) / 4
            wanted = [(sum(squares[:3]) + 10 * every) / 13, (squares[3] + 10 * every) / 11]
            assert model.scale[:, value].pow(2).tolist() == pytest.approx(wanted)
            assert model.base_scale[value].item() ** 2 == pytest.approx(every)

    def test_a_pair_never_seen_is_judged_as_all_are(self, model: ConsistencyModel) -> None:
        fresh = one_candidate([0, 4, 0], [7, 1, 1], [[-3.0, 5.0]] * 3)
        standard = (fresh.values[0, 0] - model.base_mean) / model.base_scale
        known = (fresh.values[0, 0] - model.mean[0]) / model.scale[0]
        assert bool((model.weights[1] != 0).any())
        for way in (0, 1):
            weights = model.weights[way]
            wanted = [(standard @ weights).item()] * 2 + [(known @ weights).item()]
            assert model.scores(fresh)[:, 0, way].tolist() == pytest.approx(wanted)

    def test_a_pair_seen_often_is_judged_by_itself(self) -> None:
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(4000, 1, 2, generator=generator, dtype=torch.float64)
        values[2000:] = 3 * values[2000:] + 7
        label = torch.arange(4000) // 2000
        model = ConsistencyModel.fit(pairs(label, label + 1, values))
        assert torch.allclose(model.mean, torch.tensor([[0.0], [7.0]]).double(), atol=0.25)
        assert torch.allclose(model.scale, torch.tensor([[1.0], [3.0]]).double(), rtol=0.1)


class TestWeights:
    def test_by_hand_without_correlation(self) -> None:
        # Gap, two shifts and that of covering, of unit scale, uncorrelated: the gap explains
        # nothing. The first two shifts make one score, the last the other.
        values = [[a, b, c, a * b * c] for a in (1.0, -1.0) for b in (1.0, -1.0) for c in (1.0, -1)]
        model = ConsistencyModel.fit(one_candidate([0] * 8, [1] * 8, values))
        half = math.sqrt(0.5)
        assert model.weights[0].tolist() == pytest.approx([0.0, half, half, 0.0])
        assert model.weights[1].tolist() == pytest.approx([0.0, 0.0, 0.0, 1.0])

    def test_a_view_counts_as_it_keeps_the_labels_of_clean_images(self) -> None:
        # A gap of -3 or -5; one shift of 1 keeps all labels, one of 6 half of them, covering all.
        corners = [(a, b, c) for a in (1.0, -1.0) for b in (1.0, -1.0) for c in (1.0, -1.0)]
        values = [[a - 4, b, 6 * c, a * b * c] for a, b, c in corners]
        model = ConsistencyModel.fit(one_candidate([0] * 8, [1] * 8, values))
        gap, sure, doubtful, covering = model.weights[0].tolist()
        assert (TRUST_POWER, TRUST_FLOOR) == (4, 0.01)
        assert doubtful / sure == pytest.approx((0.51 / 1.01) ** 4)
        assert (gap, covering) == pytest.approx((0.0, 0.0))
        assert math.hypot(sure, doubtful) == pytest.approx(1.0)

    def test_by_hand_with_a_gap_that_explains_some(self) -> None:
        # The shift is the gap's negative 3/5 and 4/5 of its own, covering the reverse.
        corners = [(a, b, c) for a in (1.0, -1.0) for b in (1.0, -1.0) for c in (1.0, -1.0)]
        values = [[a, -0.6 * a + 0.8 * b, -0.8 * a + 0.6 * c] for a, b, c in corners]
        model = ConsistencyModel.fit(one_candidate([0] * 8, [1] * 8, values))
        # What is left of the shift is 0.8 b, and shift + 0.6 gap has variance 0.64.
        assert model.weights[0].tolist() == pytest.approx([0.6 / 0.8, 1 / 0.8, 0.0])
        assert model.weights[1].tolist() == pytest.approx([0.8 / 0.6, 0.0, 1 / 0.6])

    @pytest.mark.parametrize("way", [0, 1])
    def test_what_the_gap_alone_explains_does_not_count(self, way: int) -> None:
        generator = torch.Generator().manual_seed(0)
        gap, own, other = torch.randn(3, 3000, generator=generator, dtype=torch.float64)
        moved, covered = -0.8 * gap + 0.6 * own, -0.8 * gap + 0.6 * other
        values = torch.stack([gap, moved, moved, covered], dim=1)
        found = pairs(torch.zeros(3000).long(), torch.ones(3000).long(), values[:, None])
        score = ConsistencyModel.fit(found).scores(found)[:, 0, way]
        assert torch.corrcoef(torch.stack([score, gap]))[0, 1].abs() < 0.02
        assert torch.corrcoef(torch.stack([score, (own, other)[way]]))[0, 1] > 0.99

    @pytest.mark.parametrize("classes", [2, 3, 10, 100])
    def test_give_the_fit_unit_variance(self, classes: int) -> None:
        found = make_candidates(300, classes=classes)
        model = ConsistencyModel.fit(found)
        variances = model.scores(found).pow(2).mean((0, 1)).tolist()
        assert variances == pytest.approx([1, 1], rel=1e-9)


class TestSupport:
    KEPT: ClassVar[list[list[float]]] = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 0, 1]]

    def test_trust_by_hand(self) -> None:
        # Of four clean images the views keep 4, 3, 0 and 2 labels.
        found = dataclasses.replace(make_candidates(4), kept=torch.tensor(self.KEPT).double())
        trust = ConsistencyModel.fit(found).trust
        assert (TRUST_POWER, TRUST_FLOOR) == (4, 0.01)
        each = [1.01**4, 0.76**4, 0.01**4, 0.51**4]
        assert trust.tolist() == pytest.approx([one / sum(each) for one in each])

    def test_is_the_trusted_mean_of_the_logarithms(self) -> None:
        found = make_candidates(7)
        model = dataclasses.replace(
            ConsistencyModel.fit(found), trust=torch.tensor([0.5, 0.25, 0.25, 0.0]).double()
        )
        wanted = [
            [0.5 * s[0] + 0.25 * s[1] + 0.25 * s[2] for s in one] for one in found.support.tolist()
        ]
        made = model.support(found)
        assert made.shape == found.classes.shape
        for mine, theirs in zip(made.tolist(), wanted, strict=True):
            assert mine == pytest.approx(theirs)

    def test_a_view_that_ruins_clean_images_has_no_say(self) -> None:
        kept = torch.ones(50, SUPPORTS).double()
        kept[:, 2] = 0
        model = ConsistencyModel.fit(dataclasses.replace(make_candidates(50), kept=kept))
        found = make_candidates(20, seed=1)
        support = found.support.clone()
        support[..., 2] = math.log(SUPPORT_FLOOR)  # as far down as it goes
        changed = dataclasses.replace(found, support=support)
        assert (model.support(changed) - model.support(found)).abs().max() < 1e-6

    def test_views_that_all_ruin_them_count_alike(self) -> None:
        none = dataclasses.replace(make_candidates(50), kept=torch.zeros(50, SUPPORTS).double())
        assert ConsistencyModel.fit(none).trust.tolist() == pytest.approx([0.25] * 4)


def gaussian_clean(n: int, classes: int, *, seed: int) -> Candidates:
    """Return clean candidates whose means and scales depend on the pair, shifts correlated."""
    found = make_candidates(n, classes=classes, seed=seed)
    values = found.values.clone()
    common = torch.randn(
        *values.shape[:2], 1, generator=torch.Generator().manual_seed(50 + seed)
    ).double()
    values[..., 1:] += 1.5 * common - 0.5 * values[..., :1]
    pair = (7 * found.label[:, None] + 3 * found.classes) % 5
    scale = 1 + pair[..., None].double()
    return with_values(found, scale * values - 2 * scale)


MOVED, COVERED = slice(1, VALUES - 1), slice(VALUES - 1, VALUES)
"""What makes the first score of a candidate, and what the second."""

WAYS = pytest.mark.parametrize(("way", "taken"), [(0, MOVED), (1, COVERED)])


class TestScores:
    @pytest.mark.parametrize("way", [0, 1])
    @pytest.mark.parametrize(("classes", "most"), [(2, 1.1), (10, 1.1), (1000, 1.3)])
    def test_are_about_standard_normal_on_fresh_clean_images(
        self, classes: int, most: float, way: int
    ) -> None:
        """With a thousand classes nearly every pair is new, and the fit knew its own too well.

        So the combined detector takes its reference from images left out of the fit.
        """
        model = ConsistencyModel.fit(gaussian_clean(3000, classes, seed=0))
        score = model.scores(gaussian_clean(3000, classes, seed=1))[..., way].flatten()
        assert score.mean().item() == pytest.approx(0, abs=0.1)  # 4 standard errors at K = 2
        assert 0.9 < score.std().item() < most
        if classes == 1000:
            return  # of scales from 1 to 5, which it cannot know: no normal law
        for level, quantile in ((0.95, 1.645), (0.05, -1.645)):
            assert score.quantile(level).item() == pytest.approx(quantile, abs=0.3)

    @WAYS
    @pytest.mark.parametrize("classes", [2, 10, 1000])
    def test_a_planted_shift_raises_one_score_of_its_candidate_and_no_other(
        self, classes: int, way: int, taken: slice
    ) -> None:
        model = ConsistencyModel.fit(gaussian_clean(2000, classes, seed=0))
        clean = gaussian_clean(40, classes, seed=1)
        count = clean.classes.shape[1]
        chosen = torch.arange(40) % count
        values = clean.values.clone()
        values[torch.arange(40), chosen, taken] += 60.0
        before = model.scores(clean)
        after = model.scores(with_values(clean, values))
        assert torch.equal(after[..., way].argmax(1), chosen)
        assert torch.equal(after[..., 1 - way], before[..., 1 - way])
        planted = torch.nn.functional.one_hot(chosen, count).bool()
        assert torch.equal(after[~planted], before[~planted])
        assert (after - before)[planted][:, way].min() > 3

    @WAYS
    def test_a_loss_lowers_them(self, way: int, taken: slice) -> None:
        model, clean = ConsistencyModel.fit(make_candidates(500)), make_candidates(20, seed=1)
        values = clean.values.clone()
        values[..., taken] -= 5.0
        lost = model.scores(with_values(clean, values))
        assert bool((lost < model.scores(clean) - 3)[..., way].all())

    def test_every_view_counts(self) -> None:
        model, clean = ConsistencyModel.fit(make_candidates(500)), make_candidates(5, seed=1)
        for view in range(1, VALUES):
            way = int(view == VALUES - 1)  # the last is covering
            values = clean.values.clone()
            values[..., view] += 1.0
            gained = model.scores(with_values(clean, values)) - model.scores(clean)
            assert bool((gained[..., way] > 0.2).all())
            assert bool((gained[..., 1 - way] == 0).all())

    def test_units_of_the_logits_cancel(self) -> None:
        fit, fresh = make_candidates(200), make_candidates(30, seed=1)

        def scaled(found: Candidates, factor: float) -> Candidates:
            return with_values(found, factor * found.values)

        wanted = ConsistencyModel.fit(fit).scores(fresh)
        for factor in (1e-4, 1e4):
            model = ConsistencyModel.fit(scaled(fit, factor))
            torch.testing.assert_close(model.scores(scaled(fresh, factor)), wanted)

    def test_values_that_never_vary_stay_finite(self) -> None:
        still = make_candidates(50, values=torch.full((50, 4, VALUES), 2.5).double())
        model = ConsistencyModel.fit(still)
        assert model.scores(still).abs().max() == 0
        moved = make_candidates(1, values=torch.full((1, 4, VALUES), 2.6).double())
        assert bool(torch.isfinite(model.scores(moved)).all())

    @pytest.mark.parametrize("silent", range(1, VALUES))
    def test_a_view_that_never_varies_is_as_if_left_out(self, silent: int) -> None:
        fit, fresh = make_candidates(300), make_candidates(40, seed=1)
        others = [view for view in range(VALUES) if view != silent]

        def still(found: Candidates) -> Candidates:
            values = found.values.clone()
            values[..., silent] = 0
            return with_values(found, values)

        def left_out(found: Candidates) -> Candidates:
            return with_values(found, found.values[..., others])

        scores = ConsistencyModel.fit(still(fit)).scores(still(fresh))
        if silent == VALUES - 1:  # covering, which makes a score of its own
            assert scores[..., 1].abs().max() == 0
            wanted = ConsistencyModel.fit(fit).scores(fresh)
            torch.testing.assert_close(scores[..., 0], wanted[..., 0])
        else:
            wanted = ConsistencyModel.fit(left_out(fit)).scores(left_out(fresh))
            torch.testing.assert_close(scores, wanted)

    def test_fit_leaves_its_candidates_alone(self) -> None:
        found, again = make_candidates(50), make_candidates(50)
        ConsistencyModel.fit(found)
        for name, part in vars(found).items():
            assert torch.equal(part, vars(again)[name])


class TestSuspicion:
    """The largest first score, each less the logarithm of the candidate's rank by the gap."""

    @staticmethod
    def by_hand(model: ConsistencyModel, found: Candidates) -> list[float]:
        scores = model.scores(found)[..., 0].tolist()
        gaps, unit = found.values[..., 0].tolist(), 0.1 * model.base_scale[0].item()
        every = []
        for row, gap in zip(scores, gaps, strict=True):
            ranks = [
                1 + sum(1 / (1 + math.exp((g - h) / unit)) for j, h in enumerate(gap) if j != i)
                for i, g in enumerate(gap)
            ]
            every.append(max(s - math.log(r) for s, r in zip(row, ranks, strict=True)))
        return every

    def test_by_hand(self) -> None:
        assert (RANK_WEIGHT, RANK_SOFTNESS) == (1.0, 0.1)
        model, fresh = ConsistencyModel.fit(make_candidates(300)), make_candidates(30, seed=1)
        wanted = self.by_hand(model, fresh)
        assert model.suspicion(fresh).tolist() == pytest.approx(wanted, rel=1e-12)

    def test_the_runner_up_counts_in_full_and_the_third_class_less(self) -> None:
        model = ConsistencyModel.fit(make_candidates(300))
        values = torch.zeros(2, 4, VALUES, dtype=torch.float64)
        values[..., 0] = torch.tensor([-1.0, -200.0, -300.0, -400.0])  # far apart: whole ranks
        values[0, 0, MOVED] += 500.0
        values[1, 1, MOVED] += 500.0
        found = make_candidates(2, values=values)
        scores = model.scores(found)[..., 0]
        wanted = [scores[0, 0].item(), scores[1, 1].item() - math.log(2)]
        assert model.suspicion(found).tolist() == pytest.approx(wanted)

    def test_does_not_jump_where_two_gaps_cross(self) -> None:
        model, fresh = ConsistencyModel.fit(make_candidates(300)), make_candidates(1, seed=1)
        values = fresh.values.repeat(201, 1, 1)
        values[:, 0, 0] = values[0, 1, 0] + torch.linspace(-0.01, 0.01, 201).double()
        found = make_candidates(201, values=values)
        found = dataclasses.replace(
            found, label=fresh.label.repeat(201), classes=fresh.classes.repeat(201, 1)
        )
        assert model.suspicion(found).diff().abs().max() < 0.02

    def test_a_class_far_behind_that_gains_most_is_still_seen(self) -> None:
        """A strong attack leaves its class anywhere; nine candidates cost it log 9 at most."""
        model, fresh = ConsistencyModel.fit(make_candidates(300)), make_candidates(20, seed=1)
        last = fresh.values[..., 0].argmin(1)
        values = fresh.values.clone()
        values[torch.arange(20), last, MOVED] += 50.0
        moved = with_values(fresh, values)
        lost = model.scores(moved)[..., 0].amax(1) - model.suspicion(moved)
        assert bool((lost <= math.log(fresh.classes.shape[1]) + 1e-9).all())

    def test_each_request_alone_is_the_same_bit_for_bit(self) -> None:
        model, fresh = ConsistencyModel.fit(make_candidates(300)), make_candidates(40, seed=1)
        alone = [model.suspicion(fresh.select(slice(i, i + 1))) for i in range(40)]
        assert torch.equal(model.suspicion(fresh), torch.cat(alone))


class TestState:
    def test_round_trip(self) -> None:
        model = ConsistencyModel.fit(make_candidates(100))
        again = ConsistencyModel.from_state(model.state())
        fresh = make_candidates(20, seed=1)
        assert torch.equal(again.scores(fresh), model.scores(fresh))
        assert torch.equal(again.support(fresh), model.support(fresh))
        assert list(again.state()) == list(model.state())
        assert all(torch.equal(again.state()[k], v) for k, v in model.state().items())

    @pytest.mark.parametrize("part", ["pairs", "mean", "scale", "base_mean", "weights", "trust"])
    def test_missing_part(self, part: str) -> None:
        state: dict[str, Tensor] = ConsistencyModel.fit(make_candidates(20)).state()
        del state[part]
        with pytest.raises(KeyError, match=part):
            ConsistencyModel.from_state(state)

    def test_classes_beyond_32_bits_of_float_do_not_collide(self) -> None:
        label = torch.tensor([2**20, 2**20, 2**20 + 1])
        other = torch.tensor([2**24 + 1, 2**24, 2**24])
        values = torch.zeros(3, 1, 2, dtype=torch.float64)
        assert len(ConsistencyModel.fit(pairs(label, other, values)).pairs) == 3
