"""The page around the sections: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from lrpguard.report.markup import Html, bullets, join, paragraph, tag
from lrpguard.version import __version__

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
"""What a browser may load for the page: pictures within it, and its own style."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: Its anchor, of letters and hyphens.
        title: Its heading.
        content: What it holds.
        limits: Whether it is what the reader must know first.
    """

    name: str
    title: str
    content: Html
    limits: bool = False


@dataclass(frozen=True)
class Tile:
    """One figure of the summary.

    Attributes:
        title: What it is.
        figure: The figure.
        note: Its interval, and of how many.
    """

    title: str
    figure: str
    note: str


def tiles(shown: Sequence[Tile]) -> Html:
    """Return the figures of the summary beside one another."""
    return tag(
        "div",
        *(
            tag(
                "div",
                paragraph(tile.title, soft=True),
                tag("p", tile.figure, class_="figure"),
                paragraph(tile.note, soft=True),
                class_="tile",
            )
            for tile in shown
        ),
        class_="tiles",
    )


def limits(points: Sequence[object]) -> Section:
    """Return the section that stands first."""
    return Section("limits", "Read this first", bullets(points), limits=True)


def document(title: str, subtitle: str, sections: Sequence[Section]) -> Html:
    """Return the whole page.

    Args:
        title: What it reports on.
        subtitle: One line below.
        sections: Its parts, in order.
    """
    style = resources.files("lrpguard.report").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style)),
    )
    links = (tag("a", section.title, href=f"#{section.name}") for section in sections)
    body = tag(
        "body",
        tag("a", "Skip to the report", href="#report", class_="skip"),
        tag(
            "header",
            tag("h1", title),
            paragraph(subtitle, soft=True),
            tag("nav", bullets(links), aria_label="Contents"),
        ),
        tag("main", *map(_section, sections), id="report", tabindex="-1"),
        tag("footer", paragraph(f"Made by lrpguard {__version__} report.", soft=True)),
    )
    return join((Html("<!doctype html>\n"), tag("html", head, body, lang="en"), Html("\n")))


def _section(section: Section) -> Html:
    heading = f"{section.name}-title"
    return tag(
        "section",
        tag("h2", section.title, id=heading),
        section.content,
        id=section.name,
        class_="limits" if section.limits else None,
        aria_labelledby=heading,
    )
