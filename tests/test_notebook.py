"""HTML of results: escaped, self-contained, and of a bearable length."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from lrpguard.errors import ConfigurationError
from lrpguard.notebook import MAX_ROWS, html_picture, html_table, request_row


class Cells(HTMLParser):
    """Collects the text of every cell, and checks that each element is closed."""

    VOID = ("img",)

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_cells_heads_and_caption_are_escaped() -> None:
    evil = '<script>alert("x")</script>&'
    content = html_table([evil], [[evil]], caption=evil)
    assert "<script" not in content
    assert Cells(content).cells == [evil, evil]
    assert 'onerror="' not in html_picture(b"", alt='" onerror="x')


def test_a_long_table_says_how_much_more_there_is() -> None:
    rows = [[str(i)] for i in range(MAX_ROWS + 7)]
    content = html_table(["a"], rows, caption="c")
    assert len(Cells(content).cells) == MAX_ROWS + 1
    assert content.endswith("<p>and 7 more</p>")
    assert "more" not in html_table(["a"], rows[:MAX_ROWS], caption="c")


def test_a_picture_travels_within_the_page() -> None:
    assert html_picture(b"png", alt="a map") == (
        '<img alt="a map" src="data:image/png;base64,cG5n">'
    )


def test_rows_count_from_either_end() -> None:
    assert [request_row(row, 3) for row in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for row in (3, -4):
        with pytest.raises(ConfigurationError, match=rf"row is {row}; there are 3 requests, 0 … 2"):
            request_row(row, 3)
    with pytest.raises(ConfigurationError, match="there are no requests"):
        request_row(0, 0)
