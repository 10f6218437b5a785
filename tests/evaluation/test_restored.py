"""Restorations counted by hand: told, end to end, harm, and the paired difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lrpguard.evaluation.bootstrap import image_weights
from lrpguard.evaluation.outcomes import read_attacked, read_clean
from lrpguard.evaluation.restored import count_restored


def row(
    image: int,
    restored: int | None,
    *,
    predicted: int = 0,
    final: int | None = None,
    p: float = 0.5,
) -> dict[str, Any]:
    """Return a row of an image of class 0."""
    return {
        "digest": f"{image}",
        "label": 0,
        "model_label": predicted,
        "restored_label": predicted if final is None else final,
        "p_value": p,
        "score": 1 - p,
        "baselines": {},
        "restorations": {} if restored is None else {"other": restored},
    }


def hits(share: Mapping[str, Any]) -> tuple[int, int]:
    return share["successes"], share["n"]


def count(clean: list[dict[str, Any]], *attacks: list[dict[str, Any]]) -> dict[str, Any]:
    images = read_clean(clean)
    read = [
        read_attacked(f"a{i}", rows, images, adversarial=True) for i, rows in enumerate(attacks)
    ]
    return count_restored(images, read, image_weights(len(clean), seed=0))


CLEAN = [row(i, 1) for i in range(6)]


def test_by_hand() -> None:
    attack = [
        row(0, 0, predicted=2, p=0.01, final=0),  # both right
        row(1, 0, predicted=2, p=0.02, final=-1),  # the guard says unknown
        row(2, 0, predicted=2, p=0.9),  # not noticed: right when told alone
        row(3, 3, predicted=2, p=0.01, final=0),  # the guard alone is right
        row(4, 0, p=0.01),  # the attack failed: counts for nothing
    ]

    found = count(CLEAN, attack)

    assert hits(found["attacks"]["a0"]["other"]["told"]) == (3, 4)
    assert hits(found["attacks"]["a0"]["other"]["flagged"]) == (2, 4)
    assert hits(found["attacks"]["a0"]["guard"]["flagged"]) == (2, 4)
    suite = found["suite"]
    assert suite["other"]["told"]["value"] == pytest.approx(0.75)
    assert suite["other"]["guard_ahead"]["value"] == pytest.approx(0)
    assert suite["other"]["guard_ahead"]["low"] < 0 < suite["other"]["guard_ahead"]["high"]


def test_each_attack_counts_once_and_those_without_success_in_no_mean() -> None:
    first = [row(i, 0, predicted=2, p=0.01) for i in range(4)]
    second = [row(0, 1, predicted=2, p=0.01)]
    weak = [row(0, 1)]

    suite = count(CLEAN, first, second, weak)["suite"]

    assert suite["other"]["told"]["value"] == pytest.approx((1 + 0) / 2)
    assert suite["guard"]["flagged"]["value"] == 0
    assert suite["other"]["guard_ahead"]["value"] == pytest.approx(-0.5)


def test_harm_is_to_flagged_images_that_were_right() -> None:
    clean = [
        row(0, 1, p=0.01),  # flagged and right: lost
        row(1, 0, p=0.01, predicted=3),  # flagged and wrong before: nothing to lose
        row(2, 1, p=0.06),  # not flagged
        row(3, 0, p=0.05),  # flagged, and the label stays right
    ]
    assert hits(count(clean)["clean_harm"]["other"]) == (1, 4)


def test_nothing_is_counted_where_nothing_was_noted() -> None:
    assert count([row(0, None)], [row(0, None, predicted=1)]) == {}
