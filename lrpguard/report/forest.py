"""Shares with their intervals, one below another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrpguard.evaluation.metrics import Proportion
from lrpguard.report.markup import Html
from lrpguard.report.svg import dot, picture, stroke, words

WIDTH, _LABEL, _RIGHT, _ROW, _FOOT = 720.0, 300.0, 24.0, 24.0, 38.0


@dataclass(frozen=True)
class Mark:
    """A share to be shown.

    Attributes:
        value: The share, in [0, 1].
        low: Lower end of its interval.
        high: Upper end of its interval.
        colour: Its colour.
        hollow: Whether it is drawn as a ring.
    """

    value: float
    low: float
    high: float
    colour: str
    hollow: bool = False


def mark(share: Proportion, colour: str, *, hollow: bool = False) -> list[Mark]:
    """Return the mark of a share; none where it is of nothing."""
    return [Mark(share.rate, share.low, share.high, colour, hollow)] if share.n else []


def forest(rows: Sequence[tuple[str, Sequence[Mark]]], *, title: str, label: str) -> Html:
    """Return shares with their intervals, one row each.

    Args:
        rows: Name and marks of each row; the first mark stands above the others.
        title: What the axis shows.
        label: What the picture says, for those who cannot see it.
    """
    floor = 8 + _ROW * len(rows)
    marks = []
    for share in range(0, 101, 20):
        x = _x(share / 100)
        marks += [
            stroke(x, 4, x, floor, "grid"),
            words(x, floor + 15, f"{share} %", anchor="middle"),
        ]
    for number, (name, shown) in enumerate(rows):
        middle = 8 + _ROW * (number + 0.5)
        marks.append(words(_LABEL - 12, middle + 4, _short(name), anchor="end", strong=True))
        for i, one in enumerate(shown):
            y = middle + (8.0 * (i - (len(shown) - 1) / 2))
            marks += [
                stroke(_x(one.low), y, _x(one.high), y, f"line {one.colour}"),
                dot(_x(one.value), y, one.colour, hollow=one.hollow),
            ]
    marks.append(words(_x(0.5), floor + 32, title, anchor="middle"))
    return picture(WIDTH, floor + _FOOT, *marks, label=label)


def _x(share: float) -> float:
    return _LABEL + share * (WIDTH - _LABEL - _RIGHT)


def _short(name: str, *, most: int = 46) -> str:
    """Return a name that fits beside the picture; its end, often a radius, is kept."""
    return name if len(name) <= most else f"{name[: most - 13]}…{name[-12:]}"
