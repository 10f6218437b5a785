"""How results show themselves in a notebook: HTML that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from lrpguard.errors import ConfigurationError

MAX_ROWS = 50
"""Requests that a table shows; how many more there are stands below."""


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str) -> str:
    """Return a table, with everything in it escaped, in the notebook's own colours.

    Args:
        heads: Name of each column.
        rows: Cells of each row; no more than ``MAX_ROWS`` of them are shown.
        caption: What stands above.
    """
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    shown = [
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
        for row in rows[:MAX_ROWS]
    ]
    more = len(rows) - MAX_ROWS
    foot = f"<p>and {more} more</p>" if more > 0 else ""
    return (
        f'<table><caption style="caption-side: top; text-align: left">{html.escape(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(shown)}</tbody></table>{foot}"
    )


def html_picture(png: bytes, *, alt: str) -> str:
    """Return a picture that travels within the page.

    Args:
        png: The file's content.
        alt: What it shows, for those who do not see it.
    """
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def request_row(row: int, count: int) -> int:
    """Return the number of a request, counted from 0; a negative one counts from the end.

    Args:
        row: What was asked for.
        count: How many requests there are.

    Raises:
        ConfigurationError: There is no such request.
    """
    if not -count <= row < count:
        raise ConfigurationError(
            f"row is {row}; there are {count} requests, 0 … {count - 1}."
            if count
            else f"row is {row}; there are no requests."
        )
    return row % count
