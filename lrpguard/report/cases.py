"""The best and the worst cases, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrpguard.evaluation.cards import Card
from lrpguard.evaluation.outcomes import GUARD, Attacked
from lrpguard.evaluation.summary import UNKNOWN
from lrpguard.report.markup import Html, join, paragraph, table, tag
from lrpguard.report.pictures import Panels
from lrpguard.report.runs import Judged

MOST = 3
"""Cases of one sort."""


@dataclass(frozen=True)
class Case:
    """One image under one attack.

    Attributes:
        attack: Name of the attack; None for a clean image.
        place: Position among the clean test images.
        index: Position in the data.
        digest: Digest of the clean image.
        label: True class.
        predicted: The model's class.
        final: Class after the guard, -1 where unknown.
        p_value: The guard's p-value.
    """

    attack: str | None
    place: int
    index: int
    digest: str
    label: int
    predicted: int
    final: int
    p_value: float


def chosen_cases(judged: Judged, *, alpha: float) -> dict[str, tuple[Case, ...]]:
    """Return the worst and the best cases of a run, worst first, each image once in a sort.

    Args:
        judged: Its rows.
        alpha: False-positive rate at which the guard flags.
    """
    attacked = [
        (case, float(attack.scores[GUARD][row]))
        for attack in judged.attacks
        for row in np.flatnonzero(attack.fooled)
        for case in (_case(judged, attack, int(row)),)
    ]
    clean = judged.clean
    flagged = np.flatnonzero(clean.p_values[GUARD] <= alpha)
    mistakes = [(_clean_case(judged, int(i)), float(clean.scores[GUARD][i])) for i in flagged]
    sorts = {
        "Worst: fooled the model, and passed the guard": (
            [(c, s) for c, s in attacked if c.p_value > alpha],
            1,
        ),
        "Worst: flagged, but restored to a wrong label": (
            [
                (c, s)
                for c, s in attacked
                if c.p_value <= alpha and c.final not in (c.label, UNKNOWN)
            ],
            1,
        ),
        "Worst: clean, but flagged": (mistakes, -1),
        "Best: flagged, and restored to the right label": (
            [(c, s) for c, s in attacked if c.p_value <= alpha and c.final == c.label],
            -1,
        ),
    }
    return {
        name: _first([case for case, _ in sorted(found, key=lambda item: sign * item[1])])
        for name, (found, sign) in sorts.items()
    }


def _first(cases: Sequence[Case]) -> tuple[Case, ...]:
    kept: dict[int, Case] = {}
    for case in cases:
        if len(kept) < MOST:
            kept.setdefault(case.place, case)
    return tuple(kept.values())


def _case(judged: Judged, attack: Attacked, row: int) -> Case:
    place = int(attack.positions[row])
    return Case(
        attack.name,
        place,
        judged.indices[place],
        judged.clean.digests[place],
        int(attack.labels[row]),
        int(attack.predicted[row]),
        int(attack.final[row]),
        float(attack.p_values[GUARD][row]),
    )


def _clean_case(judged: Judged, place: int) -> Case:
    clean = judged.clean
    return Case(
        None,
        place,
        judged.indices[place],
        clean.digests[place],
        int(clean.labels[place]),
        int(clean.predicted[place]),
        int(clean.final[place]),
        float(clean.p_values[GUARD][place]),
    )


def gallery(
    cases: Mapping[str, Sequence[Case]], card: Card, pictures: Mapping[Case, Panels]
) -> Html:
    """Return the cases, with pictures where there are some."""
    parts: list[Html] = []
    for name, found in cases.items():
        parts.append(tag("h3", name))
        if not found:
            parts.append(paragraph("None."))
        elif all(case in pictures for case in found):
            parts += [_shown(case, card, pictures[case]) for case in found]
        else:
            parts.append(_listed(name, found, card))
    if not pictures:
        parts.append(
            paragraph(
                "Without pictures: give the evaluation's --data and --model to see the images and "
                "their maps.",
                soft=True,
            )
        )
    return join(parts)


def _listed(name: str, cases: Sequence[Case], card: Card) -> Html:
    rows = [
        [
            f"{case.index} ({case.digest[:8]})",
            _attack(case, card),
            case.label,
            case.predicted,
            "unknown" if case.final == UNKNOWN else case.final,
            f"{case.p_value:.3g}",
        ]
        for case in cases
    ]
    head = ("image", "attack", "class", "model says", "after the guard", "p-value")
    return table(head, rows, caption=name, words=2, seen=False)


def _shown(case: Case, card: Card, panels: Panels) -> Html:
    final = "unknown" if case.final == UNKNOWN else str(case.final)
    said = (
        f"Image {case.index}, {_attack(case, card)}: class {case.label}, the model says "
        f"{case.predicted}, after the guard {final}; p = {case.p_value:.3g}."
    )
    figures = (
        tag(
            "figure", tag("img", src=panel.uri, alt=panel.caption), tag("figcaption", panel.caption)
        )
        for panel in panels.panels
    )
    return tag("div", paragraph(said), tag("div", *figures, class_="panels"), class_="case")


def _attack(case: Case, card: Card) -> str:
    if case.attack is None:
        return "not attacked"
    return next((str(e["title"]) for e in card["suite"] if e["name"] == case.attack), case.attack)
