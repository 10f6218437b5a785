"""A red team's card as Markdown: what the guard stops, what it makes dearer, what passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lrpguard.conformal import card_images_text
from lrpguard.evaluation.metrics import Proportion, proportion
from lrpguard.redteam.hardening_page import hardening_section, robust_section
from lrpguard.redteam.outcome import Row
from lrpguard.redteam.plan import GREY
from lrpguard.redteam.run import WORST

Card = Mapping[str, Any]

STOPPED, DEARER, HALF = 0.05, 0.5, 0.95
"""Bounds of SR@5 between what is said of it."""

BESIDE = (
    "likeness_before",
    "likeness_after",
    "median_levels",
    "median_queries",
    "mean_copies_before",
    "mean_copies_after",
)
"""What else a row of harm may hold."""

HEAD = (
    "| attack | attacker | eps | steps | copies | fools the model | SR@5 | SR@1 "
    "| restored right, of those that fool |"
)


def threat_page(cards: Sequence[Card], *, notes: str = "") -> str:
    """Return docs/threat-model.md.

    Args:
        cards: Cards of red teams, of hardened guards and of robust classifiers, in their order on
            the page.
        notes: What people have to say, put before the tables.
    """
    parts = [
        "# Threat model: the guard under attacks that know it",
        "",
        "Made by `python scripts/red_team.py` from the cards in docs/results; do not edit. What "
        "people have to say stands in threat_model_notes.md.",
        "",
    ]
    if notes:
        parts += [notes.strip(), ""]
    for card in cards:
        parts += SECTIONS[card["kind"]](card)
    return "\n".join(parts).rstrip() + "\n"


def summary(card: Card) -> str:
    """Return one card as text for a terminal."""
    return "\n".join(_section(card)).rstrip()


def _section(card: Card) -> list[str]:
    clean = card["clean"]
    return [
        f"## {card['model']}",
        "",
        f"`{card['command']}`",
        "",
        f"{card['data']}: of the clean images "
        + card_images_text(card)
        + f"; {card['test']} others are the test, of which {card['right']} are classified right "
        f"and attacked. Seed {card['seed']}, n = {card['n']}, sigma = {card['sigma']:g}, scores "
        f"{', '.join(card['scores'])}. Of the clean test images {_share(clean['flagged_5%'])} "
        f"are flagged at 5 %, {_share(clean['flagged_1%'])} at 1 %. {card['minutes']:g} minutes; "
        f"lrpguard {card['version']}, torch {card['torch']}.",
        "",
        *_said(card),
        "### Attacks that seek to fool the model and pass the guard",
        "",
        "SR@5 and SR@1: share of all attempts that do both, at 5 % and 1 % false positives, after "
        "rounding to 8 bits; in brackets 95 % Wilson intervals. An attacker's SR is a lower bound. "
        "In brackets beside the steps, or queries: how many the median image took before there "
        "was nothing left to gain. "
        f"*{WORST.capitalize()}* takes of each image the attempt that passes best, chosen after "
        "the fact.",
        "",
        HEAD,
        "|" + " --- |" * HEAD.count(" |"),
        *(_line(row) for row in card["rows"]),
        "",
        "Attackers: " + "; ".join(f"*{who}* knows {what}" for who, what in card["knows"].items()),
        "",
        *_harms(card["harms"]),
        "### Signs that an attack was weak",
        "",
        *([f"- {text}" for text in card["warnings"]] or ["None of those looked for was found."]),
        "",
        *_left_out(card["left_out"]),
    ]


def _said(card: Card) -> Iterator[str]:
    """Say in words what the tables hold, by fixed bounds."""
    yield "### In words"
    yield ""
    for row in card["rows"]:
        if row["attack"] == WORST:
            share = verdict(_proportion(row["sr_5%"]))
            yield f"- {row['levels']}/255, any grey-box attack: {share}"
    for who in sorted({row["knows"] for row in card["rows"]} - {GREY}):
        found = [row for row in card["rows"] if row["knows"] == who]
        best = max(found, key=lambda row: row["sr_5%"][0] / row["sr_5%"][1])
        share = verdict(_proportion(best["sr_5%"]))
        yield f"- {who}, its best ({best['attack']}, {best['levels']}/255): {share}"
    yield ""


def verdict(share: Proportion) -> str:
    """Return what SR@5 means, in words."""
    if share.rate >= HALF:
        meaning = "not stopped"
    elif share.rate >= DEARER:
        meaning = "most attempts pass"
    elif share.rate > STOPPED:
        meaning = "made dearer, not stopped"
    else:
        meaning = "stopped, as far as these attacks go"
    return f"SR@5 {_number(share)}: **{meaning}**."


def _line(row: Row) -> str:
    taken = row.get("queries", row.get("taken"))
    beside = "" if taken is None or taken == row["steps"] else f" (median {taken:g})"
    cells = [
        row["attack"],
        row["knows"],
        f"{row['levels']}/255",
        f"{row['steps']}{beside}" if row["steps"] else "-",
        str(row["copies"]) if row["copies"] else "-",
        _share(row["fooled"]),
        _number(_proportion(row["sr_5%"])),
        _number(_proportion(row["sr_1%"])),
        _share(row["restored"]) if row["restored"][1] else "none fool it",
    ]
    return "| " + " | ".join(cells) + " |"


def _harms(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "### Harm of other kinds"
    yield ""
    yield "| attack | attacker | eps | what counts | without it | with it | beside |"
    yield "|" + " --- |" * 7
    for row in rows:
        beside = {name.replace("_", " "): row[name] for name in BESIDE if row.get(name) is not None}
        cells = [
            row["attack"],
            row["knows"],
            f"{row['levels']}/255",
            row["wanted"],
            _share(row["before"]),
            _share(row["after"]),
            ", ".join(f"{name} {value}" for name, value in beside.items()) or "-",
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _left_out(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield "### Left out, the time being spent"
        yield ""
        yield from (f"- {name}" for name in names)
        yield ""


def _proportion(counts: Sequence[int]) -> Proportion:
    return proportion(*counts)


def _share(counts: Sequence[int]) -> str:
    return str(_proportion(counts))


def _number(share: Proportion) -> str:
    return f"{share.rate:.2f} ({share.low:.2f}-{share.high:.2f})"


SECTIONS: Mapping[str, Callable[[Card], list[str]]] = {
    "red_team": _section,
    "hardening": hardening_section,
    "robust_classifier": robust_section,
}
"""From a card's kind to its lines on the page."""
