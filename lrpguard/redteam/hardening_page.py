"""Cards of hardened guards, and of the robust classifier, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lrpguard.evaluation.metrics import Proportion, proportion

Card = Mapping[str, Any]

HEAD = (
    "| eps | guard | clean flagged | SR@5, its own attack | SR@5, any attempt | SR@1, any attempt "
    "| fool the model, none passes | passes a step | median steps |"
)


def hardening_section(card: Card) -> list[str]:
    """Return the lines of one measurement of hardened guards."""
    steps = f"{card['steps']} steps of {card['copies']} copies of each noise"
    return [
        f"## Hardening: {card['model']}",
        "",
        f"`{card['command']}`",
        "",
        f"{card['data']}: {card['guard_n']} clean images calibrate the guard, {card['fit_n']} "
        f"others put the signals on one scale, {card['calibration_n']} others calibrate every "
        f"variant at one false-positive rate; {card['test']} others are the test, of which "
        f"{card['right']} are classified right and attacked. Seed {card['seed']}, n = {card['n']}, "
        f"sigma = {card['sigma']:g}. Each variant is attacked by what follows all its signals, "
        f"{' and '.join(card['manners'])}, {steps}, the key unknown; of each image the attempt "
        "that passes best counts. *Any attempt* takes the best of all attacks made for any "
        f"variant, and of plain PGD. In brackets 95 % Wilson intervals. {card['minutes']:g} "
        f"minutes; lrpguard {card['version']}, torch {card['torch']}.",
        "",
        HEAD,
        "|" + " --- |" * (HEAD.count("|") - 1),
        *_lines(card),
        "",
    ]


def robust_section(card: Card) -> list[str]:
    """Return the lines on an adversarially trained classifier."""
    return [
        f"## The adversarially trained classifier: {card['model'].rpartition(':')[2]}",
        "",
        f"`{card['command']}`",
        "",
        f"Trained on {card['train']}, {len(card['epochs'])} epochs, {card['minutes']:g} minutes, "
        f"seed {card['seed']}; weights in docs/results. On {card['test']}: clean "
        f"{_share(card['clean'])} right; after {card['attack']}, {card['levels']}/255, "
        f"{_share(card['robust'])} right.",
        "",
    ]


def _lines(card: Card) -> Iterator[str]:
    for row in card["rows"]:
        cells = [f"{row['levels']}/255", row["variant"]]
        if "sr" in row:
            cells += ["-", "-", _number(row["sr"]), "-", "-", "-", "-"]
        else:
            cells += [
                _share(card["clean"][row["variant"]]["flagged_5%"]),
                _number(row["own_5%"]),
                _number(row["sr_5%"]),
                _number(row["sr_1%"]),
                _share(row["saved_5%"]),
                str(row["passes"]),
                f"{row['taken']:g}",
            ]
        yield "| " + " | ".join(cells) + " |"


def _share(counts: tuple[int, int]) -> str:
    return str(proportion(*counts))


def _number(counts: tuple[int, int]) -> str:
    share: Proportion = proportion(*counts)
    return f"{share.rate:.2f} ({share.low:.2f}-{share.high:.2f})"
