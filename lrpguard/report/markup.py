"""HTML and SVG from Python, escaped by construction.

Text is escaped unless it is :class:`Html`, which only the functions of this package make. So what a
file says can never become markup by being forgotten: forgetting shows tags on the page instead.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = frozenset({"br", "img", "link", "meta"})

Cell = str | float | None


class Html(str):
    """Markup that is already safe."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return a value as escaped text; characters that UTF-8 cannot hold become ``?``."""
    if isinstance(value, Html):
        return value
    clean = str(value).encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    return Html(html.escape(clean, quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Return parts one after another, each escaped where it is plain text."""
    return Html(between.join(text(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: Its name.
        children: What it holds; text is escaped, None left out.
        attributes: Its attributes; None and False are left out, True stands without a value. A
            trailing underscore is dropped (``class_``), others become hyphens (``aria_label``).
    """
    shown = [
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_value(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    start = f"<{name}{''.join(shown)}>"
    if name in _VOID:
        return Html(start)
    return Html(f"{start}{join(child for child in children if child is not None)}</{name}>")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return text(value)


def paragraph(*children: object, soft: bool = False) -> Html:
    """Return a paragraph."""
    return tag("p", *children, class_="soft" if soft else None)


def bullets(items: Iterable[object], *, class_: str | None = None) -> Html:
    """Return a list of points."""
    return tag("ul", *(tag("li", item) for item in items), class_=class_)


def code(value: object) -> Html:
    """Return a short piece of code within a line."""
    return tag("code", value)


def command_lines(*lines: str) -> Html:
    """Return commands to be copied; they can be scrolled by keyboard."""
    return tag("pre", tag("code", "\n".join(lines)), tabindex="0")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Return names with their values; those without a value are left out."""
    entries = [(tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None]
    return tag("dl", *(part for entry in entries for part in entry), class_="facts")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    words: int = 1,
    seen: bool = True,
) -> Html:
    """Return a table that scrolls within the page where it is too wide for it.

    Args:
        head: Titles of the columns.
        rows: Cells of each row; the first is the row's heading.
        caption: What it shows.
        seen: Whether the caption is shown, or only read out.
        words: How many leading columns hold words; the others hold figures, and stand right.
    """
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(
                tag("td", cell, class_=None if i < words else "n")
                for i, cell in enumerate(row[1:], 1)
            ),
        )
        for row in rows
    ]
    titles = (
        tag("th", title, scope="col", class_=None if i < words else "n")
        for i, title in enumerate(head)
    )
    whole = tag(
        "table",
        tag("caption", caption, class_=None if seen else "unseen"),
        tag("thead", tag("tr", *titles)),
        tag("tbody", *body),
    )
    return tag("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def folded(title: str, *children: object) -> Html:
    """Return a part that is closed until it is asked for, and open in print."""
    return tag("details", tag("summary", title), *children)
