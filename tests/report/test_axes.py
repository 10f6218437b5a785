"""From values to places."""

from __future__ import annotations

import numpy as np
import pytest

from lrpguard.report.axes import linear_axis, score_axis, share_axis


def test_places_of_a_linear_axis() -> None:
    axis = share_axis("share", high=0.5)
    assert [axis.place(v) for v in (0, 0.25, 0.5, 2, -1)] == [0, 0.5, 1, 1, 0]
    assert [name for _, name in axis.ticks] == ["0 %", "10 %", "20 %", "30 %", "40 %", "50 %"]


@pytest.mark.parametrize(
    ("high", "end", "count"), [(8, 8, 5), (131, 150, 4), (0.3, 0.3, 4), (1, 1, 6)]
)
def test_a_linear_axis_ends_at_a_round_number(high: float, end: float, count: int) -> None:
    axis = linear_axis("x", high)
    assert axis.high == pytest.approx(end)
    assert len(axis.ticks) == count


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_a_score_axis_spreads_clean_scores_and_holds_large_ones(scale: float) -> None:
    clean, attacked = scale * np.linspace(0, 6, 50), scale * np.array([5.0, 90.0, 400.0])
    axis = score_axis("score", [clean, attacked])
    assert axis.high == pytest.approx(400 * scale)
    assert 0.2 < axis.place(6 * scale) < 0.6
    places = [axis.place(value) for value, _ in axis.ticks]
    assert places == sorted(places)
    assert len(places) >= 4
    edges = axis.edges(10)
    assert np.diff([axis.place(edge) for edge in edges]) == pytest.approx(0.1)


@pytest.mark.parametrize("scores", [[0.0, 0.0], [3.0], [-2.0, -1.0, 1.0]])
def test_a_score_axis_of_odd_scores(scores: list[float]) -> None:
    axis = score_axis("score", [np.array(scores)])
    assert all(0 <= axis.place(score) <= 1 for score in scores)
    assert axis.high > axis.low
    assert np.all(np.diff(axis.edges(5)) > 0)
