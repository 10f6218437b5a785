"""Rows of explanations: the maps are those of explain, and every figure is there."""

from __future__ import annotations

import pytest
import torch

from lrpguard import explain
from lrpguard.attribution import Lrp
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.explanations.measure import (
    PLAIN,
    Plan,
    Smooth,
    explained_maps,
    is_complete,
    measure,
    run_header,
)
from lrpguard.evaluation.explanations.metrics import gini_index
from lrpguard.lrp import CMP, relevance
from tests.support import images, small_net

GRID = (Smooth(2, 0.1), Smooth(4, 0.1), Smooth(2, 0.3))
PLAN = Plan(("epsilon", "cmp"), GRID, images=3, probed=2, changes=2)


def test_smoothed_maps_are_those_of_explain() -> None:
    model, batch = small_net(), images(3)
    label = model(batch).argmax(1)
    maps = explained_maps(model, batch, label, Lrp(CMP), GRID, seed=5)
    assert list(maps) == [PLAIN, *(way.name for way in GRID)]
    plain = relevance(model, batch, label, composite=CMP).relevance.sum(1)
    torch.testing.assert_close(maps[PLAIN], plain)
    for way in GRID:
        smooth = explain(model, batch, n=way.n, sigma=way.sigma, seed=5, composite=CMP)
        torch.testing.assert_close(maps[way.name], smooth.relevance_mean)


def test_a_row_has_every_figure_of_every_map() -> None:
    model, batch = small_net(), images(3)
    rows = measure(model, batch, plan=PLAN, probe=True)
    assert len(rows) == 3
    for row in rows:
        assert list(row) == ["epsilon", "cmp"]
        for rule in row.values():
            assert tuple(rule) == PLAN.configurations
            for found in rule.values():
                assert set(found) == {
                    "gain",
                    "road",
                    "gap",
                    "gini",
                    "sensitivity",
                    "randomisation",
                }
        assert is_complete(row, PLAN, probe=True)
    label = model(batch).argmax(1)
    maps = explained_maps(model, batch, label, Lrp(CMP), GRID, seed=0)
    assert [row["cmp"][PLAIN]["gini"] for row in rows] == gini_index(maps[PLAIN]).tolist()


def test_a_row_does_not_depend_on_its_batch() -> None:
    model, batch = small_net(), images(3)
    together = measure(model, batch, plan=PLAN, probe=True)[2]["cmp"]
    (alone,) = measure(model, batch[2:], plan=PLAN, probe=True)
    for name, found in together.items():
        assert alone["cmp"][name] == pytest.approx(found, rel=1e-3, abs=1e-5)


def test_without_probing_the_expensive_figures_are_left_out() -> None:
    (row,) = measure(small_net(), images(1), plan=PLAN, probe=False)
    assert set(row["epsilon"][PLAIN]) == {"gain", "road", "gap", "gini"}
    assert is_complete(row, PLAN, probe=False)
    assert not is_complete(row, PLAN, probe=True)
    assert not is_complete({}, PLAN, probe=False)


def test_more_images_belong_to_the_same_run_and_another_rule_does_not() -> None:
    model = small_net()
    header = run_header(model, PLAN)
    assert header == run_header(model, Plan(("epsilon", "cmp"), GRID, 9, 0, changes=2))
    assert header != run_header(model, Plan(("cmp",), GRID, 3, 2, changes=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": ("epsilon", "nice")}, "no preset is named nice"),
        ({"rules": ()}, "none given"),
        ({"probed": 4}, "4 of 3 images"),
        ({"changes": 0}, "at least 1 change"),
        ({"grid": (Smooth(0, 0.1),)}, "at least 1 change or copy"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    plan = {"rules": ("epsilon",), "grid": GRID, "images": 3, "probed": 2} | changes
    with pytest.raises(ConfigurationError, match=message):
        Plan(**plan)  # type: ignore[arg-type]
