"""Restoration by consensus: proposals by hand, the exchange of logits, and the bound on harm."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lrpguard.consensus import (
    ANOMALY_LIMIT,
    SUPPORT_WEIGHT,
    VOTE_LIMIT,
    VOTE_WEIGHT,
    Consensus,
    Proposal,
    propose,
    restored,
)
from lrpguard.consistency import SUPPORT_FLOOR, Candidates, ConsistencyModel
from lrpguard.detector import CombinedDetector
from lrpguard.errors import ConfigurationError, NotCalibratedError
from lrpguard.restoration import UNKNOWN
from tests.support import make_calibration, make_candidates, make_evidence, make_readings

UNIT = ConsistencyModel(
    pairs=torch.tensor([0]),
    mean=torch.zeros(1, 4).double(),
    scale=torch.ones(1, 4).double(),
    base_mean=torch.zeros(4).double(),
    base_scale=torch.ones(4).double(),
    weights=torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]).double(),
    trust=torch.tensor([0.75, 0.25]).double(),
    rank_weight=torch.zeros(1).double(),
)
"""The consistency is the sum of two shifts or, by covering, the third."""

QUIET = torch.zeros(1, dtype=torch.float64)
"""Anomaly of a request that is quite like clean data."""

PLAIN, PAINTED = torch.tensor([False]), torch.tensor([True])
"""One request without, and one with a suspiciously rough place."""


def by_hand(
    values: list[list[float]], classes: list[int], support: list[float] | None = None
) -> Candidates:
    """Return the candidates of one request of label 0; equal support where none is given.

    Args:
        values: Gap, two shifts, and that by covering, of each.
        classes: Which they are.
        support: Probabilities on both strong views.
    """
    shares = torch.tensor(support or [1 / len(classes)] * len(classes), dtype=torch.float64)
    return Candidates(
        label=torch.tensor([0]),
        classes=torch.tensor([classes]),
        values=torch.tensor([values], dtype=torch.float64),
        support=(shares + SUPPORT_FLOOR).log()[None, :, None].expand(1, -1, 2),
        kept=torch.ones(1, 2).double(),
    )


def votes(*views: list[float]) -> list[float]:
    """Return the mean shares of label and candidates, of logits on each view, the label's 0."""
    terms = [[math.exp(logit) for logit in (0.0, *view)] for view in views]
    parts = [[term / sum(view) for term in view] for view in terms]
    return [sum(part) / len(parts) for part in zip(*parts, strict=True)]


class TestPropose:
    def test_by_hand(self) -> None:
        # Candidate 7: gap -2, shifts 3, 1 and 0, so it leads by 1 on one view, and is 1 and 2
        # behind on the others. Candidate 4: gap -1, shifts 0, 1.5, 2: -1, 0.5, 1.
        found = by_hand([[-2.0, 3.0, 1.0, 0.0], [-1.0, 0.0, 1.5, 2.0]], [7, 4])
        proposal = propose(found, UNIT, QUIET + 6, PLAIN)
        share = votes([1.0, -1.0], [-1.0, 0.5], [-2.0, 1.0])
        # The consistency of 7 is 4, that of 4 is 1.5.
        assert proposal.label.tolist() == [7]
        assert proposal.confidence.item() == pytest.approx(share[1])
        assert proposal.evidence.item() == pytest.approx(
            4 + 0.5 * math.log(share[1] / share[0]) + 6 / 2
        )
        assert (SUPPORT_WEIGHT, SUPPORT_FLOOR, VOTE_WEIGHT, VOTE_LIMIT) == (0.5, 1e-4, 0.5, 4.0)
        assert ANOMALY_LIMIT == 4.0

    def test_covering_counts_where_a_place_is_painted(self) -> None:
        # By noise and views 7 has 4, and 4 has 1.5; by covering 7 has 0, and 4 has 5.
        found = by_hand([[-2.0, 3.0, 1.0, 0.0], [-1.0, 0.0, 1.5, 5.0]], [7, 4])
        share = votes([1.0, -1.0], [-1.0, 0.5], [-2.0, 4.0])
        plain, painted = (propose(found, UNIT, QUIET, place) for place in (PLAIN, PAINTED))
        assert plain.label.tolist() == [7]
        assert plain.evidence.item() == pytest.approx(4 + 0.5 * math.log(share[1] / share[0]))
        assert painted.label.tolist() == [4]
        assert painted.evidence.item() == pytest.approx(5 + 0.5 * math.log(share[2] / share[0]))
        assert painted.confidence.item() == pytest.approx(share[2])

    def test_a_painted_place_whose_covering_says_less_changes_nothing(self) -> None:
        # The larger counts: 4 against 3.9 for candidate 7, 1.5 against 1 for candidate 4.
        found = by_hand([[-2.0, 3.0, 1.0, 3.9], [-1.0, 0.0, 1.5, 1.0]], [7, 4])
        plain, painted = (propose(found, UNIT, QUIET, place) for place in (PLAIN, PAINTED))
        for name, part in vars(plain).items():
            assert torch.equal(part, vars(painted)[name])

    def test_each_request_has_a_place_of_its_own(self) -> None:
        one = by_hand([[-2.0, 3.0, 1.0, 0.0], [-1.0, 0.0, 1.5, 5.0]], [7, 4])
        parts = {name: torch.cat([part, part, part]) for name, part in vars(one).items()}
        proposal = propose(
            Candidates(**parts), UNIT, QUIET.expand(3), torch.tensor([True, False, True])
        )
        assert proposal.label.tolist() == [4, 7, 4]

    def test_strong_views_decide_between_candidates_of_like_consistency(self) -> None:
        # 7 is ahead by 1; 4 has log(0.9 / 0.1) / 2 = 1.0986 for it, or log(0.8 / 0.2) / 2 = 0.69.
        values = [[-2.0, 2.0, 2.0, 0.0], [-2.0, 1.5, 1.5, 0.0]]
        for support, label in (([0.1, 0.9], 4), ([0.2, 0.8], 7)):
            found = by_hand(values, [7, 4], support)
            assert propose(found, UNIT, QUIET, PLAIN).label.tolist() == [label]

    def test_strong_views_count_as_they_are_trusted(self) -> None:
        # 7 is ahead by 0.5. One view speaks for 4 by log(4), the other against it: of trust 3/4
        # and 1/4 half is left, so 0.69 / 2 = 0.35 is too little, and 0.69 is not.
        values = [[-2.0, 2.0, 0.5, 0.0], [-2.0, 2.0, 0.0, 0.0]]
        found = by_hand(values, [7, 4], [0.5, 0.5])
        for odds, label in ((4.0, 7), (16.0, 4)):
            way = torch.tensor([[0.0, 0.0], [math.log(odds), -math.log(odds)]]).double()
            divided = dataclasses.replace(found, support=found.support + way)
            assert propose(divided, UNIT, QUIET, PLAIN).label.tolist() == [label]

    def test_no_support_at_all_costs_no_more_than_the_floor(self) -> None:
        # log((1 + 1e-4) / 1e-4) / 2 = 4.605.
        for ahead, label in ((4.5, 4), (4.7, 7)):
            values = [[-2.0, ahead, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]]
            found = by_hand(values, [7, 4], [0.0, 1.0])
            assert propose(found, UNIT, QUIET, PLAIN).label.tolist() == [label]

    def test_support_and_anomaly_choose_no_more_than_they_say(self) -> None:
        # Support is for the choice alone, the anomaly for the evidence alone.
        values = [[-2.0, 3.0, 1.0, 0.0], [-1.0, 0.0, 1.5, 0.0]]
        plain = propose(by_hand(values, [7, 4]), UNIT, QUIET, PLAIN)
        other = propose(by_hand(values, [7, 4], [0.9, 0.1]), UNIT, QUIET, PLAIN)
        unlike = propose(by_hand(values, [7, 4]), UNIT, QUIET + 5, PLAIN)
        assert plain.evidence.item() == other.evidence.item()
        assert unlike.label.tolist() == plain.label.tolist()
        assert unlike.evidence.item() == plain.evidence.item() + 2.5

    def test_an_anomaly_beyond_its_limit_is_no_more_evidence_for_another_label(self) -> None:
        found = by_hand([[-2.0, 3.0, 1.0, 0.0], [-1.0, 0.0, 1.5, 0.0]], [7, 4])
        plain, unlike, more = (
            propose(found, UNIT, QUIET + anomaly, PLAIN).evidence.item()
            for anomaly in (0.0, 2 * ANOMALY_LIMIT, 1000.0)
        )
        assert unlike == more == plain + ANOMALY_LIMIT

    @pytest.mark.parametrize(("gap", "vote"), [(-1000.0, -4.0), (1000.0, 4.0), (0.0, 0.0)])
    def test_votes_are_held_within_their_limit(self, gap: float, vote: float) -> None:
        proposal = propose(by_hand([[gap, 0.0, 0.0, 0.0]], [3]), UNIT, QUIET, PLAIN)
        assert proposal.evidence.item() == pytest.approx(VOTE_WEIGHT * vote)

    def test_confidence_is_a_share(self) -> None:
        found = make_candidates(200)
        model, anomaly = ConsistencyModel.fit(found), torch.rand(200).double()
        proposal = propose(found, model, anomaly, torch.arange(200) % 2 == 0)
        assert bool(((proposal.confidence >= 0) & (proposal.confidence <= 1)).all())
        assert proposal.evidence.dtype == proposal.confidence.dtype == torch.float64
        assert bool((proposal.label != found.label).all())
        assert bool((proposal.label[:, None] == found.classes).any(1).all())

    def test_each_request_alone_bit_for_bit(self) -> None:
        found = make_candidates(33, classes=12)
        model = ConsistencyModel.fit(found)
        anomaly = 9 * torch.rand(33, dtype=torch.float64)
        painted = torch.arange(33) % 3 == 0
        whole = propose(found, model, anomaly, painted)
        for i in range(33):
            rows = slice(i, i + 1)
            alone = propose(found.select(rows), model, anomaly[rows], painted[rows])
            for name, part in vars(alone).items():
                assert torch.equal(part, vars(whole)[name][i : i + 1])


def proposal_of(label: list[int], confidence: float = 0.75) -> Proposal:
    n = len(label)
    return Proposal(torch.tensor(label), torch.zeros(n), torch.full((n,), confidence).double())


class TestRestored:
    LOGITS: ClassVar[list[list[float]]] = [[5.0, 1.0, 2.0, 3.0], [0.0, 4.0, 9.0, 1.0]]

    def outcome(self, accepted: list[bool]) -> Any:
        evidence = make_evidence(logits=self.LOGITS, noisy_logits=[[[0.0] * 4]] * 2)
        return restored(proposal_of([1, 0]), torch.tensor(accepted), evidence)

    def test_exchanges_two_logits_and_no_others(self) -> None:
        found = self.outcome([True, True])
        assert found.logits.tolist() == [[1.0, 5.0, 2.0, 3.0], [9.0, 4.0, 0.0, 1.0]]

    def test_restored_label_is_the_largest_logit(self) -> None:
        found = self.outcome([True, True])
        assert found.label.tolist() == found.logits.argmax(1).tolist() == [1, 0]
        assert found.confidence.tolist() == [0.75, 0.75]
        assert found.confidence.dtype == torch.float32

    def test_what_is_not_accepted_is_unknown(self) -> None:
        found = self.outcome([False, True])
        assert found.label.tolist() == [UNKNOWN, 0]
        assert found.confidence.tolist() == [0.0, 0.75]

    def test_changes_no_pixels_and_takes_no_rounds(self) -> None:
        found = self.outcome([True, False])
        assert found.changed_pixels.shape == (2, 2, 2)
        assert not bool(found.changed_pixels.any())
        assert found.rounds.tolist() == [0, 0]

    def test_leaves_the_evidence_alone(self) -> None:
        evidence = make_evidence(logits=self.LOGITS, noisy_logits=[[[0.0] * 4]] * 2)
        restored(proposal_of([1, 0]), torch.tensor([True, True]), evidence)
        assert evidence.logits.tolist() == self.LOGITS

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_logits_keep_their_type(self, dtype: torch.dtype) -> None:
        evidence = make_evidence(logits=self.LOGITS, noisy_logits=[[[0.0] * 4]] * 2)
        half = type(evidence)(**vars(evidence) | {"logits": evidence.logits.to(dtype)})
        assert restored(proposal_of([1, 0]), torch.tensor([True, True]), half).logits.dtype == dtype


class TestHarm:
    @pytest.mark.parametrize("harm", [0.0, 1.0, -0.1, 1.5, math.nan])
    def test_out_of_range(self, harm: float) -> None:
        with pytest.raises(ConfigurationError, match=r"harm is .*\(0, 1\)"):
            Consensus(harm=harm)

    def test_default(self) -> None:
        assert Consensus() == Consensus(harm=0.01)

    @pytest.mark.parametrize("classes", [3, 10, 200])
    def test_no_more_clean_labels_are_replaced_than_allowed(self, classes: int) -> None:
        """Over many calibrations, as the conformal bound says: P(p <= harm) <= harm."""
        n, fresh, trials = 199, 200, 25
        harms = torch.tensor([0.005, 0.05, 0.2], dtype=torch.float64)
        replaced = torch.zeros(3)
        for trial in range(trials):
            whole = make_readings(200 + n + fresh, seed=trial)
            found = make_candidates(len(whole), classes=classes, seed=trial)
            whole = dataclasses.replace(whole, candidates=found)
            detector = CombinedDetector.fit(whole.select(slice(200)))
            anomaly = detector.anomaly(whole)
            painted = detector.painted(whole)
            evidence = propose(found, detector.consistency, anomaly, painted).evidence[200:]
            calibration = make_calibration([0.0] * n, detector=detector, proposals=evidence[:n])
            p_values = calibration.replacement_p_values(evidence[n:])
            replaced += (p_values[:, None] <= harms).sum(0)
        total = trials * fresh
        # The requests of a trial share a calibration, whose realised rate follows a beta law.
        spread = 1 + (fresh - 1) / (n + 2)
        slack = 4 * (total * harms * (1 - harms) * spread).sqrt()
        assert bool(((replaced - total * harms).abs() <= slack).all())


class TestReplacementPValues:
    def test_formula_with_ties(self) -> None:
        calibration = make_calibration(
            [0.0] * 9, proposals=torch.tensor([3.0, 1.0, 1.0, 2.0, 5.0, 4.0, 0.0, 0.0, 6.0])
        )
        asked = torch.tensor([-1.0, 0.0, 1.0, 4.5, 6.0, 7.0]).double()
        wanted = [10 / 10, 10 / 10, 8 / 10, 3 / 10, 2 / 10, 1 / 10]
        assert calibration.replacement_p_values(asked).tolist() == wanted

    def test_without_candidates_is_refused(self) -> None:
        calibration = make_calibration([0.0] * 9)
        with pytest.raises(NotCalibratedError, match=r"'paper'.*Whitening\(\)"):
            calibration.replacement_p_values(torch.zeros(1))

    def test_detector_is_not_what_it_is_compared_with(self) -> None:
        detector = CombinedDetector.fit(make_readings(60))
        proposals: Tensor = torch.arange(20.0)
        calibration = make_calibration([100.0] * 20, detector=detector, proposals=proposals)
        assert calibration.replacement_p_values(torch.tensor([19.5])).item() == 1 / 21
        assert calibration.p_values(torch.tensor([19.5])).item() == 1.0
