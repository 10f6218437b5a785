"""Harms of other kinds, on the toy."""

from __future__ import annotations

import pytest

from lrpguard.redteam.beside import Harm, harms
from tests.attacks.adaptive.conftest import Toy
from tests.redteam.test_plan import target_of


def named(part: str, *, quick: bool = True) -> Harm:
    several = harms((6, 24), looks=True, quick=quick)
    (found,) = [harm for harm in several if part in harm.attack]
    return found


def test_alarms(toy: Toy) -> None:
    target = target_of(toy, 6)
    before, after, _ = named("false alarm by gradient").run(target)
    assert before[0] <= 1
    assert after == (6, 6)


def test_restoration_and_explanation(toy: Toy) -> None:
    target = target_of(toy, 6)
    before, after, _ = named("misled restoration").run(target)
    assert (before, after[1]) == ((0, 6), 6)
    assert after[0] >= 3
    before, after, more = named("heat map").run(target.first(3))
    assert before == (0, 3)
    assert more["likeness_after"] >= more["likeness_before"] - 0.05


def test_the_same_image_again_changes_nothing(toy: Toy) -> None:
    target = target_of(toy, 4)
    before, after, _ = named("the same image").run(target)
    assert before == after
    before, after, _ = named("one value changed").run(target)
    assert after[0] >= before[0]


def test_hop_skip_jump_is_for_those_who_have_time() -> None:
    assert not [
        harm for harm in harms((4,), looks=True, quick=True) if "HopSkipJump" in harm.attack
    ]
    assert named("HopSkipJump", quick=False).levels == 24


def test_hop_skip_jump_runs(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("art", reason="needs lrpguard[baselines]")
    monkeypatch.setattr("lrpguard.redteam.beside.HOPS", 1)
    monkeypatch.setattr("lrpguard.redteam.beside.ESTIMATES", 5)
    before, after, more = named("HopSkipJump", quick=False).run(target_of(toy, 1))
    assert before == (0, 1)
    assert after[1] == 1
    assert more["median_queries"] > 5


def test_early_stopping_is_delayed(toy: Toy) -> None:
    target = target_of(toy, 6)
    before, after, more = named("key known").run(target)
    assert after[0] >= before[0] + 2
    assert more["mean_copies_after"] > more["mean_copies_before"]
    assert not [harm for harm in harms((4,), looks=False, quick=True) if "delay" in harm.attack]
