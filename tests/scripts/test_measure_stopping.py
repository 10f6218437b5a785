"""Divisions and page of the measurement of early stopping; the digits themselves take a minute."""

from __future__ import annotations

import pytest
import torch

from lrpguard.demo.digits import load_digit_splits, load_digits_model
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


def test_attacks_changed_a_right_label() -> None:
    pytest.importorskip("sklearn")
    model = load_digits_model()
    test = load_digit_splits().test
    images, labels = test.images[:40], test.labels[:40]
    for moved, origin in measure_stopping.attacked(model, images, labels).values():
        assert len(moved) == len(origin) > 0
        with torch.no_grad():
            assert bool((model(images[origin]).argmax(1) == labels[origin]).all())
            assert bool((model(moved).argmax(1) != labels[origin]).all())


def test_scores_are_those_of_a_prefix_of_the_copies() -> None:
    """One column a look, and more copies change what is noisy alone."""
    pytest.importorskip("sklearn")
    model = load_digits_model()
    images = load_digit_splits().test.images[:2]
    small, large = measure_stopping.score(model, images, Looks((2, 4), (0.5,), (1.0, 1.0)))
    assert small.scores.shape == large.scores.shape == (2, len(SCORES))
    assert torch.equal(small.column("max_logit"), large.column("max_logit"))
    assert not torch.equal(small.scores, large.scores)
