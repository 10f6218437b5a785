"""The page of the threat model is made of the cards that lie in docs/results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrpguard.redteam import threat_page
from scripts import red_team
from tests.redteam.test_page import CARD


def test_takes_a_card_in_and_makes_the_page(tmp_path: Path) -> None:
    card = tmp_path / "card.json"
    card.write_text(json.dumps(CARD | {"model": "some/net"}))
    docs = tmp_path / "docs"
    (docs / "results").mkdir(parents=True)
    (docs / "threat_model_notes.md").write_text("What people say.\n")
    assert red_team.main([str(card), "--docs", str(docs)]) == 0
    assert (docs / "results" / "red_team_some_net.json").is_file()
    page = (docs / "threat-model.md").read_text()
    assert "## some/net" in page
    assert "What people say." in page
    assert red_team.main(["--docs", str(docs)]) == 0
    assert (docs / "threat-model.md").read_text() == page


def test_refuses_another_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"kind": "evaluation"}))
    assert red_team.main([str(card), "--docs", str(tmp_path)]) == 1
    assert "no card of" in capsys.readouterr().err


def test_the_page_in_docs_is_that_of_its_cards() -> None:
    page = red_team.ROOT / "docs" / "threat-model.md"
    if not page.is_file():
        pytest.skip("there is no page yet")
    notes = red_team.ROOT / "docs" / "threat_model_notes.md"
    cards = red_team.read_cards(red_team.ROOT / "docs" / "results")
    text = threat_page(cards, notes=notes.read_text(encoding="utf-8") if notes.is_file() else "")
    assert page.read_text(encoding="utf-8") == text
