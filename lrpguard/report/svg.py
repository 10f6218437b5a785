"""Marks of a chart, as SVG whose colours follow the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrpguard.report.axes import Axis
from lrpguard.report.markup import Html, join, tag

CLEAN, ATTACKED, THIRD, FOURTH, GREY = "clean", "attacked", "third", "fourth", "grey"
"""Colours by what they stand for; safe for colour-blind eyes, and told apart by dashes, too."""

LARGEST = 1.3
"""How much larger than drawn a picture is shown at most."""

Pairs = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Frame:
    """A rectangle with two axes.

    Attributes:
        x: Horizontal axis.
        y: Vertical axis.
        width: Width of the picture.
        height: Its height.
        left: Room for the labels of the vertical axis.
    """

    x: Axis
    y: Axis
    width: float = 440.0
    height: float = 280.0
    left: float = 58.0

    top: float = 10.0
    right: float = 24.0
    bottom: float = 44.0

    def px(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return self.left + self.x.place(value) * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        """Return the vertical place of a value."""
        return (
            self.height - self.bottom - self.y.place(value) * (self.height - self.top - self.bottom)
        )


def chart(frame: Frame, *marks: Html, label: str) -> Html:
    """Return a chart with its axes.

    Args:
        frame: The frame.
        marks: What it shows.
        label: What it says, for those who cannot see it.
    """
    return picture(frame.width, frame.height, _axes(frame), *marks, _edges(frame), label=label)


def picture(width: float, height: float, *marks: Html, label: str) -> Html:
    """Return an SVG picture with its description."""
    return tag(
        "svg",
        *marks,
        viewBox=f"0 0 {width:g} {height:g}",
        style=f"max-width: {LARGEST * width:.0f}px",
        role="img",
        aria_label=label,
    )


def words(
    x: float, y: float, value: object, *, anchor: str = "start", strong: bool = False
) -> Html:
    """Return text at a place."""
    return tag("text", value, x=x, y=y, text_anchor=anchor, class_="strong" if strong else None)


def line(frame: Frame, points: Pairs, colour: str, *, dash: str = "") -> Html:
    """Return a line through points."""
    return tag("path", d=_path(frame, points), class_=f"line {colour} {dash}".strip())


def band(frame: Frame, lower: Pairs, upper: Pairs, colour: str) -> Html:
    """Return the area between two lines."""
    outline = [*upper, *reversed(lower)]
    return tag("path", d=_path(frame, outline) + "Z", class_=f"band {colour}")


def bars(frame: Frame, edges: Sequence[float], heights: Sequence[float], colour: str) -> Html:
    """Return the bars of a histogram; empty ones are left out."""
    floor = frame.py(0.0)
    return join(
        tag(
            "rect",
            x=frame.px(low),
            y=frame.py(height),
            width=max(0.5, frame.px(high) - frame.px(low)),
            height=floor - frame.py(height),
            class_=f"bar {colour}",
        )
        for low, high, height in zip(edges, edges[1:], heights, strict=False)
        if height > 0
    )


def dot(x: float, y: float, colour: str, *, hollow: bool = False) -> Html:
    """Return a dot at a place of the picture."""
    return tag("circle", cx=x, cy=y, r=4.5, class_=f"{'ring' if hollow else 'dot'} {colour}")


def stroke(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """Return a straight line between two places of the picture."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def vertical(frame: Frame, value: float) -> Html:
    """Return a dashed vertical line at a value."""
    x = frame.px(value)
    return stroke(x, frame.top, x, frame.height - frame.bottom, "limit")


def legend(entries: Sequence[tuple[str, Html]]) -> Html:
    """Return what the colours and dashes mean."""
    return tag("ul", *(tag("li", key, name) for name, key in entries), class_="legend")


def line_key(colour: str, dash: str = "") -> Html:
    """Return a piece of a line for the legend."""
    mark = tag("path", d="M0 6H26", class_=f"line {colour} {dash}".strip())
    return tag("svg", mark, viewBox="0 0 26 12", aria_hidden="true")


def bar_key(colour: str) -> Html:
    """Return a bar for the legend."""
    mark = tag("rect", x=3, y=1, width=20, height=10, class_=f"bar {colour}")
    return tag("svg", mark, viewBox="0 0 26 12", aria_hidden="true")


def dot_key(colour: str, *, hollow: bool = False) -> Html:
    """Return a dot for the legend."""
    return tag("svg", dot(13, 6, colour, hollow=hollow), viewBox="0 0 26 12", aria_hidden="true")


def _path(frame: Frame, points: Pairs) -> str:
    places = [f"{frame.px(x):.1f} {frame.py(y):.1f}" for x, y in points]
    return "M" + "L".join(places or ["0 0"])


def _axes(frame: Frame) -> Html:
    floor, end = frame.height - frame.bottom, frame.width - frame.right
    marks = []
    for value, shown in frame.x.ticks:
        x = frame.px(value)
        marks += [
            stroke(x, frame.top, x, floor, "grid"),
            words(x, floor + 16, shown, anchor="middle"),
        ]
    for value, shown in frame.y.ticks:
        y = frame.py(value)
        marks += [
            stroke(frame.left, y, end, y, "grid"),
            words(frame.left - 6, y + 4, shown, anchor="end"),
        ]
    middle = (frame.left + end) / 2
    marks.append(words(middle, frame.height - 8, frame.x.title, anchor="middle"))
    if frame.y.title:
        side = frame.height / 2 - frame.bottom / 2
        marks.append(
            tag(
                "text",
                frame.y.title,
                transform=f"translate(13 {side:g}) rotate(-90)",
                text_anchor="middle",
            )
        )
    return join(marks)


def _edges(frame: Frame) -> Html:
    floor, end = frame.height - frame.bottom, frame.width - frame.right
    return tag("path", d=f"M{frame.left:g} {frame.top:g}V{floor:g}H{end:g}", class_="axis")
