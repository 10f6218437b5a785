"""Markdown from the card of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lrpguard.calibrator import FIT_SHARE
from lrpguard.conformal import card_images_text
from lrpguard.copies import PLAIN
from lrpguard.evaluation.cards import Card, card_title, is_attacked
from lrpguard.evaluation.metrics import proportion
from lrpguard.evaluation.outcomes import GUARD

LEGEND = """\
*Successful*: right before the attack, wrong after it, in 8 bits. *Detected*: conformal p-value at
most 5 % (or 1 %), calibrated on clean images alone. *SR@5*: share of the attempts that fool the
model and pass the guard. *Restored*: of the successful attacks, those whose final label is right.
*Worst per sample*: for each image, whichever attack serves the attacker best. Shares carry 95 %
Wilson intervals; means, areas and differences those of a bootstrap over images, the calibration
held as it is; where all resamples agree it has no width, and bounds nothing. The attacks are
static: they know the model, and not the guard."""


RESTORATIONS = """\
*Told*: every successful attack is known to be one, and the restoration gives a label other than the
predicted one; *end to end*: only where the guard flags at 5 %. Both are means over the attacks. The
guard answers `unknown` where it lacks evidence, the others always replace the label: *harm* is
what that does to right clean images, of all. *Passes* are those beyond the guard's own."""


TRAINED = """\
These detectors were fitted with attacks; their thresholds, too, come from clean images alone. *Saw*
names the families that they were fitted with, and all of their kind. The figures are means over
the other attacks alone."""


RESUMED = 5
"""Seconds of a calibration below which its scores were there before."""


def results_page(cards: Sequence[Card], *, notes: str = "") -> str:
    """Return the page of all cards.

    Args:
        cards: Evaluations, in the order of the page.
        notes: What people wrote about them; it stands first.
    """
    parts = [
        "# Results",
        "Made by `python scripts/make_results.py` from the cards in `docs/results/`; do not edit.",
        *([notes.strip()] if notes.strip() else []),
        "## How to read the tables",
        LEGEND,
    ]
    for card in cards:
        parts += [f"## {card_title(card)}", run_facts(card), card_tables(card)]
    return "\n\n".join(parts) + "\n"


def card_tables(card: Card) -> str:
    """Return all tables of one card, under headings of the third level."""
    if not is_attacked(card):
        return f"### Clean images and controls\n\n{control_table(card)}"
    parts: list[tuple[str, ...]] = [
        ("### Attack by attack", attack_table(card)),
        ("### Beside other detectors", baseline_table(card)),
        ("### Detected at 5 %, of the successful, by every detector", by_attack_table(card)),
        ("### Clean images and controls", control_table(card)),
    ]
    if card["results"].get("restorations"):
        parts += [
            ("### Restorations side by side", RESTORATIONS, restoration_table(card)),
            (
                "### Right label when told, in per cent of the successful, by every restoration",
                restoration_by_attack_table(card),
            ),
        ]
    if card["results"].get("unseen"):
        parts.insert(2, ("### Trained on attacks", TRAINED, trained_table(card)))
    return "\n\n".join(text for part in parts for text in part)


def attack_table(card: Card) -> str:
    """Return what the guard does at each attack, and at the worst for each sample."""
    results = card["results"]
    rows = [_attack_cells(titles(card)[name], found) for name, found in results["attacks"].items()]
    worst = results["per_sample"]
    own = worst["detectors"][GUARD]
    rows.append(
        [
            "**worst per sample**",
            share(worst["success"]),
            share(own["5"]["tpr"]),
            share(own["1"]["tpr"]),
            "-",
            value(own["auroc"]),
            share(own["5"]["sr"]),
            share(own["1"]["sr"]),
            share(worst["restored_of_success"]),
            "-",
        ]
    )
    suite = results["suite"]["detectors"][GUARD]
    mean_5, mean_1 = percent(suite["5"]["mean_tpr"]), percent(suite["1"]["mean_tpr"])
    rows.append(
        ["**mean over attacks**", "-", mean_5, mean_1, "-", value(suite["auroc"]), *["-"] * 4]
    )
    head = (
        "attack",
        "success",
        "detected at 5 %, of successful",
        "at 1 %",
        "at 5 %, of attempts",
        "AUROC",
        "SR@5",
        "SR@1",
        "restored, of successful",
        "final label right, of attempts",
    )
    return markdown(head, rows)


def _attack_cells(title: str, found: Mapping[str, Any]) -> list[str]:
    own = found["detectors"][GUARD]
    return [
        title,
        share(found["success"]),
        share(own["5"]["tpr"]),
        share(own["1"]["tpr"]),
        share(own["5"]["tpr_attempts"]),
        value(own["auroc"]),
        share(own["5"]["sr"]),
        share(own["1"]["sr"]),
        share(found["restored_of_success"]),
        share(found["accuracy_guarded"]),
    ]


def baseline_table(card: Card) -> str:
    """Return the guard beside the baselines: means, worst cases, and the paired difference."""
    results = card["results"]
    suite, per_sample = results["suite"], results["per_sample"]["detectors"]
    trained = results.get("unseen", {})
    rows = []
    for name, found in suite["detectors"].items():
        if name in trained:
            continue
        worst = found["5"]["worst"]
        ahead = suite["guard_ahead_of"].get(name)
        fpr = results["clean"]["fpr"][name]["5"]
        rows.append(
            [
                _detector_title(card, name),
                percent(found["5"]["mean_tpr"]),
                percent(found["1"]["mean_tpr"]),
                value(found["auroc"]),
                "-" if worst is None else f"{share(worst)} ({titles(card)[worst['attack']]})",
                share(per_sample[name]["5"]["tpr"]),
                share(per_sample[name]["5"]["sr"]),
                share(fpr),
                "-" if ahead is None else percent(ahead["5"]),
            ]
        )
    head = (
        "detector",
        "mean detected at 5 %",
        "at 1 %",
        "mean AUROC",
        "worst attack",
        "worst per sample",
        "SR@5, worst per sample",
        "clean flagged at 5 %",
        "guard ahead by, paired",
    )
    return markdown(head, rows)


def trained_table(card: Card) -> str:
    """Return the detectors that were fitted with attacks, on those that they did not see."""
    rows = []
    for name, found in card["results"]["unseen"].items():
        at_5, worst = found["5"], found["5"]["worst"]
        rows.append(
            [
                name,
                ", ".join(card["baselines"][name]["saw"]),
                str(len(found["attacks"])),
                percent(at_5["mean_tpr"]),
                percent(found["1"]["mean_tpr"]),
                "-" if worst is None else f"{share(worst)} ({titles(card)[worst['attack']]})",
                share(card["results"]["clean"]["fpr"][name]["5"]),
                percent(at_5["guard_mean_tpr"]),
                percent(at_5["guard_ahead"]),
            ]
        )
    head = (
        "detector",
        "saw",
        "unseen attacks",
        "mean detected at 5 %",
        "at 1 %",
        "worst attack",
        "clean flagged at 5 %",
        "guard on the same, at 5 %",
        "guard ahead by, paired",
    )
    return markdown(head, rows)


def by_attack_table(card: Card) -> str:
    """Return the share of successful attacks that each detector notices at 5 %.

    Attacks that a detector was fitted with, or their kin, are marked.
    """
    names = list(card["results"]["suite"]["detectors"])
    trained = card["results"].get("unseen", {})

    def cell(attack: str, name: str, found: Mapping[str, Any]) -> str:
        seen = attack in trained[name]["seen"] if name in trained else False
        return _rate(found["5"]["tpr"]) + (" (seen)" if seen else "")

    rows = [
        [titles(card)[attack], *(cell(attack, name, found["detectors"][name]) for name in names)]
        for attack, found in card["results"]["attacks"].items()
    ]
    heads = [f"{name} (trained)" if name in trained else name for name in names]
    return markdown(("attack", *heads), rows)


def restoration_table(card: Card) -> str:
    """Return what every restoration makes of the attacks, on average, and of clean images."""
    results = card["results"]
    found, own = results["restorations"], results["restorations"]["suite"][GUARD]
    harm = share(results["clean"]["harm_wrong"])
    rows = [["**lrpguard**, as it answers", "-", percent(own["flagged"]), "-", harm, "none"]]
    rows += [
        [
            _restoration_title(card, name),
            percent(means["told"]),
            percent(means["flagged"]),
            percent(means["guard_ahead"]),
            share(found["clean_harm"][name]),
            card["restorations"].get(name, {"passes": "those of the detector"})["passes"],
        ]
        for name, means in found["suite"].items()
        if name != GUARD
    ]
    head = ("restoration", "told", "end to end", "guard ahead by, paired", "harm", "passes")
    return markdown(head, rows)


def restoration_by_attack_table(card: Card) -> str:
    """Return how often each restoration gives the right label, attack by attack."""
    found = card["results"]["restorations"]["attacks"]
    names = [name for name in card["results"]["restorations"]["suite"] if name != GUARD]
    rows = [
        [
            titles(card)[attack],
            _short(shares[GUARD]["flagged"]),
            *(_short(shares[name]["told"]) for name in names),
        ]
        for attack, shares in found.items()
    ]
    return markdown(("attack", "guard, end to end", *names), rows)


def _restoration_title(card: Card, name: str) -> str:
    about = card["restorations"].get(name)
    if about is None:
        return f"`{name}`, which detects, too"
    return f"{about['title']} (`{name}`{', control' if about['control'] else ''})"


def control_table(card: Card) -> str:
    """Return what happens to clean images and to those that nobody attacked."""
    clean, controls = card["results"]["clean"], card["results"]["controls"]
    fpr = clean["fpr"][GUARD]
    bands = {
        key: "{:.1f}-{:.1f} %".format(*(100 * end for end in found["band"]))
        for key, found in fpr.items()
    }
    rows = [
        [
            "clean",
            f"{share(fpr['5'])}; expected {bands['5']}",
            f"{share(fpr['1'])}; expected {bands['1']}",
            *_labels_kept(clean),
        ]
    ]
    rows += [
        [
            titles(card)[name],
            share(found["flagged"][GUARD]["5"]),
            share(found["flagged"][GUARD]["1"]),
            *_labels_kept(found),
        ]
        for name, found in controls.items()
    ]
    head = (
        "images",
        "flagged at 5 %",
        "flagged at 1 %",
        "model right",
        "right after the guard",
        "right label made wrong",
        "right label made `unknown`",
    )
    return markdown(head, rows)


def _labels_kept(found: Mapping[str, Any]) -> list[str]:
    """Return what became of the labels of images that nobody attacked."""
    counted = ("accuracy", "accuracy_guarded", "harm_wrong", "harm_unknown")
    return [share(found[name]) for name in counted]


def run_facts(card: Card) -> str:
    """Return how the card was made: command, sizes, seeds, time, versions."""
    guard, splits, seconds = card["guard"], card["splits"], card["seconds"]
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    attack_minutes = sum(seconds["attacks"].values()) / 60
    used = card_images_text(guard)
    way = guard.get("way", str(PLAIN))  # earlier cards knew no other
    told = "" if way == str(PLAIN) else f", copies {way}"
    others = ""
    if card["baselines"] and guard.get("crossed", False):
        fit = round(FIT_SHARE * splits["pool"]["n"])
        others = f"; of the other detectors {fit} fit, {splits['pool']['n'] - fit} calibrate"
    calibrated = f"{seconds['calibrate'] / 60:.0f} min"
    if seconds["calibrate"] < RESUMED:
        calibrated = "resumed from earlier scores"
    return (
        f"    {card.get('command', '(called from Python)')}\n\n"
        f"Clean pool {splits['pool']['n']} ({used}{others}), {splits['test']['n']} test images, "
        f"indices and digests in the card; seed {card['seed']}. Detector "
        f"`{guard['detector']}`, n = {guard['n']}, sigma = {guard['sigma']:g}{told}. Attacks "
        f"{attack_minutes:.0f} min, calibration {calibrated}, verdicts of "
        f"the guard {seconds['judge'] / 60:.0f} min, on {card['threads']} thread(s). {versions}."
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def titles(card: Card) -> dict[str, str]:
    """Return the title of each attack, by its name."""
    return {entry["name"]: entry["title"] for entry in card["suite"]}


def _detector_title(card: Card, name: str) -> str:
    if name == GUARD:
        return f"**lrpguard** (`{card['guard']['detector']}`)"
    trained = "" if card["baselines"][name]["attack_free"] else " (trained on attacks)"
    return f"{name}{trained}"


def share(found: Mapping[str, Any]) -> str:
    """Return a share in per cent, with its Wilson interval and counts."""
    return str(proportion(found["successes"], found["n"]))


def _rate(found: Mapping[str, Any]) -> str:
    return f"{100 * found['successes'] / found['n']:.0f} %" if found["n"] else "-"


def _short(found: Mapping[str, Any]) -> str:
    """Return a share in whole per cent, with its interval."""
    if not found["n"]:
        return "-"
    value = 100 * found["successes"] / found["n"]
    return f"{value:.0f} ({100 * found['low']:.0f}-{100 * found['high']:.0f})"


def value(found: Mapping[str, Any]) -> str:
    """Return a number with its interval; a dash where there is none."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def percent(found: Mapping[str, Any]) -> str:
    """Return a mean share in per cent, with its interval; a dash where there is none."""
    if found["value"] is None:
        return "-"
    value, low, high = (100 * found[end] for end in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"
