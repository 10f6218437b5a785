"""Streams as wide as they are many."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

from lrpguard.report.flow import Node, flow
from tests.report.conftest import NASTY

NODES = [
    Node("all", 0, "grey"),
    Node("some", 1, "clean"),
    Node("none", 1, "grey"),
    Node(NASTY, 1, "third"),
]
LINKS = {("all", "some"): 30, ("all", "none"): 0, ("all", NASTY): 10}


def test_streams_and_stations() -> None:
    root = ElementTree.fromstring(flow(NODES, LINKS, label="x"))
    said = [element.text for element in root.iter("text")]
    assert said == ["all", "40 (100.0 %)", "some", "30 (75.0 %)", NASTY, "10 (25.0 %)"]
    widths = [float(re.findall(r"v([\d.]+)", path.get("d", ""))[0]) for path in root.iter("path")]
    assert widths[0] == 3 * widths[1]
    heights = [float(rect.get("height", "")) for rect in root.iter("rect")]
    assert heights[0] == heights[1] + heights[2]


def test_words_lie_within_the_picture_and_do_not_overlap() -> None:
    many = [Node("all", 0, "grey"), *(Node(f"part {i}", 1, "clean") for i in range(6))]
    links = {("all", f"part {i}"): count for i, count in enumerate([1000, 1, 1, 1, 1, 1])}
    root = ElementTree.fromstring(flow(many, links, label="x"))
    height = float(root.get("viewBox", "").split()[3])
    lines = [float(e.get("y", "")) for e in root.iter("text") if "part" in (e.text or "")]
    assert all(b - a >= 30 for a, b in itertools.pairwise(lines))
    assert all(float(e.get("y", "")) < height for e in root.iter("text"))


def test_nothing_flows() -> None:
    assert "<svg" in flow(NODES, dict.fromkeys(LINKS, 0), label="x")
