"""Axes: from values to places in a picture, with ticks a person would choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low: Value at its beginning.
        high: Value at its end.
        title: What it shows.
        ticks: Values that are marked, with what stands there.
        bend: Values below which the axis is linear, and beyond which logarithmic (both ways);
            None for a linear axis.
    """

    low: float
    high: float
    title: str
    ticks: tuple[tuple[float, str], ...]
    bend: float | None = None

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at the beginning and 1 at the end; within both."""
        low, here, high = (self.bent(v) for v in (self.low, value, self.high))
        return min(1.0, max(0.0, (here - low) / (high - low)))

    def bent(self, value: float) -> float:
        """Return a value on the scale on which the axis is even."""
        return value if self.bend is None else math.asinh(value / self.bend)

    def edges(self, bins: int) -> Floats:
        """Return the edges of bins that are equally wide in the picture, ascending [bins + 1]."""
        even = np.linspace(self.bent(self.low), self.bent(self.high), bins + 1)
        edges = even if self.bend is None else self.bend * np.sinh(even)
        edges[0], edges[-1] = self.low, self.high
        return np.asarray(edges, dtype=np.float64)


def share_axis(title: str, *, high: float = 1.0) -> Axis:
    """Return an axis of shares from 0 to ``high``, marked in per cent."""
    values = [high * i / 5 for i in range(6)]
    return Axis(0.0, high, title, tuple((v, f"{100 * v:g} %") for v in values))


def linear_axis(title: str, high: float) -> Axis:
    """Return an axis from 0 to a round number not below ``high``, for counts and the like."""
    step = _round_step(max(high, 1e-300) / 5)
    count = max(1, math.ceil(high / step - 1e-9))
    values = [step * i for i in range(count + 1)]
    return Axis(0.0, values[-1], title, tuple((v, f"{v:g}") for v in values))


def score_axis(title: str, scores: Sequence[Floats]) -> Axis:
    """Return an axis for anomaly scores: linear about 0, logarithmic beyond the clean ones' size.

    Args:
        title: What it shows.
        scores: Scores to be shown, those of clean images first.
    """
    every = np.concatenate([np.ravel(part) for part in scores])
    bend = float(np.median(np.abs(scores[0]))) if len(scores[0]) else 1.0
    bend = bend if bend > 0 and math.isfinite(bend) else 1.0
    low, high = float(every.min()), float(every.max())
    low = 0.0 if 0 <= low < bend else low
    if high <= low:
        high = low + bend
    decades = range(
        math.floor(math.log10(bend)), math.ceil(math.log10(max(abs(low), abs(high)))) + 1
    )
    sizes = [m * 10.0**d for d in decades for m in (1, 3) if m * 10.0**d >= bend / 2]
    ticks = [v for v in (0.0, *sizes, *(-size for size in sizes)) if low <= v <= high]
    return Axis(low, high, title, tuple((v, f"{v:g}") for v in sorted(ticks)), bend)


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= size * (1 - 1e-9))
