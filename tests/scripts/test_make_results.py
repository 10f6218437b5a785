"""The page of results, made from cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import make_results


def test_without_cards_the_page_has_its_head_and_the_notes(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results_notes.md").write_text("What stands out.\n")

    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n")

    assert make_results.main(["--docs", str(tmp_path), "--readme", str(readme)]) == 0

    assert readme.read_text() == "# Mine\n"

    page = (tmp_path / "results.md").read_text()
    assert page.startswith("# Results\n")
    assert "What stands out." in page


def test_a_file_that_is_no_card_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.json"
    card.write_text('{"schema": 1}')

    assert make_results.main([str(card), "--docs", str(tmp_path)]) == 1

    assert "card.json is no evaluation card" in capsys.readouterr().err
