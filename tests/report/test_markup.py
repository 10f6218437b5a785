"""Escaping by construction."""

from __future__ import annotations

import pytest

from lrpguard.report.markup import (
    Html,
    bullets,
    command_lines,
    facts,
    folded,
    join,
    table,
    tag,
    text,
)
from tests.report.conftest import NASTY


def test_text_is_escaped_and_markup_is_not() -> None:
    assert text('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"
    assert text(text("<")) == "&lt;"
    assert join([Html("<b>"), "<b>"]) == "<b>&lt;b&gt;"


@pytest.mark.parametrize("value", ["\ud800", "a\0b"])
def test_what_a_page_cannot_hold_is_replaced(value: str) -> None:
    shown = text(value)
    shown.encode("utf-8")
    assert "\0" not in shown


def test_attributes() -> None:
    made = tag("p", "x", class_="a b", aria_label='"<', hidden=True, lang=None, open=False)
    assert made == '<p class="a b" aria-label="&quot;&lt;" hidden>x</p>'
    assert tag("meta", name="viewport", content="x") == '<meta name="viewport" content="x">'
    assert tag("rect", x=1.0, y=2.346) == '<rect x="1" y="2.35"></rect>'


def test_plain_formatting_loses_the_licence_to_stand_unescaped() -> None:
    assert text(f"{Html('<b>')}") == "&lt;b&gt;"


def test_every_part_escapes_what_it_is_given() -> None:
    parts = join(
        [
            table([NASTY], [[NASTY, NASTY]], caption=NASTY),
            facts([(NASTY, NASTY)]),
            bullets([NASTY]),
            command_lines(NASTY),
            folded(NASTY, NASTY),
        ]
    )
    assert "<script" not in parts
    assert parts.count("&lt;script&gt;") == 11


def test_facts_without_a_value_are_left_out() -> None:
    assert facts([("a", None), ("b", 0)]) == '<dl class="facts"><dt>b</dt><dd>0</dd></dl>'
