"""The script's own part: plans, batches, resumption and the page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lrpguard.evaluation.explanations.measure import Plan, Smooth
from scripts import make_explanations

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LRPGUARD_DATA", ROOT.parent / "shared" / "data"))


def test_the_command_of_a_card_names_no_folder() -> None:
    args = make_explanations.parse(["--weights", "/far/w", "--data", "/far/d", "--images", "12"])
    words = make_explanations.command(args, make_explanations.plan_of(args))
    assert words == (
        "python scripts/make_explanations.py --model resnet20 --images 12 --probed 12 --seed 0"
    )


def test_other_copies_and_rules_are_a_run_of_their_own() -> None:
    args = make_explanations.parse(["--copies", "50", "--rules", "epsilon", "cmp"])
    plan = make_explanations.plan_of(args)
    assert (plan.rules, plan.grid) == (("epsilon", "cmp"), (Smooth(50, 0.05),))
    assert make_explanations.name_of(args) == "explanations_resnet20_n50"
    assert make_explanations.command(args, plan) == (
        "python scripts/make_explanations.py --model resnet20 --copies 50 --rules epsilon cmp "
        "--images 300 --probed 300 --seed 0"
    )
    assert make_explanations.name_of(make_explanations.parse([])) == "explanations_resnet20"


def test_without_data_the_error_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("LRPGUARD_DATA", raising=False)
    assert make_explanations.main(["--docs", str(tmp_path)]) == 1
    assert "LoadingError: --weights is not given" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_the_stored_cards_is_the_one_in_docs(tmp_path: Path) -> None:
    results = ROOT / "docs" / "results"
    (tmp_path / "results").symlink_to(results)
    (tmp_path / "explanations_notes.md").symlink_to(ROOT / "docs" / "explanations_notes.md")
    assert make_explanations.main(["--tables", "--docs", str(tmp_path)]) == 0
    made = (tmp_path / "explanations.md").read_text(encoding="utf-8")
    assert made == (ROOT / "docs" / "explanations.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (set LRPGUARD_DATA)")
def test_a_run_is_resumed_and_grows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LRPGUARD_DATA", str(DATA))
    plan = Plan(("epsilon",), (Smooth(2, 0.05),), 2, 1)
    monkeypatch.setattr(make_explanations, "PLANS", {"resnet20": plan})
    common = ["--docs", str(tmp_path), "--rows", str(tmp_path / "rows.jsonl"), "--quiet"]
    (tmp_path / "results").mkdir()
    assert make_explanations.main([*common, "--images", "2"]) == 0
    first = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert make_explanations.main([*common, "--images", "3"]) == 0
    grown = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert grown.startswith(first)
    assert len(grown.splitlines()) == len(first.splitlines()) + 1 == 4
    card = json.loads((tmp_path / "results" / "explanations_resnet20.json").read_text("utf-8"))
    found = card["rules"]["epsilon"]["plain"]
    assert found["gain"]["n"] == 3
    assert found["sensitivity"]["n"] == 1
    assert len(card["indices"]) == 3
    assert str(tmp_path) not in (tmp_path / "explanations.md").read_text("utf-8")
    capsys.readouterr()
