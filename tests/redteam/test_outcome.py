"""Counts of attempts, by hand."""

from __future__ import annotations

import math

import torch

from lrpguard.redteam.outcome import Judged, attack_counts, judge, rate, worst
from tests.attacks.adaptive.conftest import Toy


def judged(fooled: list[bool], p_value: list[float], right: list[bool]) -> Judged:
    p = torch.tensor(p_value, dtype=torch.float64)
    labels = torch.zeros(len(fooled), dtype=torch.int64)
    return Judged(torch.tensor(fooled), p, p <= 0.05, (~torch.tensor(right)).long(), labels)


ONE = judged([True, True, False, True], [0.5, 0.02, 0.9, 0.001], [False, True, True, True])
TWO = judged([False, True, False, False], [0.9, 0.2, 0.95, 0.9], [True, False, True, True])


def test_success_fools_the_model_and_passes_the_guard() -> None:
    assert attack_counts(ONE) == {
        "fooled": (3, 4),
        "restored": (2, 3),
        "flagged_1%": (1, 3),
        "sr_1%": (2, 4),
        "flagged_5%": (2, 3),
        "sr_5%": (1, 4),
    }


def test_worst_takes_of_each_image_the_attempt_that_passes_best() -> None:
    found = worst([ONE, TWO])
    assert found.fooled.tolist() == [True, True, False, True]
    assert found.p_value.tolist() == [0.5, 0.2, 0.95, 0.001]
    assert found.final.tolist() == [1, 1, 0, 0]
    assert attack_counts(found)["sr_5%"] == (2, 4)


def test_judgement_is_the_guards(toy: Toy) -> None:
    found = judge(toy.guard, toy.images, toy.labels)
    verdict = toy.guard(toy.images)
    assert not found.fooled.any()
    assert torch.equal(found.p_value, verdict.p_value)
    assert torch.equal(found.flagged, verdict.flagged)
    assert torch.equal(found.final, verdict.restored_label)


def test_a_share_of_nothing_is_not_a_number() -> None:
    assert rate({"sr_5%": (1, 4)}) == 0.25
    assert math.isnan(rate({"restored": (0, 0)}, "restored"))
