"""Card and page of explanations: intervals, verdicts, and what a reader sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrpguard.errors import LoadingError
from lrpguard.evaluation.explanations.card import make_card
from lrpguard.evaluation.explanations.measure import PLAIN, Plan, Row, Smooth
from lrpguard.evaluation.explanations.page import explanations_page, read_cards

PLAN = Plan(("cmp",), (Smooth(4, 0.1),), images=40, probed=10)
SMOOTH = "n = 4, sigma = 0.1"


def rows(probed: int = 10) -> list[Row]:
    """Smoothing adds 0.1 to the gain, halves the sensitivity, and leaves the gap as it is."""
    generator = np.random.default_rng(0)
    made: list[Row] = []
    for i in range(40):
        gain, gap = float(generator.normal(0.3, 0.1)), float(generator.random())
        plain = {"gain": gain, "gap": gap, "gini": 0.5}
        smooth = {"gain": gain + 0.1, "gap": gap, "gini": 0.4}
        if i < probed:
            plain |= {"sensitivity": 1.0 + i, "randomisation": 0.2}
            smooth |= {"sensitivity": (1.0 + i) / 2, "randomisation": 0.3}
        made.append({"cmp": {PLAIN: plain, SMOOTH: smooth}})
    return made


def card(made: list[Row] | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "plan": PLAN,
        "indices": range(40),
        "command": "python x.py",
        "seconds": 12.4,
    }
    return make_card("small", "digits", rows() if made is None else made, **options)


def test_figures_have_paired_differences_and_a_verdict() -> None:
    found = card()["rules"]["cmp"]
    plain, smooth = found[PLAIN], found[SMOOTH]
    assert "difference" not in plain["gain"]
    gains = [row["cmp"][PLAIN]["gain"] for row in rows()]
    assert plain["gain"]["value"] == pytest.approx(np.mean(gains))
    half = 1.96 * np.std(gains) / np.sqrt(40)
    assert plain["gain"]["high"] - plain["gain"]["value"] == pytest.approx(half, rel=0.2)
    difference = smooth["gain"]["difference"]
    assert [difference[key] for key in ("value", "low", "high")] == pytest.approx([0.1] * 3)
    assert smooth["gain"]["verdict"] == "better"
    assert smooth["gap"]["verdict"] == "same"
    assert smooth["sensitivity"]["n"] == 10
    assert plain["sensitivity"]["value"] == 5.5
    assert smooth["sensitivity"]["verdict"] == "better"
    assert smooth["randomisation"]["verdict"] == "worse"
    assert smooth["gini"]["verdict"] == "worse"


def test_an_image_without_a_value_is_left_out_of_both_maps() -> None:
    made = rows()
    del made[0]["cmp"][SMOOTH]["sensitivity"]
    found = card(made)["rules"]["cmp"]
    assert found[SMOOTH]["sensitivity"]["n"] == 9


def test_the_page_shows_every_map_with_its_marks(tmp_path: Path) -> None:
    (tmp_path / "explanations_small.json").write_text(json.dumps(card()), encoding="utf-8")
    page = explanations_page(read_cards(tmp_path))
    assert "## small with 4 copies, digits" in page
    assert "    python x.py" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| `cmp` | plain | ")
    cells = [cell.strip() for cell in lines[3].split("|")]
    assert cells[2] == SMOOTH
    assert [cell[-1] for cell in cells[3:8]] == ["+", "+", "=", "-", "-"]
    assert f"- Relevance gain: better in 1 (`cmp` with {SMOOTH}); worse in 0; of 1 smoothed" in page
    assert f"- Sparseness: sparser in 0; less sparse in 1 (`cmp` with {SMOOTH}); of 1" in page


def test_several_counts_of_copies_are_not_in_the_title() -> None:
    several = card()
    several["plan"]["grid"] = [{"n": 4, "sigma": 0.1}, {"n": 8, "sigma": 0.1}]
    assert "## small, digits" in explanations_page([several])


def test_without_probed_images_the_columns_are_left_out() -> None:
    page = explanations_page([card(rows(0))])
    assert "| rule | map | relevance gain, mean | conservation gap, median |" in page


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "evaluation", "schema": 1}'])
def test_another_file_is_no_card(tmp_path: Path, text: str) -> None:
    (tmp_path / "explanations_x.json").write_text(text, encoding="utf-8")
    with pytest.raises(LoadingError, match="Run its command"):
        read_cards(tmp_path)
