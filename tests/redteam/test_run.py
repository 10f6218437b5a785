"""A run on the toy: the card, the budget, the errors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrpguard.attacks.adaptive import Trace
from lrpguard.errors import ConfigurationError, EvaluationError
from lrpguard.redteam import Settings, red_team, run
from lrpguard.redteam.plan import Entry
from lrpguard.redteam.run import WORST
from tests.attacks.adaptive.conftest import Toy
from tests.redteam.test_plan import target_of

ABOUT = {"model": "toy", "data": "bands", "command": "lrpguard attack"}


class Ticks:
    """A clock that goes on by so many seconds whenever it is looked at."""

    def __init__(self, seconds: float) -> None:
        self.now, self._seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self._seconds
        return self.now


def by_hand(toy: Toy, *, levels: int = 24, far: float = 0.0) -> Entry:
    def attack(target: Any, trace: Trace) -> tuple[Tensor, int | None]:
        return (toy.by_hand()[: len(target.images)] + far).clamp(0, 1), None

    return Entry(
        attack="by hand", knows="grey-box", levels=levels, steps=1, copies=0, cost=1.0, run=attack
    )


@pytest.fixture
def short(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the plan by two attacks, one of which is not there to be run."""
    monkeypatch.setattr(run, "plan", lambda *_, **__: iter([by_hand(toy), by_hand(toy)]))
    monkeypatch.setattr(run, "sweeps", lambda *_: iter([]))
    monkeypatch.setattr(run, "harms", lambda *_, **__: iter([]))
    return


@pytest.mark.usefixtures("short")
def test_the_card_counts_what_passed(toy: Toy) -> None:
    target = target_of(toy, 12)
    settings = Settings(levels=(24,), minutes=10)
    card = red_team(target, (toy.images, toy.labels), settings, about=ABOUT)
    verdict = toy.guard(toy.by_hand()[:12])
    through = int(((verdict.label != toy.labels[:12]) & ~verdict.flagged).sum())
    assert card["kind"] == "red_team"
    assert [row["attack"] for row in card["rows"]] == ["by hand", "by hand", WORST]
    assert all(row["sr_5%"] == (through, 12) for row in card["rows"])
    assert card["clean"]["flagged_5%"][1] == len(toy.images)
    assert card["clean_attacked"]["fooled"] == (0, 12)
    assert card["left_out"] == []
    json.dumps(card, allow_nan=False)


@pytest.mark.usefixtures("short")
def test_what_does_not_fit_the_budget_is_left_out(toy: Toy) -> None:
    settings = Settings(levels=(24,), minutes=1, clock=Ticks(20))
    card = red_team(target_of(toy, 4), (toy.images, toy.labels), settings, about=ABOUT)
    assert [row["attack"] for row in card["rows"]] == ["by hand", WORST]
    assert card["left_out"] == ["by hand, 24/255, 1 steps"]


def test_an_attack_outside_its_ball_is_refused(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    monkeypatch.setattr(run, "plan", lambda *_, **__: iter([by_hand(toy, levels=8)]))
    settings = Settings(levels=(8,), minutes=1)
    with pytest.raises(EvaluationError, match="8 are allowed"):
        red_team(target_of(toy, 2), (toy.images, toy.labels), settings, about=ABOUT)


def test_nothing_right_is_refused(toy: Toy) -> None:
    target = target_of(toy, 2)
    nothing = replace(target, images=target.images[:0], labels=target.labels[:0])
    with pytest.raises(EvaluationError, match="nothing to attack"):
        red_team(nothing, (toy.images, toy.labels), Settings(levels=(8,), minutes=1), about=ABOUT)


@pytest.mark.parametrize("wrong", [{"levels": ()}, {"levels": (0,)}, {"minutes": 0.0}])
def test_senseless_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Settings(**{"levels": (8,), "minutes": 1.0, **wrong})


def test_labels_and_device_are_the_images_own(toy: Toy) -> None:
    target = target_of(toy, 3)
    assert len(target.first(2).images) == len(target.first(2).labels) == 2
    assert torch.equal(target.first(None).images, target.images)
