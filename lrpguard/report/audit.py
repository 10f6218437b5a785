"""The report of an audit trail: what the service has seen and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from lrpguard.evaluation.metrics import proportion
from lrpguard.report.alarms import PREVALENCES, Traffic, precision
from lrpguard.report.axes import linear_axis, share_axis
from lrpguard.report.detection import figure, histogram
from lrpguard.report.flow import Node, flow
from lrpguard.report.markup import Html, code, command_lines, facts, join, paragraph, table
from lrpguard.report.page import Section, Tile, document, limits, tiles
from lrpguard.report.runs import AuditRun
from lrpguard.report.shares import percent, within
from lrpguard.report.svg import (
    ATTACKED,
    CLEAN,
    FOURTH,
    GREY,
    THIRD,
    Frame,
    chart,
    dot,
    line,
    stroke,
)

BLOCKS, LEAST = 24, 20
"""Most points of the flag rate over time, and fewest images behind one."""

MOST_CLIENTS = 10

Line = dict[str, Any]


def audit_report(run: AuditRun, *, traffic: Traffic, command: str) -> Html:
    """Return the page.

    Args:
        run: The trail.
        traffic: What the precision of alarms is counted for.
        command: How this page is made again.
    """
    verdicts = [line for line in run.records if line.get("event") == "verdict"]
    guarded = [line for line in verdicts if line["p_value"] is not None]
    distinct = list({line["image"]: line for line in guarded}.values())
    sections = [
        limits(_limits(run, verdicts, guarded)),
        Section("summary", "Summary", _summary(run, verdicts, guarded, distinct, traffic)),
    ]
    if distinct:
        sections += [
            Section("time", "Flags over time", _over_time(distinct)),
            Section("scores", "Scores of the traffic", _scores(distinct)),
        ]
    if verdicts:
        sections += [
            Section("outcomes", "What became of the requests", _outcomes(verdicts)),
            Section("clients", "Who was flagged most", _clients(guarded)),
            Section("stages", "How long it took", _stages(verdicts)),
        ]
    sections.append(Section("reproduce", "Check it", _reproduce(run, command)))
    title = f"Audit trail {run.name}"
    subtitle = f"From {_time(run.records[0])} to {_time(run.records[-1])}."
    return document(title, subtitle, sections)


def _limits(run: AuditRun, verdicts: Sequence[Line], guarded: Sequence[Line]) -> list[object]:
    points: list[object] = [
        "A flag says that an image is unusual, not that it is an attack. Nobody has told the trail "
        "which images were attacks: it has no rate of detection, and no false positives.",
        "What was not flagged may still be an attack: those that pass leave no mark here.",
    ]
    if not run.keyed:
        points.append(
            "The chain was checked without a key: whoever may write the folder could have written "
            "it anew. Give --key-file if the service has one."
        )
    unguarded = len(verdicts) - len(guarded)
    if unguarded:
        points.append(f"{unguarded} of {len(verdicts)} answers are the bare model's, unguarded.")
    return points


def _summary(
    run: AuditRun,
    verdicts: Sequence[Line],
    guarded: Sequence[Line],
    distinct: Sequence[Line],
    traffic: Traffic,
) -> Html:
    flagged = proportion(sum(bool(line["flagged"]) for line in distinct), len(distinct))
    alphas = sorted({float(line["alpha"]) for line in distinct})
    expected = ", ".join(f"{100 * alpha:g} %" for alpha in alphas)
    shown = [
        Tile("Verdicts", f"{len(verdicts):,}", f"{len(distinct):,} distinct images judged"),
        Tile(
            "Distinct images flagged",
            percent(flagged),
            f"{within(flagged)}; clean traffic: {expected}" if distinct else "none judged",
        ),
        Tile(
            "Unguarded answers",
            f"{len(verdicts) - len(guarded):,}",
            f"of {len(verdicts):,}",
        ),
        Tile("Chain", "whole", f"{run.chain.head.seq:,} lines in {run.chain.files} file(s)"),
    ]
    known = facts(
        [
            ("model", _all(verdicts, "fingerprint")),
            ("calibration", _all(verdicts, "calibration")),
            ("policy on flags", _all(verdicts, "on_flag")),
            ("lrpguard", _all(verdicts, "version")),
            ("noise key", _all(verdicts, "key")),
            ("near-duplicates", _near(verdicts)),
        ]
    )
    return join((tiles(shown), known, _meaning(flagged.rate, alphas, traffic)))


def _meaning(rate: float, alphas: Sequence[float], traffic: Traffic) -> Html | str:
    if len(alphas) != 1 or not rate > 0:
        return ""
    rows = [
        [f"1 in {1 / share:,.0f}", f"at most {100 * (precision(share, alphas[0], 1.0) or 0):.2g} %"]
        for share in sorted({*PREVALENCES, traffic.prevalence} - {0.0}, reverse=True)
    ]
    caption = "Share of alarms that are attacks, were every attack noticed"
    return table(("attacks among the requests", "alarms that are attacks"), rows, caption=caption)


def _near(verdicts: Sequence[Line]) -> str | None:
    near = [int(line["near_duplicates"]) for line in verdicts if "near_duplicates" in line]
    return f"at most {max(near)} of one image by one client" if near else None


def _over_time(distinct: Sequence[Line]) -> Html:
    alpha = float(distinct[-1]["alpha"])
    size = max(LEAST, -(-len(distinct) // BLOCKS))
    flags = [bool(line["flagged"]) for line in distinct]
    blocks = [flags[start : start + size] for start in range(0, len(flags), size)]
    shares = [proportion(sum(block), len(block)) for block in blocks]
    high = min(1.0, max(0.1, *(share.high for share in shares)))
    frame = Frame(
        linear_axis("distinct images, in order", len(distinct)),
        share_axis("flagged", high=float(np.ceil(high * 20) / 20)),
        width=720.0,
    )
    marks = [line(frame, [(0, alpha), (frame.x.high, alpha)], GREY, dash="dashed")]
    for number, share in enumerate(shares):
        x = frame.px(min(len(distinct), (number + 0.5) * size))
        marks += [
            stroke(x, frame.py(share.low), x, frame.py(share.high), f"line {CLEAN}"),
            dot(x, frame.py(share.rate), CLEAN),
        ]
    caption = (
        f"Share of flagged images in blocks of {size}, with 95 % Wilson intervals; dashed: "
        f"alpha = {alpha:g}, which clean traffic would show. From {_time(distinct[0])} to "
        f"{_time(distinct[-1])}. An image that came again counts once."
    )
    return figure(chart(frame, *marks, label="Flag rate over time"), caption, wide=True)


def _scores(distinct: Sequence[Line]) -> Html:
    scores = np.array([float(line["score"]) for line in distinct])
    thresholds = {line["threshold"] for line in distinct}
    only = thresholds.pop() if len(thresholds) == 1 else None
    threshold = None if only is None else float(only)  # early stopping has none
    picture = figure(
        histogram(scores, None, threshold, label="Scores of the traffic"),
        "Anomaly scores of the distinct images; what lies to the right of the dashed line is "
        "flagged.",
    )
    p_values = np.array([float(line["p_value"]) for line in distinct])
    frame = Frame(share_axis("alpha"), share_axis("images with p <= alpha"))
    levels = np.linspace(0, 1, 41)
    points = [(float(a), float((p_values <= a).mean())) for a in levels]
    marks = [
        line(frame, [(0, 0), (1, 1)], GREY, dash="dotted"),
        line(frame, points, CLEAN),
    ]
    reliability = figure(
        chart(frame, *marks, label="p-values of the traffic"),
        "Traffic like the calibration images lies on the dotted line. Above it on the left: more "
        "unusual images than there should be, by attack or by drift.",
    )
    return join((Html('<div class="charts">'), picture, reliability, Html("</div>")))


def _outcomes(verdicts: Sequence[Line]) -> Html:
    statuses = Counter(str(line["status"]) for line in verdicts)
    answers = "answers"
    colours = {
        "clean": THIRD,
        "restored": CLEAN,
        "unknown": FOURTH,
        "flagged": ATTACKED,
        "unguarded": GREY,
    }
    nodes = [Node(answers, 0, GREY), *(Node(name, 1, colour) for name, colour in colours.items())]
    links = {(answers, name): statuses[name] for name in colours}
    picture = figure(
        flow(nodes, links, label="What became of the requests"),
        "restored: flagged, and another label was found; unknown: flagged, and none was found.",
        wide=True,
    )
    reasons = Counter(str(line["reason"]) for line in verdicts if line["reason"] is not None)
    if not reasons:
        return picture
    rows = [[reason, count] for reason, count in reasons.most_common()]
    return join((picture, table(("unguarded because of", "answers"), rows, caption="Unguarded")))


def _clients(guarded: Sequence[Line]) -> Html:
    seen = Counter(str(line["client"]) for line in guarded)
    flagged = Counter(str(line["client"]) for line in guarded if line["flagged"])
    if not flagged:
        return paragraph("Nobody was flagged.")
    rows = [
        [code(client), proportion(count, seen[client])]
        for client, count in islice(flagged.most_common(), MOST_CLIENTS)
    ]
    caption = "Clients by a hash of their address, with 95 % Wilson intervals"
    return table(("client", "flagged"), rows, caption=caption)


def _stages(verdicts: Sequence[Line]) -> Html:
    times: dict[str, list[float]] = {}
    for record in verdicts:
        for stage, took in record["ms"].items():
            times.setdefault(str(stage), []).append(float(took))
    rows = [
        [stage, len(found), *(f"{np.quantile(found, q):.1f}" for q in (0.5, 0.95, 0.99))]
        for stage, found in times.items()
    ]
    head = ("stage", "images", "median, ms", "95 %", "99 %")
    return table(head, rows, caption="Milliseconds of each stage of a request")


def _reproduce(run: AuditRun, command: str) -> Html:
    return join(
        (
            command_lines(f"lrpguard audit verify {run.name}", command),
            facts(
                [("head of the chain", code(run.chain.head.hash)), ("torn bytes", run.chain.torn)]
            ),
            paragraph("Keep the head elsewhere: with it a trail that was cut off is found."),
        )
    )


def _all(lines: Sequence[Line], name: str) -> str | None:
    found = list(dict.fromkeys(str(line[name]) for line in lines if line.get(name) is not None))
    return ", ".join(value[:16] for value in found) or None


def _time(record: Line) -> str:
    return str(record.get("time", "an unknown time"))
