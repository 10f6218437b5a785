"""The paper's experiment: threshold, attack, rows, resumption, card and page."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import quantize
from lrpguard.demo.digits import DigitsNet, DigitSplits, load_digit_splits, load_digits_model
from lrpguard.errors import CalibrationSizeError, ConfigurationError, LoadingError
from lrpguard.evaluation.labelled import Labelled
from lrpguard.evaluation.paper import (
    Outcome,
    Row,
    Settings,
    Splits,
    attack,
    card_table,
    choose_threshold,
    make_card,
    reproduction_page,
    run_header,
    run_paper,
    write_card,
)
from lrpguard.loading import Preprocessing
from lrpguard.loading.data import ArraySource
from lrpguard.rowlog import RowLog

SETTINGS = Settings(eps=0.25, steps=5, n=6, max_rounds=4, seed=3)
"""An attack strong enough for the digits, and little of everything."""

THRESHOLD, CONFORMAL, TEST = 5, 19, 10


@pytest.fixture(scope="module")
def digits() -> DigitSplits:
    return load_digit_splits()


@pytest.fixture(scope="module")
def model() -> DigitsNet:
    return load_digits_model()


def part(digits: DigitSplits, positions: Sequence[int]) -> Labelled:
    chosen = digits.test.subset(torch.tensor(list(positions)))
    source = ArraySource(
        chosen.images.numpy(),
        chosen.labels.numpy(),
        "digits",
        preprocessing=Preprocessing(channels=1),
    )
    labels = tuple(int(label) for label in chosen.labels)
    return Labelled(source, labels, tuple(range(len(labels))))


@pytest.fixture(scope="module")
def splits(digits: DigitSplits) -> Splits:
    first, second = THRESHOLD, THRESHOLD + CONFORMAL
    return Splits(
        threshold=part(digits, range(first)),
        conformal=part(digits, range(first, second)),
        test=part(digits, range(second, second + TEST)),
    )


@pytest.fixture(scope="module")
def outcome(model: DigitsNet, splits: Splits) -> Outcome:
    return run_paper(model, splits, settings=SETTINGS, rows=RowLog(None, {}))


def without_time(outcome: Outcome) -> list[Row]:
    return [replace(row, seconds=0.0) for rows in outcome.rows.values() for row in rows]


def a_row(label: int, clean: int, adversarial: int | None, score: float | None = None) -> Row:
    return Row("d", 0, "x", label, clean, 1.0, 1.0, adversarial, score)


class TestThreshold:
    def test_lies_midway_in_the_gap_that_separates(self) -> None:
        found = choose_threshold([1, 2], [4, 8])

        assert found.value == 3
        assert found.balanced_accuracy == 1

    def test_weighs_both_kinds_alike(self) -> None:
        # Plain accuracy would take 6.5 (8 of 9 right); balanced prefers 1.5: (1 + 7/8) / 2.
        found = choose_threshold([1], [2, 3, 4, 5, 6, 7, 8, 0.5])

        assert found.value == 1.5
        assert found.balanced_accuracy == pytest.approx((1 + 7 / 8) / 2)

    def test_takes_the_highest_of_equally_good_ones(self) -> None:
        # 1.5 gives (1 + 1/2) / 2 and 3.5 gives (1/2 + 1) / 2.
        found = choose_threshold([1, 3], [2, 4])

        assert found.value == 3.5
        assert found.balanced_accuracy == 0.75

    def test_does_not_turn_round_where_adversarial_scores_are_lower(self) -> None:
        found = choose_threshold([5, 6], [1, 2])

        assert found.balanced_accuracy < 0.5
        assert found.other_side == 3.5
        assert found.other_side_balanced_accuracy == 1

    @pytest.mark.parametrize(("clean", "adversarial"), [([], [1, 2]), ([1], []), ([1, 1], [1])])
    def test_needs_scores_of_both_kinds_that_differ(
        self, clean: list[float], adversarial: list[float]
    ) -> None:
        with pytest.raises(ConfigurationError, match="place no threshold"):
            choose_threshold(clean, adversarial)


class TestRow:
    def test_success_is_correct_before_and_wrong_after(self) -> None:
        assert a_row(1, 1, 2).successful
        assert not a_row(1, 1, 1).successful
        assert not a_row(1, 3, 2).successful
        assert a_row(1, 3, 2).misled
        assert not a_row(1, 1, None).misled

    def test_is_detected_above_the_threshold_only(self) -> None:
        assert a_row(1, 1, 2, 0.6).detected(0.5)
        assert not a_row(1, 1, 2, 0.5).detected(0.5)
        assert not a_row(1, 1, 2).detected(0.5)


class TestAttack:
    def image(self, digits: DigitSplits) -> tuple[Tensor, int]:
        return quantize(digits.test.images[40]), int(digits.test.labels[40])

    def test_stays_in_the_ball_and_on_the_8_bit_grid(
        self, model: DigitsNet, digits: DigitSplits
    ) -> None:
        image, label = self.image(digits)

        found = attack(model, image, label, settings=replace(SETTINGS, eps=10 / 255))

        assert float((found - image).abs().max()) <= 10 / 255 + 1e-6
        assert torch.equal(quantize(found), found)
        assert not torch.equal(found, image)

    def test_is_the_same_for_a_seed_and_another_for_another(
        self, model: DigitsNet, digits: DigitSplits
    ) -> None:
        image, label = self.image(digits)

        found = attack(model, image, label, settings=SETTINGS)

        assert torch.equal(found, attack(model, image, label, settings=SETTINGS))
        other = attack(model, image, label, settings=replace(SETTINGS, seed=4))
        assert not torch.equal(found, other)

    def test_stops_at_the_first_step_that_misleads(
        self, model: DigitsNet, digits: DigitSplits
    ) -> None:
        image, label = self.image(digits)
        many = replace(SETTINGS, steps=20)

        found = attack(model, image, label, settings=replace(many, stop_early=True))
        full = attack(model, image, label, settings=many)

        def margin(x: Tensor) -> float:
            with torch.no_grad():
                logits = model(x[None])[0]
            return float(logits.topk(2).values.diff().abs())

        with torch.no_grad():
            assert int(model(found[None]).argmax()) != label
        assert margin(found) < margin(full)


def test_counts_are_consistent(outcome: Outcome, model: nn.Module) -> None:
    card = card_of(outcome, model)
    detected = card["paper"]["detected_of_successful"]  # type: ignore[index]
    restored = card["restoration"]["restored_of_detected"]  # type: ignore[index]
    counts = [
        card["attack"]["attempted"],  # type: ignore[index]
        card["attack"]["misled_of_attempted"]["successes"],  # type: ignore[index]
        card["attack"]["successful_of_attempted"]["successes"],  # type: ignore[index]
        detected["successes"],
        restored["successes"],
    ]

    assert counts[0] == TEST
    assert counts[2] > 0
    assert all(more >= less for more, less in pairwise(counts))
    assert detected["n"] == counts[2]
    assert restored["n"] == counts[3]


def test_each_split_goes_only_through_its_own_steps(outcome: Outcome) -> None:
    assert [len(rows) for rows in outcome.rows.values()] == [THRESHOLD, CONFORMAL, TEST]
    assert all(row.adversarial_label is None for row in outcome.rows["conformal"])
    assert all(row.adversarial_score is not None for row in outcome.rows["threshold"])
    for row in outcome.rows["test"]:
        assert (row.adversarial_score is not None) == row.misled
        whitened = row.successful and row.detected(outcome.threshold.value)
        assert (row.restored_label is not None) == whitened
        assert (row.control_label is not None) == whitened


def test_what_is_detected_is_whitened_until_its_label_changes(
    model: DigitsNet, splits: Splits
) -> None:
    settings = replace(SETTINGS, max_rounds=30)  # 2 % of 64 pixels is one pixel a round
    outcome = run_paper(model, splits, settings=settings, rows=RowLog(None, {}))
    whitened = [row for row in outcome.rows["test"] if row.restored_label is not None]

    assert whitened
    for row in whitened:
        assert row.restored_label != row.adversarial_label
        assert row.restored_rounds is not None
        assert 1 <= row.restored_rounds <= 30


def test_an_interrupted_run_goes_on_where_it_stopped(
    model: DigitsNet, splits: Splits, outcome: Outcome, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    header = run_header(model, splits, SETTINGS)
    with RowLog(path, header) as log:
        run_paper(model, splits, settings=SETTINGS, rows=log)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + THRESHOLD + CONFORMAL + TEST
    kept = b"".join(lines[:-4])
    path.write_bytes(kept + lines[-4][:20])

    with RowLog(path, header) as log:
        again = run_paper(model, splits, settings=SETTINGS, rows=log)

    assert without_time(again) == without_time(outcome)
    assert again.threshold == outcome.threshold
    assert path.read_bytes().startswith(kept)


def test_a_run_with_other_settings_refuses_the_rows(
    model: DigitsNet, splits: Splits, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    RowLog(path, run_header(model, splits, SETTINGS)).close()

    for other in (
        run_header(model, splits, replace(SETTINGS, seed=9)),
        run_header(model, replace(splits, threshold=splits.test), SETTINGS),
    ):
        with pytest.raises(ConfigurationError, match="another run"):
            RowLog(path, other)


def test_splits_that_share_an_image_are_refused(model: DigitsNet, splits: Splits) -> None:
    shared = replace(splits, test=splits.threshold)

    with pytest.raises(ConfigurationError, match="is in the test and the threshold split"):
        run_paper(model, shared, settings=SETTINGS, rows=RowLog(None, {}))


def card_of(outcome: Outcome, model: nn.Module) -> dict[str, object]:
    return make_card(
        "digits",
        outcome,
        model=model,
        settings=SETTINGS,
        image_shape=(1, 8, 8),
        command="python run.py",
    )


def hand_made() -> Outcome:
    """Return 19 conformal images of scores 1 … 19, and a test set counted by hand."""
    conformal = tuple(Row(f"c{i}", i, "c", 0, 0, float(i), 1.0) for i in range(1, 20))
    test = (
        # Detected, restored; the control finds a third class. Clean above both thresholds.
        Row("a", 0, "a", 0, 0, 20.0, 0.5, 1, 30.0, 0.25, 0, 1, 2, 3),
        # Detected, never changed; the control restores.
        Row("b", 1, "b", 0, 0, 1.0, 1.0, 1, 12.0, 0.75, -1, 4, 0, 1),
        # Successful, not detected.
        Row("d", 2, "d", 0, 0, 2.0, 1.0, 1, 3.0, 1.0),
        # Misclassified before; above the threshold, but no success.
        Row("e", 3, "e", 0, 2, 3.0, 0.0, 1, 40.0, 1.0),
        # The attack failed.
        Row("f", 4, "f", 0, 0, 4.0, 1.0, 0),
    )
    threshold = choose_threshold([9, 10], [12, 14])
    return Outcome(threshold, {"threshold": (), "conformal": conformal, "test": test})


def test_card_counts_by_hand(model: DigitsNet) -> None:
    card = card_of(hand_made(), model)

    def count(group: str, name: str) -> tuple[int, int]:
        found = card[group][name]  # type: ignore[index]
        return found["successes"], found["n"]

    assert count("attack", "correct") == (4, 5)
    assert count("attack", "successful_of_attempted") == (3, 5)
    assert count("attack", "successful_of_correct") == (3, 4)
    assert count("attack", "misled_of_attempted") == (4, 5)
    assert count("paper", "detected_of_successful") == (2, 3)
    assert count("paper", "detected_of_misled") == (3, 4)
    assert count("paper", "false_positives") == (1, 5)
    assert count("restoration", "restored_of_detected") == (1, 2)
    assert count("restoration", "control_restored_of_detected") == (1, 2)
    assert count("restoration", "changed_of_detected") == (1, 2)
    assert count("restoration", "restored_of_successful") == (1, 3)
    # p <= 0.05 with n = 19: as large as the largest calibration score, 19, or larger.
    assert count("conformal", "detected_of_successful") == (1, 3)
    assert count("conformal", "false_positives") == (1, 5)
    # 15 pairs of adversarial (30, 12, 3) and clean (20, 1, 2, 3, 4): 5 + 4 + 2.5 are right.
    assert card["auroc"]["all_clean"] == pytest.approx(11.5 / 15)  # type: ignore[index]
    kept = card["copies_that_keep_their_label"]
    assert kept["clean"]["mean"] == pytest.approx(3.5 / 5)  # type: ignore[index]
    assert kept["adversarial"]["mean"] == pytest.approx(2 / 3)  # type: ignore[index]


def test_too_few_conformal_images_are_refused(model: DigitsNet) -> None:
    few = hand_made()
    few = Outcome(few.threshold, {**few.rows, "conformal": few.rows["conformal"][:18]})

    with pytest.raises(CalibrationSizeError, match="18 calibration images"):
        card_of(few, model)


def test_card_without_any_success_still_prints(model: DigitsNet) -> None:
    rows = hand_made().rows
    failed = tuple(Row(f"t{i}", i, "t", 0, 0, float(i), 1.0, 0) for i in range(3))
    card = card_of(Outcome(hand_made().threshold, {**rows, "test": failed}), model)

    assert card["auroc"]["all_clean"] is None  # type: ignore[index]
    assert "- (n = 0)" in card_table(card)


def test_page_prints_the_papers_row_beside_the_cards(model: DigitsNet, tmp_path: Path) -> None:
    card = card_of(hand_made(), model)
    write_card(card, tmp_path / "results" / "paper_digits.json")

    page = reproduction_page(tmp_path / "results")

    assert json.loads((tmp_path / "results" / "paper_digits.json").read_text()) == card
    assert "| 84.3 % (79.8-88.0), 253/300 | 60.0 % (23.1-88.2), 3/5 |" in page
    assert "| 54.5 % (48.4-60.6), 138/253 | 66.7 % (20.8-93.9), 2/3 |" in page
    assert "| 31.9 % (24.7-40.1), 44/138 | 50.0 % (9.5-90.5), 1/2 |" in page
    assert "    python run.py\n" in page
    assert "images above it is not distinguishable from that of clean ones" in page
    assert "| not stated | 20.0 % (3.6-62.4), 1/5 |" in page


def test_page_refuses_a_card_of_another_schema(tmp_path: Path) -> None:
    (tmp_path / "paper_old.json").write_text('{"schema": 0}')

    with pytest.raises(LoadingError, match="no card of schema"):
        reproduction_page(tmp_path)
