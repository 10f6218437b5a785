"""Each sign is seen where it is, and nowhere else."""

from __future__ import annotations

from typing import Any

from lrpguard.redteam.signs import signs


def row(sr: int, *, knows: str = "grey-box", levels: int = 8, **more: Any) -> dict[str, Any]:
    about = {"attack": "PGD", "knows": knows, "levels": levels, "steps": 30, "copies": 2}
    return about | {"sr_5%": (sr, 20), "sweep": None, "fell": True, "blind": 0.0} | more


def test_healthy_rows_have_none() -> None:
    rows = [
        row(10, levels=2),
        row(20),
        row(5, knows="static", attack="plain"),
        row(11, knows="transfer", levels=2),  # within chance of the best adaptive one
        row(8, levels=2, sweep="steps", steps=10),
        row(11, levels=2, sweep="steps", steps=100),
    ]
    assert signs(rows) == []


def test_blind_and_stuck_attacks() -> None:
    (blind,) = signs([row(5, blind=0.2)])
    assert "no gradient in 20% of the steps" in blind
    (stuck,) = signs([row(5, fell=False)])
    assert "did not fall" in stuck


def test_a_larger_change_that_does_worse() -> None:
    (found,) = signs([row(15, levels=2), row(5, levels=8)])
    assert "8/255 does worse than 2/255 (SR@5 0.25 against 0.75)" in found


def test_those_who_know_less_do_better() -> None:
    for knows in ("static", "black-box", "transfer"):
        (found,) = signs([row(5), row(15, knows=knows, attack="other")])
        assert f"{knows} attacks do better" in found
    assert signs([row(15, knows="white-box"), row(15, knows="static", attack="other")]) == []


def test_steps_that_still_help_and_steps_that_harm() -> None:
    few, many = row(5, sweep="steps", steps=10), row(15, sweep="steps", steps=100)
    (found,) = signs([few, many])
    assert "not converged" in found
    (found,) = signs([few, row(1, sweep="steps", steps=100)])
    assert "100 steps do worse than 10" in found
    assert signs([few, row(15), many]) == []  # the row of the plan stands between them


def test_ignored_scores() -> None:
    (found,) = signs([row(5)], ["relevance_roughness"])
    assert "ignore the scores relevance_roughness" in found
