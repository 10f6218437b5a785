"""Shares with their intervals."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from lrpguard.evaluation.metrics import proportion
from lrpguard.report.forest import forest, mark


def test_marks_stand_at_their_shares() -> None:
    rows = [("half", mark(proportion(5, 10), "clean")), ("nobody", mark(proportion(0, 0), "clean"))]
    root = ElementTree.fromstring(forest(rows, title="share", label="x"))
    ticks = {e.text: float(e.get("x", "")) for e in root.iter("text") if "%" in (e.text or "")}
    (circle,) = root.iter("circle")
    assert float(circle.get("cx", "")) == pytest.approx((ticks["0 %"] + ticks["100 %"]) / 2)
    (span,) = [e for e in root.iter("line") if e.get("class") == "line clean"]
    share = proportion(5, 10)
    whole = ticks["100 %"] - ticks["0 %"]
    assert float(span.get("x1", "")) == pytest.approx(ticks["0 %"] + share.low * whole, abs=0.01)


def test_long_names_keep_their_ends() -> None:
    drawn = forest([("an attack with a very long name indeed, 8/255", [])], title="x", label="x")
    assert "indeed, 8/255" in drawn or "…eed, 8/255" in drawn or ", 8/255</text>" in drawn
