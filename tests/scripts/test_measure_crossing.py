"""Realised rates by hand, and the measurement in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lrpguard.readings import Readings
from lrpguard.scores import SCORES
from scripts import measure_crossing
from tests.support import make_candidates


def test_rates_by_hand() -> None:
    rate = measure_crossing.realised(torch.tensor([0, 5, 10, 200]), judged=400, calibrating=99)
    assert rate.mean == pytest.approx(215 / 1600)
    assert rate.low < 0.01 < 0.4 < rate.high
    assert rate.within == 0.5  # the exact band of 400 judged by 99 is 6 to 40 or so, 5 and 10 near


def random_readings(count: int) -> Readings:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(count, len(SCORES), generator=generator, dtype=torch.float64)
    return Readings(tuple(SCORES), scores, make_candidates(count, classes=10))


def test_both_ways_keep_the_rate_on_exchangeable_images() -> None:
    rows = measure_crossing.measure(random_readings(400), sizes=(60, 100), draws=8, judged=200)
    assert [(row["images"], row["way"]) for row in rows] == [
        (60, "crossed"),
        (100, "split"),
        (100, "crossed"),
    ]
    assert all(0.005 < row["mean"] < 0.1 for row in rows)


def test_a_checkpoint_gives_its_readings_a_card_and_a_page(tmp_path: Path) -> None:
    known = random_readings(140)
    lines = [json.dumps({"run": {"scores": list(SCORES)}})]
    lines += [json.dumps({"key": str(i), "scores": row}) for i, row in enumerate(known.to_rows())]
    scores = tmp_path / "build" / "run" / "scores.jsonl"
    scores.parent.mkdir(parents=True)
    scores.write_text("\n".join(lines) + "\n")
    found = measure_crossing.checkpoint_readings(scores)
    assert torch.equal(found.scores, known.scores)
    arguments = ["--name", "net", "--scores", str(scores), "--draws", "3", "--out", str(tmp_path)]
    measure_crossing.main(arguments)
    card = json.loads((tmp_path / "results" / "crossing_net.json").read_text())
    assert (card["images"], card["rows"][0]["images"], card["rows"][0]["judged"]) == (140, 60, 80)
    text = (tmp_path / "crossing.md").read_text()
    assert "--scores build/run/scores.jsonl" in text
    assert "| 60 | crossed | 3, 80 |" in text


def test_a_checkpoint_of_other_scores_is_refused(tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    scores.write_text(json.dumps({"run": {"scores": ["other"]}}) + "\n")
    with pytest.raises(SystemExit, match="other scores"):
        measure_crossing.checkpoint_readings(scores)
