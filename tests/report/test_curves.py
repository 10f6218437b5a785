"""ROC and reliability, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lrpguard.evaluation.metrics import auroc
from lrpguard.evaluation.outcomes import GUARD
from lrpguard.report.curves import GRID, reliability, roc, worst_per_sample
from tests.report.conftest import attacked_images, clean_images


def at(x: float) -> int:
    return int(np.abs(GRID - x).argmin())


def test_a_roc_curve_by_hand() -> None:
    clean = clean_images([0, 1, 2, 3, 4])
    attack = attacked_images([0.5, 2.5, 3.5, 5, 6])
    curve = roc(clean, [attack], GUARD, seed=0)
    assert curve.y[at(0.0)] == pytest.approx(0.4)  # above every clean score: 5 and 6
    assert curve.y[at(0.1)] == pytest.approx(0.4)  # no threshold between 0 and 1 in 5
    assert curve.y[at(0.2)] == pytest.approx(0.6)  # above 3
    assert curve.y[at(0.4)] == pytest.approx(0.8)  # above 2
    assert curve.y[-1] == 1


def test_the_band_holds_the_curve_and_widens_with_few_images() -> None:
    generator = np.random.default_rng(0)
    spread = []
    for n in (20, 200):
        clean = clean_images(generator.normal(size=n).tolist())
        attack = attacked_images((generator.normal(size=n) + 1).tolist())
        curve = roc(clean, [attack], GUARD, seed=0)
        assert np.all(curve.low <= curve.high)
        assert np.mean((curve.low <= curve.y) & (curve.y <= curve.high)) > 0.9
        assert np.all(np.diff(curve.y) >= 0)
        spread.append(float((curve.high - curve.low).mean()))
        area = float(np.trapezoid(curve.y, curve.x))
        assert area == pytest.approx(
            auroc(clean.scores[GUARD], attack.scores[GUARD]), abs=2 / n + 0.01
        )
    assert spread[1] < 0.6 * spread[0]


def test_each_attack_counts_once_and_only_where_it_fools_the_model() -> None:
    clean = clean_images([0, 1, 2, 3])
    noticed = attacked_images([9, 9, 9, 9])
    missed = attacked_images([-1, -1, 9, 9], predicted=[1, 1, 0, 0])
    assert roc(clean, [noticed, missed], GUARD, seed=0).y[0] == pytest.approx(0.5)


def test_the_worst_attack_of_each_image() -> None:
    clean = clean_images([0, 1, 2])
    first = attacked_images([5, 1, 7], name="a", p_values=[0.1, 0.9, 0.01])
    second = attacked_images([4, 0, 9], name="b", predicted=[1, 0, 1], p_values=[0.2, 1.0, 0.01])
    worst = worst_per_sample(clean, [first, second])
    assert worst is not None
    assert worst.scores[GUARD].tolist() == [4, 1, 7]  # b does not fool the model on image 1
    assert worst.p_values[GUARD].tolist() == [0.2, 0.9, 0.01]
    assert worst_per_sample(clean, [attacked_images([1, 1, 1], predicted=[0, 0, 0])]) is None


def test_reliability_counts_p_values() -> None:
    p_values = np.array([0.05, 0.3, 0.31, 0.9])
    curve = reliability(p_values, lambda level: [level - 0.1, level + 0.1], points=10)
    assert curve.x.tolist() == pytest.approx([i / 10 for i in range(1, 10)])
    assert curve.y[[0, 1, 2, 3, 8]].tolist() == [0.25, 0.25, 0.5, 0.75, 1.0]
    assert curve.low[0] == pytest.approx(0)
