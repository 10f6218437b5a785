"""The page says what the numbers say."""

from __future__ import annotations

from typing import Any

import pytest

from lrpguard.evaluation import proportion
from lrpguard.redteam.page import HEAD, summary, threat_page, verdict
from lrpguard.redteam.run import WORST

COUNTS = {"fooled": (40, 40), "flagged_5%": (0, 40), "flagged_1%": (0, 40), "restored": (0, 40)}


def row(attack: str, passed: int, **more: Any) -> dict[str, Any]:
    about = {"attack": attack, "knows": "grey-box", "levels": 8, "steps": 30, "copies": 2}
    return about | COUNTS | {"sr_5%": (passed, 40), "sr_1%": (passed, 40)} | more


CARD: dict[str, Any] = {
    "kind": "red_team",
    "model": "net",
    "data": "images.npz",
    "command": "lrpguard attack --model net",
    "calibration_n": 1000,
    "fit_n": 1000,
    "test": 44,
    "right": 40,
    "seed": 0,
    "n": 16,
    "sigma": 0.02,
    "scores": ["consistency", "margin"],
    "clean": {"flagged_5%": (2, 44), "flagged_1%": (0, 44)},
    "minutes": 12.5,
    "version": "0.1.0",
    "torch": "2.0",
    "knows": {"static": "the model", "grey-box": "all but the key"},
    "rows": [
        row("PGD", 0, knows="static", copies=0),
        row("aware", 40),
        row("Square", 8, knows="black-box", queries=77),
        row(WORST, 40, steps=0),
    ],
    "harms": [
        {
            "attack": "false alarm",
            "knows": "grey-box",
            "levels": 2,
            "wanted": "a flag",
            "before": (1, 40),
            "after": (40, 40),
            "likeness_after": 0.5,
        }
    ],
    "warnings": ["not converged"],
    "left_out": ["HopSkipJump, 8/255"],
}


def test_the_page_holds_every_number_and_what_was_not_done() -> None:
    text = threat_page([CARD], notes="Read this.")
    assert text.index("Read this.") < text.index("## net")
    assert "any grey-box attack: SR@5 1.00 (0.91-1.00): **not stopped**." in text
    assert "static, its best (PGD, 8/255): SR@5 0.00 (0.00-0.09): **stopped, as far" in text
    assert "black-box, its best (Square, 8/255): SR@5 0.20 (0.10-0.35): **made dearer" in text
    assert "30 (median 77)" in text
    assert "100.0 % (91.2-100.0), 40/40 | likeness after 0.5 |" in text
    assert "- not converged" in text
    assert "- HopSkipJump, 8/255" in text
    assert summary(CARD) in text


def test_tables_are_whole() -> None:
    lines = summary(CARD).splitlines()
    table = [line for line in lines if line.startswith(("| PGD", "| aware", "| Square", "| worst"))]
    assert len(table) == 4
    assert all(line.count("|") == HEAD.count("|") for line in table)


@pytest.mark.parametrize(
    ("passed", "words"),
    [(0, "stopped, as far"), (5, "made dearer"), (25, "most attempts pass"), (40, "not stopped")],
)
def test_words_follow_from_the_share(passed: int, words: str) -> None:
    assert words in verdict(proportion(passed, 40))


def test_no_signs_are_said_to_be_none() -> None:
    assert "None of those looked for" in summary(CARD | {"warnings": []})
