"""What becomes of images, as streams: how wide, how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lrpguard.report.markup import Html, join, tag
from lrpguard.report.svg import picture, words

WIDTH, _NODE, _GAP, _TOP, _LABEL = 720.0, 12.0, 8.0, 6.0, 190.0
_WHOLE = 170.0
"""Height of all together."""
_LEAST = 30.0
"""Height of a station's words."""


@dataclass(frozen=True)
class Node:
    """A station.

    Attributes:
        name: What it is called.
        column: Which column it stands in, from 0.
        colour: Its colour.
    """

    name: str
    column: int
    colour: str


@dataclass(frozen=True)
class _Placed:
    x: float
    y: float
    height: float


def flow(nodes: Sequence[Node], links: Mapping[tuple[str, str], int], *, label: str) -> Html:
    """Return streams from station to station, from left to right.

    Args:
        nodes: Stations, those of a column from top to bottom. A station through which nothing
            goes is left out.
        links: How many go from one station to another, in the order in which they leave it.
        label: What the picture says, for those who cannot see it.
    """
    sizes = {node.name: _size(node.name, links) for node in nodes}
    shown = [node for node in nodes if sizes[node.name]]
    whole = max(sum(sizes[n.name] for n in shown if n.column == 0), 1)
    scale = _WHOLE / whole
    placed = _place(shown, sizes, scale)
    left = {name: place.y for name, place in placed.items()}
    entered = dict(left)
    streams = []
    for (start, end), count in links.items():
        if not count:
            continue
        thick = count * scale
        colour = next(node.colour for node in nodes if node.name == end)
        streams.append(
            _stream(placed[start], left[start], placed[end], entered[end], thick, colour)
        )
        left[start] += thick
        entered[end] += thick
    marks = [
        *streams,
        *(_station(node, placed[node.name], sizes[node.name], whole) for node in shown),
    ]
    bottom = max((place.y + max(place.height, _LEAST) for place in placed.values()), default=0.0)
    return picture(WIDTH, bottom + _TOP, *marks, label=label)


def _size(name: str, links: Mapping[tuple[str, str], int]) -> int:
    leaving = sum(count for (start, _), count in links.items() if start == name)
    entering = sum(count for (_, end), count in links.items() if end == name)
    return max(leaving, entering)


def _place(nodes: Sequence[Node], sizes: Mapping[str, int], scale: float) -> dict[str, _Placed]:
    last = max((node.column for node in nodes), default=0)
    below: dict[int, float] = {}
    placed = {}
    for node in nodes:
        y = below.get(node.column, _TOP)
        x = node.column * (WIDTH - _LABEL - _NODE) / max(last, 1)
        height = sizes[node.name] * scale
        placed[node.name] = _Placed(x, y, height)
        below[node.column] = y + max(height, _LEAST) + _GAP
    return placed


def _stream(start: _Placed, y1: float, end: _Placed, y2: float, thick: float, colour: str) -> Html:
    x1, x2 = start.x + _NODE, end.x
    middle = (x1 + x2) / 2
    path = (
        f"M{x1:.1f} {y1:.1f}C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
        f"v{thick:.1f}C{middle:.1f} {y2 + thick:.1f} {middle:.1f} {y1 + thick:.1f} "
        f"{x1:.1f} {y1 + thick:.1f}Z"
    )
    return tag("path", d=path, class_=f"flow {colour}")


def _station(node: Node, place: _Placed, count: int, whole: int) -> Html:
    middle = place.y + max(place.height, _LEAST) / 2
    return join(
        (
            tag(
                "rect",
                x=place.x,
                y=place.y,
                width=_NODE,
                height=max(place.height, 1.0),
                class_=f"node {node.colour}",
            ),
            words(place.x + _NODE + 6, middle - 2, node.name, strong=True),
            words(place.x + _NODE + 6, middle + 13, f"{count} ({100 * count / whole:.1f} %)"),
        )
    )
