"""What an evaluation says of detection: distributions, ROC, reliability, attack by attack."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lrpguard.evaluation.cards import Card
from lrpguard.evaluation.outcomes import GUARD, Attacked, Clean
from lrpguard.evaluation.summary import fpr_band
from lrpguard.report.axes import Floats, linear_axis, score_axis, share_axis
from lrpguard.report.curves import Curve, reliability, roc, worst_per_sample
from lrpguard.report.forest import Mark, forest, mark
from lrpguard.report.markup import Html, folded, join, paragraph, table, tag
from lrpguard.report.runs import Judged
from lrpguard.report.shares import share, value
from lrpguard.report.svg import (
    ATTACKED,
    CLEAN,
    FOURTH,
    THIRD,
    Frame,
    band,
    bar_key,
    bars,
    chart,
    dot,
    dot_key,
    legend,
    line,
    line_key,
    stroke,
    vertical,
)

BINS = 36

_EPS = re.compile(r"\s*[\d.]+/255")


def figure(picture: Html, caption: object, *, key: Html | None = None, wide: bool = False) -> Html:
    """Return a picture with its legend and its caption; a wide one scrolls on a phone."""
    shown = tag(
        "div",
        picture,
        class_="chart wide-chart" if wide else "chart",
        **({"tabindex": "0", "role": "group", "aria_label": "Chart"} if wide else {}),
    )
    return tag("figure", key, shown, tag("figcaption", caption))


def distributions(judged: Judged, card: Card) -> Html:
    """Return the scores of clean images against those of each successful attack."""
    clean = judged.clean.scores[GUARD]
    worked = [attack for attack in judged.attacks if attack.fooled.any()]
    if not worked:
        return paragraph("No attack fooled the model: there is nothing to tell apart.")
    parts = [attack.scores[GUARD][attack.fooled] for attack in worked]
    pooled = np.concatenate(parts)
    key = legend(
        [
            (f"clean, {len(clean)}", bar_key(CLEAN)),
            ("attacked, and fooling the model", bar_key(ATTACKED)),
            ("flagged to the right of it", _limit_key()),
        ]
    )
    threshold = _threshold(judged, float(card["guard"]["alpha"]))
    whole = figure(
        histogram(clean, pooled, threshold, label="Scores of clean and of attacked images"),
        f"Anomaly score of the guard: clean test images, and all {len(pooled)} successful attempts "
        "of all attacks together. Each colour adds up to 100 %. The axis is linear near 0 and "
        "logarithmic beyond.",
        key=key,
    )
    each = [
        figure(
            histogram(clean, scores, threshold, label=f"Scores under {_title(card, attack.name)}"),
            f"{_title(card, attack.name)}: {len(scores)} successful",
        )
        for attack, scores in zip(worked, parts, strict=True)
    ]
    return join((whole, folded("Attack by attack", tag("div", *each, class_="charts"))))


def histogram(clean: Floats, other: Floats | None, threshold: float | None, *, label: str) -> Html:
    """Return histograms of scores; each adds up to 1."""
    axis = score_axis("anomaly score", [clean] if other is None else [clean, other])
    edges = axis.edges(BINS)
    heights = [_heights(scores, edges) for scores in (clean, other) if scores is not None]
    frame = Frame(axis, share_axis("share of images", high=_round(max(h.max() for h in heights))))
    marks = [
        bars(frame, edges.tolist(), shown.tolist(), colour)
        for shown, colour in zip(heights, (CLEAN, ATTACKED), strict=False)
    ]
    if threshold is not None and axis.low < threshold < axis.high:
        marks.append(vertical(frame, threshold))
    return chart(frame, *marks, label=label)


def _heights(scores: Floats, edges: Floats) -> Floats:
    counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
    return np.asarray(counts / max(len(scores), 1), dtype=np.float64)


def _round(high: float) -> float:
    return next((step for step in (0.05, 0.1, 0.2, 0.25, 0.5) if high <= step), 1.0)


def _limit_key() -> Html:
    mark = stroke(13, 0, 13, 12, "limit")
    return tag("svg", mark, viewBox="0 0 26 12", aria_hidden="true")


def _threshold(judged: Judged, alpha: float) -> float | None:
    """Return a score between those that are flagged and those that are not, from the rows."""
    parts: tuple[Clean | Attacked, ...] = (judged.clean, *judged.attacks)
    scores = np.concatenate([part.scores[GUARD] for part in parts])
    flagged = np.concatenate([part.p_values[GUARD] for part in parts]) <= alpha
    if flagged.all() or not flagged.any():
        return None
    return float((scores[flagged].min() + scores[~flagged].max()) / 2)


def roc_curves(judged: Judged, card: Card) -> Html:
    """Return the ROC curves of the guard, with bands and the operating point."""
    worked = [attack for attack in judged.attacks if attack.fooled.any()]
    least = worst_per_sample(judged.clean, judged.attacks)
    if least is None:
        return paragraph("No attack fooled the model: there is no curve.")
    seed = int(card["seed"])
    curves = [("mean over attacks", ATTACKED, "", roc(judged.clean, worked, GUARD, seed=seed))]
    if len(worked) > 1:
        curves.append(
            ("worst attack for each image", FOURTH, "dashed", _of_one(judged, least, seed))
        )
    point = _operating(card)
    key = legend(
        [
            *((name, line_key(colour, dash)) for name, colour, dash, _ in curves),
            ("operating points at 5 % and 1 %, measured", dot_key(CLEAN)),
        ]
    )
    pictures = [
        _roc_chart(curves, point, high=high, label=f"ROC curve up to {high:.0%} false positives")
        for high in (0.1, 1.0)
    ]
    alpha = float(card["guard"]["alpha"])
    caption = (
        "True positives: successful attacks. False positives: clean test images. Bands: 95 %, "
        "bootstrap over images, pointwise. Dots: what the calibrated thresholds did on these "
        f"images, with 95 % intervals; the guard flags at alpha = {alpha:g}. Left: the part that "
        "one can afford."
    )
    shown = tag("div", *(figure(picture, "") for picture in pictures), class_="charts")
    return join((key, shown, paragraph(caption, soft=True)))


def _of_one(judged: Judged, attack: Attacked, seed: int) -> Curve:
    return roc(judged.clean, [attack], GUARD, seed=seed)


def _operating(card: Card) -> list[tuple[Mark, Mark]]:
    results = card["results"]
    found = []
    for level in ("5", "1"):
        false = share(results["clean"]["fpr"][GUARD][level])
        mean = results["suite"]["detectors"][GUARD][level]["mean_tpr"]
        if false.n and mean["value"] is not None:
            true = Mark(float(mean["value"]), float(mean["low"]), float(mean["high"]), CLEAN)
            found.append((Mark(false.rate, false.low, false.high, CLEAN), true))
    return found


def _roc_chart(
    curves: Sequence[tuple[str, str, str, Curve]],
    operating: Sequence[tuple[Mark, Mark]],
    *,
    high: float,
    label: str,
) -> Html:
    frame = Frame(
        share_axis("clean images flagged", high=high), share_axis("successful attacks flagged")
    )
    marks = [line(frame, [(0, 0), (high, high)], "grey", dash="dotted")]
    for _, colour, dash, curve in curves:
        inside = curve.x <= high + 1e-9
        part = Curve(curve.x[inside], curve.y[inside], curve.low[inside], curve.high[inside])
        marks += [
            band(frame, part.points("low"), part.points("high"), colour),
            line(frame, part.points(), colour, dash=dash),
        ]
    for false, true in operating:
        x, y = frame.px(false.value), frame.py(true.value)
        marks += [
            stroke(frame.px(false.low), y, frame.px(false.high), y, f"line {CLEAN}"),
            stroke(x, frame.py(true.low), x, frame.py(true.high), f"line {CLEAN}"),
            dot(x, y, CLEAN),
        ]
    return chart(frame, *marks, label=label)


def reliability_chart(p_values: Floats, calibration_n: int, *, what: str) -> Html:
    """Return how often p-values were as small as they say.

    Args:
        p_values: Of images that are taken to be clean [n].
        calibration_n: Calibration images behind them.
        what: What these images are called.
    """
    n = len(p_values)
    curve = reliability(p_values, lambda level: fpr_band(calibration_n, n, level))
    frame = Frame(share_axis("alpha"), share_axis(f"{what} with p <= alpha"))
    marks = [
        band(frame, curve.points("low"), curve.points("high"), CLEAN),
        line(frame, [(0, 0), (1, 1)], "grey", dash="dotted"),
        line(frame, [(0.0, 0.0), *curve.points()], CLEAN),
    ]
    outside = int(((curve.y < curve.low) | (curve.y > curve.high)).sum())
    said = (
        "within the band throughout"
        if not outside
        else f"outside at {outside} of {len(curve.x)} points"
    )
    key = legend(
        [("measured", line_key(CLEAN)), ("95 % band, if p-values are valid", bar_key(CLEAN))]
    )
    caption = (
        f"Share of {n} {what} whose p-value is at most alpha; {said}. The band is pointwise, "
        f"with the uncertainty of {calibration_n} calibration images in it."
    )
    return figure(chart(frame, *marks, label="Reliability of p-values"), caption, key=key)


def by_attack(card: Card) -> Html:
    """Return the share of each successful attack that is flagged, at 5 % and at 1 %."""
    rows = []
    for name, found in card["results"]["attacks"].items():
        own = found["detectors"][GUARD]
        marks = [
            *mark(share(own["5"]["tpr"]), ATTACKED),
            *mark(share(own["1"]["tpr"]), THIRD, hollow=True),
        ]
        rows.append((_title(card, name), marks))
    for name, found in card["results"]["controls"].items():
        own = found["flagged"][GUARD]
        marks = [*mark(share(own["5"]), CLEAN), *mark(share(own["1"]), THIRD, hollow=True)]
        rows.append((f"{_title(card, name)} (no attack)", marks))
    key = legend(
        [
            ("flagged at 5 %, of successful attacks", dot_key(ATTACKED)),
            ("flagged at 5 %, though nobody attacked", dot_key(CLEAN)),
            ("at 1 %", dot_key(THIRD, hollow=True)),
        ]
    )
    return figure(
        forest(rows, title="flagged", label="Detection by attack"),
        "Lines: 95 % Wilson intervals. An attack that no image fell for has no mark.",
        key=key,
        wide=True,
    )


def by_eps(card: Card) -> Html | None:
    """Return detection against the size of the change, None where no attack has two sizes."""
    suite = [e for e in card["suite"] if e["adversarial"] and e["norm"] == "linf" and e["eps"]]
    series: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(suite, key=lambda entry: float(entry["eps"])):
        series.setdefault(_EPS.sub("", str(entry["title"])), []).append(entry)
    lines = [(name, entries) for name, entries in series.items() if len(entries) > 1]
    if not lines:
        return None
    high = max(255 * float(entry["eps"]) for _, entries in lines for entry in entries)
    frame = Frame(
        linear_axis("eps, of 255", high), share_axis("successful attacks flagged"), width=560.0
    )
    styles = [(c, d) for d in ("", "dashed", "dotted") for c in (ATTACKED, CLEAN, THIRD, FOURTH)]
    marks, entries_of_key = [], []
    for number, ((name, entries), (colour, dash)) in enumerate(zip(lines, styles, strict=False)):
        points = [
            (255 * float(e["eps"]), share(_own(card, e["name"])["5"]["tpr"])) for e in entries
        ]
        known = [(x, found) for x, found in points if found.n]
        marks.append(line(frame, [(x, found.rate) for x, found in known], colour, dash=dash))
        for x, found in known:
            place = frame.px(x) + 5 * (number - (len(lines) - 1) / 2)  # side by side
            low, high_end = frame.py(found.low), frame.py(found.high)
            marks += [
                stroke(place, low, place, high_end, f"line {colour}"),
                dot(place, frame.py(found.rate), colour),
            ]
        entries_of_key.append((name, line_key(colour, dash)))
    caption = (
        "Attacks bounded in the largest change of a pixel, flagged at 5 %, with 95 % Wilson "
        "intervals. A small change is hard to notice, and so may be a very large one."
    )
    picture = chart(frame, *marks, label="Detection against eps")
    return figure(picture, caption, key=legend(entries_of_key), wide=True)


def attack_table(card: Card) -> Html:
    """Return all figures of each attack."""
    rows = []
    for name, found in card["results"]["attacks"].items():
        own = found["detectors"][GUARD]
        rows.append(
            [
                _title(card, name),
                share(found["success"]),
                share(own["5"]["tpr"]),
                share(own["1"]["tpr"]),
                share(own["5"]["sr"]),
                share(own["1"]["sr"]),
                value(own["auroc"]),
                share(found["restored_of_success"]),
            ]
        )
    head = (
        "attack",
        "fools the model",
        "flagged at 5 %, of successful",
        "at 1 %",
        "SR@5: fools model and guard",
        "SR@1",
        "AUROC",
        "restored right, of successful",
    )
    caption = "Attack by attack; 95 % intervals in brackets"
    return folded("All figures as a table", table(head, rows, caption=caption))


def beside(card: Card) -> Html | None:
    """Return the guard beside the baselines, None where there are none."""
    suite = card["results"]["suite"]["detectors"]
    if len(suite) < 2:
        return None
    rows, lines = [], []
    for name, found in suite.items():
        mean = found["5"]["mean_tpr"]
        per_sample = card["results"]["per_sample"]["detectors"][name]["5"]
        title = "lrpguard" if name == GUARD else name
        if name != GUARD and not card["baselines"][name]["attack_free"]:
            title += " (saw attacks)"
        if mean["value"] is not None:
            here, low, high = (float(mean[end]) for end in ("value", "low", "high"))
            colour = ATTACKED if name == GUARD else CLEAN
            rows.append((title, [Mark(here, low, high, colour)]))
        lines.append(
            [
                title,
                value(mean, scale=100, digits=1),
                value(found["auroc"]),
                share(per_sample["tpr"]),
                share(card["results"]["clean"]["fpr"][name]["5"]),
            ]
        )
    head = (
        "detector",
        "mean flagged at 5 %, %",
        "mean AUROC",
        "worst attack per image",
        "clean flagged",
    )
    caption = "On the same images, with thresholds from the same clean images"
    picture = forest(rows, title="flagged at 5 %, mean over attacks", label="Detectors compared")
    return join((figure(picture, "", wide=True), table(head, lines, caption=caption)))


def _own(card: Card, name: str) -> dict[str, Any]:
    return dict(card["results"]["attacks"][name]["detectors"][GUARD])


def _title(card: Card, name: str) -> str:
    return next((str(e["title"]) for e in card["suite"] if e["name"] == name), name)
