"""Marks stand where their values are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from lrpguard.report.axes import share_axis
from lrpguard.report.svg import CLEAN, Frame, bars, chart, line, picture, vertical, words
from tests.report.conftest import NASTY

FRAME = Frame(share_axis("x"), share_axis("y"), width=182.0, height=154.0)
"""A hundred units wide and high within the axes."""


def test_places_within_the_frame() -> None:
    assert (FRAME.px(0), FRAME.px(0.5), FRAME.px(1)) == (58, 108, 158)
    assert (FRAME.py(0), FRAME.py(1)) == (110, 10)


def test_lines_and_bars() -> None:
    assert 'd="M58.0 110.0L158.0 10.0"' in line(FRAME, [(0, 0), (1, 1)], CLEAN)
    drawn = bars(FRAME, [0, 0.5, 1], [0.25, 0], CLEAN)
    assert drawn.count("<rect") == 1
    assert 'x="58" y="85" width="50" height="25"' in drawn


def test_a_chart_is_well_formed_and_says_what_it_shows() -> None:
    drawn = chart(FRAME, vertical(FRAME, 0.5), words(1, 2, NASTY), label=NASTY)
    root = ElementTree.fromstring(drawn)
    assert root.get("role") == "img"
    assert root.get("aria-label") == NASTY
    assert NASTY in [element.text for element in root.iter("text")]


def test_colours_come_from_the_page() -> None:
    drawn = chart(FRAME, line(FRAME, [(0, 0), (1, 1)], CLEAN), label="x")
    assert not re.search(r"(fill|stroke)=|#[0-9a-f]{3}", drawn)
    assert "max-width: 130px" in picture(100, 100, label="x")
