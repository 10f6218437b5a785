"""Every figure of a run, on rows written by hand; a summary that would hide a cheat fails here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lrpguard.errors import EvaluationError
from lrpguard.evaluation.outcomes import Attacked, Clean, read_attacked, read_clean
from lrpguard.evaluation.summary import fpr_band, summarize


def row(
    image: int,
    *,
    label: int = 0,
    predicted: int = 0,
    final: int | None = None,
    p: float = 0.5,
    other: float = 0.5,
) -> dict[str, Any]:
    """Return a row of image ``image``; scores fall as p-values rise."""
    return {
        "digest": f"{image}",
        "label": label,
        "model_label": predicted,
        "restored_label": predicted if final is None else final,
        "p_value": p,
        "score": 1 - p,
        "baselines": {"other": {"p_value": other, "score": 1 - other}},
    }


def clean_of(*rows: Mapping[str, Any]) -> Clean:
    return read_clean(rows)


def attack_of(name: str, clean: Clean, *rows: Mapping[str, Any]) -> Attacked:
    return read_attacked(name, rows, clean, adversarial=True)


def count(clean: Clean, *attacks: Attacked, controls: tuple[Attacked, ...] = ()) -> dict[str, Any]:
    return summarize(clean, attacks, controls, calibration_n={"guard": 199, "other": 199}, seed=0)


def hits(share: Mapping[str, Any]) -> tuple[int, int]:
    return share["successes"], share["n"]


@pytest.fixture
def clean() -> Clean:
    """Five images, the last of which is misclassified."""
    return clean_of(
        row(0, p=0.9),
        row(1, p=0.02, final=0),
        row(2, p=0.03, final=3),
        row(3, p=0.01, final=-1),
        row(4, predicted=1, p=0.5),
    )


def test_clean_images_harm_and_false_positives(clean: Clean) -> None:
    found = count(clean)["clean"]

    assert hits(found["accuracy"]) == (4, 5)
    assert hits(found["accuracy_guarded"]) == (2, 5)
    assert hits(found["harm_wrong"]) == (1, 5)
    assert hits(found["harm_unknown"]) == (1, 5)
    assert hits(found["fpr"]["guard"]["5"]) == (3, 5)
    assert hits(found["fpr"]["guard"]["1"]) == (1, 5)
    assert hits(found["fpr"]["other"]["5"]) == (0, 5)


def test_an_attack_by_hand(clean: Clean) -> None:
    attack = attack_of(
        "a",
        clean,
        row(0, predicted=2, p=0.01, final=0),  # fooled, flagged at both, restored
        row(1, predicted=2, p=0.04, final=-1),  # fooled, flagged at 5 %, unknown
        row(2, predicted=2, p=0.30),  # fooled, passes
        row(3, p=0.02, final=1),  # not fooled, flagged, made wrong
    )

    found = count(clean, attack)["attacks"]["a"]

    assert hits(found["success"]) == (3, 4)
    assert hits(found["restored_of_success"]) == (1, 3)
    assert hits(found["unknown_of_success"]) == (1, 3)
    assert hits(found["accuracy_guarded"]) == (1, 4)
    at_5, at_1 = found["detectors"]["guard"]["5"], found["detectors"]["guard"]["1"]
    assert hits(at_5["tpr"]) == (2, 3)
    assert hits(at_5["tpr_attempts"]) == (3, 4)
    assert hits(at_5["sr"]) == (1, 4)
    assert hits(at_1["tpr"]) == (1, 3)
    assert hits(at_1["sr"]) == (2, 4)
    # Scores .99 .96 .70 against .10 .98 .97 .99 .50: 4.5, 2 and 2 of 5 below, ties half.
    assert found["detectors"]["guard"]["auroc"]["value"] == pytest.approx(8.5 / 15)
    assert found["detectors"]["guard"]["auroc"]["n"] == 3


def test_the_attacker_picks_the_worst_attack_for_each_image(clean: Clean) -> None:
    first = attack_of(
        "first", clean, row(0, predicted=1, p=0.01, final=0), row(1, predicted=1, p=0.01, final=0)
    )
    second = attack_of("second", clean, row(0, predicted=1, p=0.6), row(1, p=0.9))

    found = count(clean, first, second)

    worst = found["per_sample"]
    assert hits(worst["success"]) == (2, 2)
    assert hits(worst["detectors"]["guard"]["5"]["tpr"]) == (1, 2)
    assert hits(worst["detectors"]["guard"]["5"]["sr"]) == (1, 2)
    assert hits(worst["restored_of_success"]) == (1, 2)
    suite = found["suite"]["detectors"]["guard"]["5"]
    assert suite["mean_tpr"]["value"] == pytest.approx((1 + 0) / 2)
    assert suite["worst"]["attack"] == "second"
    assert hits(suite["worst"]) == (0, 1)


def test_a_detector_that_flags_everything_is_shown_for_what_it_is() -> None:
    clean = clean_of(*(row(i, other=0.001) for i in range(60)))
    attack = attack_of("a", clean, *(row(i, predicted=1, other=0.001) for i in range(60)))

    found = count(clean, attack)

    cheat = found["attacks"]["a"]["detectors"]["other"]
    assert hits(cheat["5"]["tpr"]) == (60, 60)
    assert cheat["auroc"]["value"] == 0.5
    fpr = found["clean"]["fpr"]["other"]["5"]
    assert hits(fpr) == (60, 60)
    assert fpr["band"][1] < 0.15


def test_paired_difference_has_the_right_sign_and_is_0_for_equals() -> None:
    clean = clean_of(*(row(i) for i in range(40)))
    ahead = attack_of("a", clean, *(row(i, predicted=1, p=0.01, other=0.5) for i in range(40)))
    equal = attack_of("a", clean, *(row(i, predicted=1, p=0.01, other=0.01) for i in range(40)))

    first, second = (
        count(clean, attack)["suite"]["guard_ahead_of"]["other"] for attack in (ahead, equal)
    )

    assert first["5"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert second["5"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert second["auroc"]["value"] == pytest.approx(0)


def test_a_detector_is_averaged_over_the_attacks_that_it_did_not_see() -> None:
    clean = clean_of(*(row(i) for i in range(40)))
    seen = attack_of("a", clean, *(row(i, predicted=1, p=0.5, other=0.01) for i in range(40)))
    unseen = attack_of(
        "b", clean, *(row(i, predicted=1, p=0.01, other=0.01 if i < 10 else 0.5) for i in range(40))
    )
    weak = attack_of("weak", clean, row(0))

    found = summarize(
        clean,
        (seen, unseen, weak),
        (),
        calibration_n={"guard": 199, "other": 199},
        seed=0,
        seen={"other": ["a"]},
    )["unseen"]["other"]

    assert found["attacks"] == ["b"]
    assert found["5"]["mean_tpr"]["value"] == 0.25
    assert found["5"]["guard_mean_tpr"]["value"] == 1
    assert found["5"]["guard_ahead"]["value"] == 0.75
    assert found["5"]["worst"]["attack"] == "b"
    assert count(clean, seen)["unseen"] == {}


def test_an_attack_without_success_counts_in_no_mean(clean: Clean) -> None:
    weak = attack_of("weak", clean, row(0), row(1))
    strong = attack_of("strong", clean, row(0, predicted=1, p=0.01))

    found = count(clean, weak, strong)["suite"]

    assert found["without_success"] == ["weak"]
    assert found["detectors"]["guard"]["5"]["mean_tpr"]["value"] == 1


def test_controls_are_counted_on_all_images(clean: Clean) -> None:
    rows = [
        row(0),
        row(1, p=0.04, final=3),
        row(2, p=0.01, final=-1),
        row(4, predicted=1, p=0.04, final=0),
    ]
    control = read_attacked("noise", rows, clean, adversarial=False)

    found = count(clean, controls=(control,))["controls"]["noise"]

    assert hits(found["accuracy"]) == (3, 4)
    assert hits(found["accuracy_guarded"]) == (2, 4)
    assert hits(found["harm_wrong"]) == (1, 4)
    assert hits(found["harm_unknown"]) == (1, 4)
    assert hits(found["flagged"]["guard"]["5"]) == (3, 4)


def test_images_that_were_wrong_before_are_no_success(clean: Clean) -> None:
    with pytest.raises(EvaluationError, match="1 images were misclassified before"):
        attack_of("a", clean, row(4, predicted=1))


def test_rows_that_do_not_belong_are_refused(clean: Clean) -> None:
    with pytest.raises(EvaluationError, match="was not judged"):
        attack_of("a", clean, row(9))
    with pytest.raises(EvaluationError, match="another class"):
        attack_of("a", clean, row(0, label=3))
    with pytest.raises(EvaluationError, match="one each"):
        clean_of(row(0), row(0))


def test_the_band_holds_in_simulation() -> None:
    generator = np.random.default_rng(0)
    low, high = fpr_band(99, 200, 0.05)

    inside = 0
    for _ in range(400):
        calibration, test = generator.normal(size=99), generator.normal(size=200)
        p = (1 + (calibration[None] >= test[:, None]).sum(1)) / 100
        inside += low <= (p <= 0.05).mean() <= high

    assert 0.92 <= inside / 400 <= 0.99


def test_no_band_where_nothing_can_be_flagged() -> None:
    assert fpr_band(50, 100, 0.01) == [0.0, 0.0]
