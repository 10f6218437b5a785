"""The report of attacks that know the guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrpguard.evaluation.metrics import Proportion, proportion
from lrpguard.report.detection import figure
from lrpguard.report.forest import forest, mark
from lrpguard.report.markup import Html, command_lines, facts, join, paragraph, table, tag
from lrpguard.report.page import Section, Tile, document, limits, tiles
from lrpguard.report.runs import RedTeamRun
from lrpguard.report.shares import percent, within
from lrpguard.report.svg import ATTACKED, THIRD, dot_key, legend

COLUMNS = {
    "fooled": "fools the model",
    "flagged_5%": "flagged at 5 %, of successful",
    "flagged_1%": "at 1 %",
    "sr_5%": "SR@5: fools model and guard",
    "sr_1%": "SR@1",
    "restored": "restored right, of successful",
}
"""Counts of a row, as far as it has them."""

SR_5, SR_1 = "sr_5%", "sr_1%"

Row = Mapping[str, Any]


def red_team_report(run: RedTeamRun, *, command: str) -> Html:
    """Return the page.

    Args:
        run: The card.
        command: How this page is made again.
    """
    card = run.card
    rows: Sequence[Row] = card["rows"]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get("knows", "not stated")), []).append(row)
    sections = [
        limits(_limits(card, rows)),
        Section("summary", "Summary", _summary(card, groups)),
    ]
    for number, (knows, found) in enumerate(groups.items(), 1):
        name = f"attacker-{number}"
        sections.append(Section(name, f"What a {knows} attacker gets through", _group(found)))
    sections.append(Section("reproduce", "Reproduce it", _reproduce(card, command)))
    title = f"The guard of {card.get('model', 'a model')} under attacks that know it"
    return document(title, "A red team's findings.", sections)


def counts(found: object) -> Proportion | None:
    """Return counts as a share, from ``[hits, n]`` or ``{"successes", "n"}``; else None."""
    if isinstance(found, Mapping) and {"successes", "n"} <= set(found):
        return proportion(int(found["successes"]), int(found["n"]))
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 2:
        return proportion(int(found[0]), int(found[1]))
    return None


def _limits(card: Mapping[str, Any], rows: Sequence[Row]) -> list[object]:
    worst = _worst(rows)
    points: list[object] = []
    if worst is not None:
        name, share = worst
        points.append(
            join(
                (
                    tag("strong", f"{share} of the attempts fool model and guard "),
                    f"at the 5 % threshold under the worst entry here, {name}.",
                )
            )
        )
    points.append(
        "Every SR is a lower bound: an attacker with more steps, restarts, queries, or a better "
        "idea gets more through. What was not tried is not safe."
    )
    warnings = card.get("warnings", ())
    points += [str(text) for text in warnings if isinstance(warnings, list)]
    return points


def _worst(rows: Sequence[Row]) -> tuple[str, Proportion] | None:
    found = [(_name(row), share) for row in rows if (share := counts(row.get(SR_5))) and share.n]
    return max(found, key=lambda item: item[1].rate, default=None)


def _summary(card: Mapping[str, Any], groups: Mapping[str, Sequence[Row]]) -> Html:
    shown = []
    for knows, rows in groups.items():
        worst = _worst(rows)
        if worst is not None:
            note = f"{within(worst[1])}; {worst[0]}"
            shown.append(Tile(f"{knows}: worst SR@5", percent(worst[1]), note))
    clean = card.get("clean")
    if isinstance(clean, Mapping):
        for name, found in clean.items():
            share = counts(found)
            if share is not None:
                title = f"Clean images {str(name).replace('_', ' at ').replace('%', ' %')}"
                shown.append(Tile(title, percent(share), within(share)))
    text = (
        "SR@5 and SR@1: share of all attempts that fool the model and pass the guard at 5 % and "
        "1 % false positives; with 95 % Wilson intervals. Smaller is better."
    )
    return join((tiles(shown), paragraph(text, soft=True), _known(card)))


def _known(card: Mapping[str, Any]) -> Html:
    """Return the plain entries of the card: settings, sizes, versions."""
    plain = [
        (str(name).replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value))
        for name, value in card.items()
        if isinstance(value, (str, int, float))
        and not isinstance(value, bool)
        and name not in ("kind", "schema", "command")
    ]
    return facts(plain)


def _group(rows: Sequence[Row]) -> Html:
    marks = []
    for row in rows:
        shares = ((counts(row.get(SR_5)), ATTACKED, False), (counts(row.get(SR_1)), THIRD, True))
        own = [m for s, colour, hollow in shares if s for m in mark(s, colour, hollow=hollow)]
        marks.append((_name(row), own))
    key = legend(
        [
            ("SR@5, threshold at 5 %", dot_key(ATTACKED)),
            ("SR@1, threshold at 1 %", dot_key(THIRD, hollow=True)),
        ]
    )
    picture = figure(
        forest(marks, title="attempts that fool model and guard", label="Success rates"),
        "Lines: 95 % Wilson intervals.",
        key=key,
        wide=True,
    )
    names = [name for name in COLUMNS if any(counts(row.get(name)) for row in rows)]
    cells = [[_name(row), *(counts(row.get(name)) or "-" for name in names)] for row in rows]
    head = ("attack", *(COLUMNS[name] for name in names))
    return join((picture, table(head, cells, caption="With 95 % intervals in brackets")))


def _name(row: Row) -> str:
    levels, eps = row.get("levels"), row.get("eps")
    name = str(row.get("attack", row.get("title", "attack")))
    if isinstance(levels, (int, float)):
        return f"{name}, {levels:g}/255"
    if isinstance(eps, (int, float)):
        return f"{name}, {255 * eps:g}/255"
    return name


def _reproduce(card: Mapping[str, Any], command: str) -> Html:
    return join(
        (
            paragraph("The red team:"),
            command_lines(str(card.get("command", "(not stated in the card)"))),
            paragraph("This page:"),
            command_lines(command),
        )
    )
