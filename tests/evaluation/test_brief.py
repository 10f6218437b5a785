"""The README's lines are those of the cards."""

from __future__ import annotations

from pathlib import Path

from lrpguard.evaluation.brief import BEGIN, END, SHOWN, brief, with_brief
from lrpguard.evaluation.cards import is_attacked, read_card

ROOT = Path(__file__).resolve().parents[2]
CARDS = [read_card(path) for path in sorted((ROOT / "docs" / "results").glob("evaluation_*.json"))]


ATTACKED = [card for card in CARDS if is_attacked(card)]


def test_the_readme_shows_the_cards_that_lie_in_docs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert BEGIN in text
    assert with_brief(text, CARDS) == text


def test_every_cell_is_that_of_its_card() -> None:
    lines = brief(CARDS).splitlines()
    assert len(lines) == 2 + len(SHOWN) + 7 + 1 + len(CARDS)
    for column, card in enumerate(ATTACKED, 2):
        found = card["results"]["attacks"]["ead"]
        counts = [found["detectors"]["guard"]["5"]["tpr"], found["restored_of_success"]]
        cell = next(line for line in lines if line.startswith("| EAD")).split("|")[column]
        for count in counts:
            assert f"{count['successes']}/{count['n']}" in cell
        assert any(str(card["model"]) in line for line in lines[-len(CARDS) :])


def test_a_detector_that_was_fitted_with_attacks_is_none_of_the_others() -> None:
    card = next(card for card in ATTACKED if not card["results"]["unseen"])
    before = brief([card]).splitlines()[-1]
    name = next(name for name in card["baselines"] if f"`{name}`" in before)
    trained = card | {"results": card["results"] | {"unseen": {name: {}}}}

    after = brief([trained]).splitlines()[-1]

    others = len(card["baselines"]) - 1
    assert f"best of {others + 1} other detectors, `{name}`" in before
    assert f"best of {others} other detectors, `" in after
    assert f"`{name}`" not in after


def test_clean_images_alone_have_a_line_and_no_column() -> None:
    attacked = ATTACKED[0]
    alone = attacked | {"model": "other", "results": attacked["results"] | {"attacks": {}}}
    *table, line = brief([attacked, alone]).splitlines()
    assert table == brief([attacked]).splitlines()
    harm = attacked["results"]["clean"]["harm_unknown"]
    assert line.startswith("- other, ")
    assert f"{harm['successes']}/{harm['n']}." in line


def test_what_stands_around_the_marks_stays() -> None:
    page = with_brief(f"before\n{BEGIN}\nold\n{END}\nafter\n", ATTACKED[:1])
    assert page == f"before\n{BEGIN}\n{brief(ATTACKED[:1])}\n{END}\nafter\n"
    assert with_brief("no marks\n", CARDS) == "no marks\n"
    assert with_brief(page, []) == page
