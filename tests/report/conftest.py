"""A real, small evaluation on digits, with its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lrpguard import Guard, Smoothing
from lrpguard.attacks import choose
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.evaluation.evaluate import Settings, evaluate
from lrpguard.evaluation.outcomes import GUARD, Attacked, Clean
from lrpguard.evaluation.paper.card import write_card
from lrpguard.evaluation.protocol import ImageSet, Splits
from lrpguard.report.runs import EvaluationRun, Judged, read_run

NASTY = '<script>alert("x")</script>'
"""What must never become markup."""


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation whose model has a nasty name; attacked images beside it."""
    pytest.importorskip("sklearn", reason="needs lrpguard[demo]")
    out = tmp_path_factory.mktemp("report") / "evaluation"
    digits = load_digit_splits()
    card = evaluate(
        load_digits_model(),
        Splits(
            pool=ImageSet.of(digits.calibration.images[:220], digits.calibration.labels[:220]),
            test=ImageSet.of(digits.test.images[:30], digits.test.labels[:30]),
        ),
        guard=Guard(load_digits_model(), smoothing=Smoothing(n=4, sigma=0.1)),
        settings=Settings(
            attacks=choose(["pgd_4_10", "pgd_8_10", "cw_0", "deepfool", "patch", "noise"]),
            baselines=("max-softmax",),
            out=out,
            cache=out / "cache",
        ),
        about={"model": NASTY, "data": "digits.npz", "command": f"lrpguard evaluate {NASTY}"},
    )
    write_card(card, out / "card.json")
    return out


@pytest.fixture(scope="session")
def run(evaluation: Path) -> EvaluationRun:
    found = read_run(evaluation)
    assert isinstance(found, EvaluationRun)
    assert found.judged is not None
    return found


def clean_images(scores: list[float], p_values: list[float] | None = None) -> Clean:
    """Return clean images of class 0, all of them right."""
    n = len(scores)
    zeros = np.zeros(n, np.int64)
    p = np.ones(n) if p_values is None else np.array(p_values)
    digests = tuple(f"image{i}" for i in range(n))
    return Clean(digests, zeros, zeros, zeros, {GUARD: p}, {GUARD: np.array(scores)})


def attacked_images(
    scores: list[float],
    *,
    name: str = "attack",
    predicted: list[int] | None = None,
    final: list[int] | None = None,
    p_values: list[float] | None = None,
) -> Attacked:
    """Return the same images attacked; by default all fool the model, and nothing is restored."""

    def column(values: list[int] | None, default: int) -> NDArray[np.int64]:
        return np.array([default] * len(scores) if values is None else values, np.int64)

    guess = column(predicted, 1)
    return Attacked(
        name,
        np.arange(len(scores)),
        column(None, 0),
        guess,
        guess if final is None else column(final, 0),
        {GUARD: np.array([1.0] * len(scores) if p_values is None else p_values)},
        {GUARD: np.array(scores)},
    )


def judged(clean: Clean, *attacks: Attacked) -> Judged:
    return Judged(clean, attacks, tuple(range(len(clean.labels))))


def card_of(run: EvaluationRun, **changes: Any) -> EvaluationRun:
    """Return a run with another card."""
    return EvaluationRun(dict(run.card) | changes, run.judged)
