"""Divisions and page of the measurement of early stopping; the digits themselves take a minute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lrpguard.demo.digits import load_digit_splits
from lrpguard.scores import SCORES
from lrpguard.stopping import Looks
from scripts import measure_stopping

LOOKS = Looks()


def test_divisions_keep_the_rate_and_leave_out_attacks_on_calibrating_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    origin = torch.arange(50)
    found = measure_stopping.divided(
        LOOKS,
        {"clean": (clean, torch.arange(300)), "far": (clean[:50] + 100, origin)},
        calibrate=150,
        divisions=200,
    )
    mean, low, high = found["clean"]["early"]
    assert 0.03 <= mean <= 0.05 + 0.01
    assert low < mean < high
    assert found["far"]["early"] == [1.0, 1.0, 1.0]
    assert found["far"]["mean_copies"][0] == 5.0
    assert found["clean"]["mean_copies"][0] <= LOOKS.most_copies


def test_subject_has_successful_attacks_on_judged_images() -> None:
    pytest.importorskip("sklearn")
    splits = load_digit_splits()
    subject = measure_stopping.digits(limit=40)
    assert len(subject.clean) == subject.calibrate + 40
    for moved, origin in subject.attacked.values():
        assert len(moved) == len(origin) > 0
        assert bool((origin >= subject.calibrate).all())
        labels = splits.test.labels[origin - subject.calibrate]
        with torch.no_grad():
            assert bool((subject.model(subject.clean[origin]).argmax(1) == labels).all())
            assert bool((subject.model(moved).argmax(1) != labels).all())


def test_scores_are_those_of_a_prefix_of_the_copies() -> None:
    """One column a look, and more copies change what is noisy alone."""
    pytest.importorskip("sklearn")
    subject = measure_stopping.digits(limit=4)
    looks = Looks((2, 4), (0.5,), (1.0, 1.0))
    small, large = measure_stopping.score(subject, subject.clean[:2], looks, "clean")
    assert small.scores.shape == large.scores.shape == (2, len(SCORES))
    assert torch.equal(small.column("max_logit"), large.column("max_logit"))
    assert not torch.equal(small.scores, large.scores)


def test_page_tells_what_was_measured() -> None:
    summary = [0.5, 0.25, 0.75]
    row: dict[str, Any] = {
        "detector": "paper",
        "requests": "clean",
        "images": 7,
        "alone": [summary] * 4,
    }
    row |= dict.fromkeys(("early", "all_copies", "difference"), summary)
    record: dict[str, Any] = {"title": "A model", "data": "its data", "looks": LOOKS.to_dict()}
    record |= {"most_copies": 11.4, "alpha": 0.05, "sigma": 0.1, "seed": 0, "divisions": 3}
    record |= {"fit": 1, "calibrate": 2, "test": 3, "version": "0", "torch": "2"}
    text = measure_stopping.page([record | {"rows": [row | {"mean_copies": [10.0, 9.0, 11.0]}]}])
    assert "## A model" in text
    assert "| paper | clean | 7 | 50.0 (25.0 to 75.0) |" in text
    assert "| 10.0 (9.0 to 11.0) |" in text
