"""Alarms a day: what rates mean where attacks are rare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import beta

from lrpguard.conformal import flagged_rank
from lrpguard.errors import ConfigurationError
from lrpguard.report.markup import Html, join, paragraph, table

PREVALENCES = (0.1, 0.01, 0.001, 1e-4, 1e-5)
"""Shares of attacks among the requests that stand beside the one asked for."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the guard will meet.

    Attributes:
        requests: Requests a day.
        prevalence: Share of them that are attacks which fool the model, in [0, 1].

    Raises:
        ConfigurationError: One is out of its range.
    """

    requests: float = 100_000
    prevalence: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.requests < 1e15:
            raise ConfigurationError(
                f"{self.requests:g} requests a day; expected a number above 0: "
                "--requests-per-day 100000"
            )
        if not 0 <= self.prevalence <= 1:
            raise ConfigurationError(
                f"the prevalence is {self.prevalence:g}; expected a share in [0, 1]: "
                "--prevalence 0.0001"
            )


@dataclass(frozen=True)
class Rate:
    """A rate with its 95 % interval, in [0, 1]."""

    value: float
    low: float
    high: float


def promised(alpha: float, n: int) -> Rate:
    """Return the false-positive rate that n calibration images give, with its 95 % band.

    Source: Vovk 2012 (the Beta law of the realised rate).
    """
    k = flagged_rank(n, alpha)
    if k < 1:
        return Rate(0.0, 0.0, 0.0)
    law = beta(k, n + 1 - k)
    return Rate(k / (n + 1), float(law.ppf(0.025)), float(law.ppf(0.975)))


def precision(prevalence: float, false: float, true: float) -> float | None:
    """Return the share of alarms that are attacks; None where there is no alarm.

    Args:
        prevalence: Share of attacks among the requests.
        false: False-positive rate.
        true: True-positive rate.
    """
    hits, mistakes = prevalence * true, (1 - prevalence) * false
    return hits / (hits + mistakes) if hits + mistakes > 0 else None


def false_alarms(false: Rate, traffic: Traffic) -> str:
    """Return how many clean requests of a day are flagged, with an interval."""
    clean = traffic.requests * (1 - traffic.prevalence)
    return (
        f"{_count(clean * false.value)} ({_count(clean * false.low)}-{_count(clean * false.high)})"
    )


def alarm_table(levels: Sequence[tuple[str, Rate, Rate]], traffic: Traffic) -> Html:
    """Return alarms a day and their precision, at the stated prevalence and at others.

    Args:
        levels: Name of the operating point, its false-positive and its true-positive rate.
        traffic: What is stated.
    """
    stated = traffic.prevalence
    rows = []
    for share in sorted({stated, *PREVALENCES}, reverse=True):
        for name, false, true in levels:
            here = Traffic(requests=traffic.requests, prevalence=share)
            rows.append(
                [
                    f"{_odds(share)}{' (stated)' if share == stated else ''}",
                    name,
                    false_alarms(false, here),
                    f"{_count(here.requests * share * true.value)} of "
                    f"{_count(here.requests * share)}",
                    _precision(share, false, true),
                ]
            )
    head = (
        "attacks",
        "threshold",
        "false alarms a day",
        "attacks noticed a day",
        "alarms that are attacks",
    )
    caption = f"{traffic.requests:,.0f} requests a day"
    note = (
        "In brackets the 95 % band of the false-positive rate; for the last column both rates at "
        "their worse and at their better ends. An attack here is one that fools the model; others "
        "are not counted."
    )
    return join((table(head, rows, caption=caption, words=2), paragraph(note, soft=True)))


def _precision(share: float, false: Rate, true: Rate) -> str:
    ends = (
        precision(share, false.value, true.value),
        precision(share, false.high, true.low),
        precision(share, false.low, true.high),
    )
    value, low, high = ("-" if end is None else _percent(end) for end in ends)
    return f"{value} % ({low}-{high})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.1f}"


def _odds(share: float) -> str:
    return "none" if share == 0 else f"1 in {1 / share:,.0f}" if share < 0.5 else f"{share:.0%}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.2g}"
