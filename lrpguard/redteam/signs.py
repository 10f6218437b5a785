"""Signs that a result flatters the guard: that an attack was blind, weak or cut short.

Source: Carlini et al. 2019, "On evaluating adversarial robustness"; the checks of AutoAttack (Croce
and Hein 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lrpguard.redteam.outcome import Row, rate
from lrpguard.redteam.plan import BLACK, GREY, STATIC, TRANSFER, WHITE

MARGIN = 0.1
"""Differences of a share that count: a few images of some tens are chance."""

BLIND = 0.05
"""Share of steps without a gradient that may be."""


def signs(rows: Sequence[Row], ignored: Sequence[str] = ()) -> list[str]:
    """Return what is suspicious about the rows of a red team, in words.

    Args:
        rows: Rows of the attacks.
        ignored: Scores of the detector that the attacks by gradient took for a clean image's.
    """
    found = [*_blind(rows), *_steps(rows), *_radii(rows), *_knowledge(rows)]
    if ignored:
        found.append(
            f"The attacks by gradient ignore the scores {', '.join(ignored)}: one that follows "
            "them can only do better."
        )
    return found


def _blind(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.get("blind", 0.0) > BLIND:
            yield (
                f"{_name(row)}: no gradient in {row['blind']:.0%} of the steps; the guard or the "
                "model may hide it."
            )
        if row.get("fell") is False:
            yield f"{_name(row)}: the loss did not fall from the first step to the last."


def _steps(rows: Sequence[Row]) -> Iterator[str]:
    """More steps of the same attack still help a lot, or do harm."""
    kinds = {(row["attack"], row["levels"]) for row in rows if row.get("sweep") == "steps"}
    several = (row for row in rows if (row["attack"], row["levels"]) in kinds)
    alike = (row for row in several if row.get("sweep") in (None, "steps"))
    swept = sorted(alike, key=lambda row: int(row["steps"]))
    for before, after in pairwise(swept):
        gain = rate(after) - rate(before)
        if gain < -MARGIN:
            yield (
                f"{_name(after)}: {after['steps']} steps do worse than {before['steps']} "
                f"(SR@5 {rate(after):.2f} against {rate(before):.2f})."
            )
    if len(swept) > 1 and rate(swept[-1]) - rate(swept[-2]) > MARGIN:
        yield (
            f"{_name(swept[-1])}: {swept[-1]['steps']} steps do better than {swept[-2]['steps']} "
            f"(SR@5 {rate(swept[-1]):.2f} against {rate(swept[-2]):.2f}): not converged, and more "
            "would do better still."
        )


def _radii(rows: Sequence[Row]) -> Iterator[str]:
    """A larger change of the same attack does worse."""
    kinds: dict[tuple[object, ...], list[Row]] = {_kind(row): [] for row in rows}
    for row in rows:
        if row.get("sweep") is None:
            kinds[_kind(row)].append(row)
    for several in kinds.values():
        ordered = sorted(several, key=lambda row: int(row["levels"]))
        for less, more in pairwise(ordered):
            adaptive = less["knows"] in (GREY, WHITE)
            if adaptive and rate(more) < rate(less) - MARGIN:
                yield (
                    f"{more['attack']}: {more['levels']}/255 does worse than {less['levels']}/255 "
                    f"(SR@5 {rate(more):.2f} against {rate(less):.2f}), as no strong attack does."
                )


def _knowledge(rows: Sequence[Row]) -> Iterator[str]:
    """An attacker who knows less does better, on the same change."""
    for levels in sorted({int(row["levels"]) for row in rows}):
        best = {
            knows: max((rate(row) for row in rows if _is(row, levels, knows)), default=None)
            for knows in (STATIC, BLACK, TRANSFER, GREY, WHITE)
        }
        adaptive = max((best[k] or 0.0 for k in (GREY, WHITE)), default=0.0)
        for knows in (STATIC, BLACK, TRANSFER):
            less = best[knows]
            if less is not None and less > adaptive + MARGIN:
                yield (
                    f"{levels}/255: {knows} attacks do better than those by gradient that know the "
                    f"guard (SR@5 {less:.2f} against {adaptive:.2f}): the latter are weak or blind."
                )


def _is(row: Row, levels: int, knows: str) -> bool:
    return int(row["levels"]) == levels and row["knows"] == knows


def _kind(row: Row) -> tuple[object, ...]:
    return row["attack"], row["knows"], row["steps"], row["copies"]


def _name(row: Row) -> str:
    return f"{row['attack']}, {row['levels']}/255"
