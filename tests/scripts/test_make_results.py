"""The page of results, made from cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrpguard.evaluation.brief import BEGIN, END
from scripts import make_results

ROOT = Path(__file__).resolve().parents[2]


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


def test_clean_images_alone_do_not_replace_the_attacked_ones(tmp_path: Path) -> None:
    stored = ROOT / "docs" / "results" / "evaluation_resnet20.json"
    attacked = json.loads(stored.read_text(encoding="utf-8"))
    alone = attacked | {"results": attacked["results"] | {"attacks": {}}}
    (tmp_path / "a.json").write_text(json.dumps(attacked), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(alone), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    cards = [str(tmp_path / name) for name in ("a.json", "b.json")]

    assert make_results.main([*cards, "--docs", str(tmp_path), "--readme", str(readme)]) == 0

    written = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert written == ["evaluation_resnet20.json", "evaluation_resnet20_clean.json"]
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert page.count("### Attack by attack") == 1
    assert page.count("### Clean images and controls") == 2
    assert "## resnet20, test_5000.npz, clean images alone" in page
    assert "more clean images" in readme.read_text(encoding="utf-8")


def test_a_file_that_is_no_card_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.json"
    card.write_text('{"schema": 1}')

    assert make_results.main([str(card), "--docs", str(tmp_path)]) == 1

    assert "card.json is no evaluation card" in capsys.readouterr().err
