"""The count of what the detectors flag, on the packaged digits model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lrpguard import Smoothing
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.evaluation.detection import (
    DetectionRow,
    as_record,
    detection_table,
    measure_detection,
)
from lrpguard.evaluation.labelled import labelled
from lrpguard.loading import Preprocessing, load_data


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[DetectionRow]:
    splits = load_digit_splits()
    images = np.concatenate([splits.calibration.images[:240], splits.test.images[:40]])
    labels = np.concatenate([splits.calibration.labels[:240], splits.test.labels[:40]])
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=images.astype(np.float32), labels=labels)
    every = labelled(load_data(path, preprocessing=Preprocessing(channels=1)), classes=10)
    clean, test = every.split([240, 40], seed=0)
    return measure_detection(
        load_digits_model(),
        clean,
        test,
        smoothing=Smoothing(n=6, sigma=0.1),
        strengths=(13, 51),
        alpha=0.1,
        steps=5,
        seed=0,
    )


def test_every_detector_at_every_strength(rows: list[DetectionRow]) -> None:
    found = [(row.eps, row.detector) for row in rows]
    assert found == [(eps, name) for eps in (0, 13, 51) for name in ("combined", "paper")]


def test_counts_fit_together(rows: list[DetectionRow]) -> None:
    for row in rows:
        assert row.attempts >= row.fooled >= row.flagged_fooled
        assert row.attempts >= row.flagged >= row.flagged_fooled
    assert {row.attempts for row in rows if row.eps == 0} == {40}
    attacked = {row.attempts for row in rows if row.eps}
    assert attacked == {40 - row.fooled for row in rows if row.eps == 0}  # those right before


def test_a_stronger_attack_fools_more(rows: list[DetectionRow]) -> None:
    weak, strong = (next(r for r in rows if r.eps == eps).fooled for eps in (13, 51))
    assert strong > weak
    assert strong >= 0.8 * rows[-1].attempts


def test_table_and_card(rows: list[DetectionRow], tmp_path: Path) -> None:
    table = detection_table(rows)
    assert table.count("\n") == 1 + len(rows)
    assert "| PGD 51/255 | combined | " in table
    card = json.loads(json.dumps(as_record(rows, model="digits")))
    assert card["rows"][0]["detector"] == "combined"


def test_shares_by_hand() -> None:
    row = DetectionRow("paper", 8, attempts=50, fooled=40, flagged_fooled=10, flagged=12)
    assert row.success.rate == pytest.approx(0.8)
    assert row.detected.rate == pytest.approx(0.25)
    assert row.flagged_share.rate == pytest.approx(0.24)
