"""Counts of cards, as shares with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrpguard.evaluation.metrics import Proportion, proportion

Record = Mapping[str, Any]


def share(found: Record) -> Proportion:
    """Return a share of a card, with its Wilson interval counted anew."""
    return proportion(int(found["successes"]), int(found["n"]))


def percent(found: Proportion) -> str:
    """Return the share alone, for people."""
    return f"{100 * found.rate:.1f} %" if found.n else "-"


def within(found: Proportion) -> str:
    """Return the interval of a share, and of how many it is."""
    if not found.n:
        return "none"
    return f"{100 * found.low:.1f}-{100 * found.high:.1f} %, {found.successes} of {found.n}"


def value(found: Record, *, scale: float = 1.0, digits: int = 3) -> str:
    """Return a mean or an area with its bootstrap interval, for people."""
    if found["value"] is None:
        return "-"
    here, low, high = (
        f"{scale * float(found[end]):.{digits}f}" for end in ("value", "low", "high")
    )
    return f"{here} ({low}-{high})"
