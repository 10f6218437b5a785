"""Attack on early stopping: make every look ask for more copies, and the last one find nothing.

A guard that stops early spends few copies on most requests. Who keeps each of many images just
suspicious enough makes it spend all of them on each, and no flag tells of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpguard.attacks.adaptive.aware import CONFIDENCE, in_chunks
from lrpguard.attacks.adaptive.descent import Effort, Objective, Sight, Trace
from lrpguard.attacks.adaptive.looks import Looks as Seen
from lrpguard.attacks.adaptive.looks import Noise, look
from lrpguard.attacks.adaptive.surrogate import Surrogate
from lrpguard.attacks.margins import margin
from lrpguard.errors import NotCalibratedError
from lrpguard.guard import Guard
from lrpguard.stopping import CalibratedLooks

EDGE = 0.25
"""Share of the narrowest window's width that an anomaly is kept off the ends of each, since the
guard's noise differs from the attack's."""


@dataclass(frozen=True)
class Window:
    """Anomalies with which one look neither flags a request nor clears it.

    Attributes:
        copies: Copies of the look.
        surrogate: Its detector, with a gradient.
        low: Root of the anomaly below which it clears; 0 at the last look, where no flag is all
            that is wanted.
        high: Root of the anomaly above which it flags; infinite where it cannot.
        edge: How far off its ends an anomaly's root is to be kept.
    """

    copies: int
    surrogate: Surrogate
    low: float
    high: float
    edge: float

    def miss(self, anomaly: Tensor) -> Tensor:
        """Return by how much the anomaly's root is off the window's inner part, >= 0 [B]."""
        root = anomaly.clamp(min=1e-6).sqrt()
        above = (root - (self.high - self.edge)).clamp(min=0)
        if self.low == 0:
            return above
        return above + (self.low + self.edge - root).clamp(min=0)


def windows(guard: Guard) -> list[Window]:
    """Return the window of each look.

    Raises:
        NotCalibratedError: The guard has no calibration.
        ConfigurationError: It has no looks, or the detector is not the combined one.
    """
    calibration = guard.calibration
    if calibration is None:
        raise NotCalibratedError(
            "the guard has no calibration, so it has no looks. Call guard.calibrate(..., "
            "looks=Looks.of(n))."
        )
    rule = calibration.rule
    roots = [_roots(rule, look) for look in range(len(calibration.copies))]
    edge = EDGE * min(high - low for low, high in roots)
    return [
        Window(copies, Surrogate.at(calibration.at(copies)), *ends, edge)
        for copies, ends in zip(calibration.copies, roots, strict=True)
    ]


def _roots(rule: CalibratedLooks, look: int) -> tuple[float, float]:
    """Return the roots of the least and of the largest anomaly with which a look asks for more."""
    known = rule.anomalies[:, look]  # ascending; a request's rank is 1 + those at least as large
    last = look == len(rule.looks.copies) - 1
    cleared = 1.0 if last else rule.looks.clear[look]
    largest_rank = math.floor(cleared * (rule.n + 1))
    least_rank = math.floor(rule.flag_level * rule.looks.weight[look]) + 1
    low = 0.0 if last else float(known[rule.n - largest_rank])
    high = float(known[rule.n - least_rank + 1]) if least_rank > 1 else math.inf
    return math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))


def delay_answer(
    guard: Guard,
    images: Tensor,
    labels: Tensor,
    effort: Effort,
    *,
    key: bytes | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Make a guard that stops early go to its last look, and not flag the request there.

    The image keeps its class. At each look the anomaly is held between what the look would clear
    and what it would flag; of early looks of few copies as many are made as they have.

    Args:
        guard: The guard, calibrated with looks and the ``combined`` detector. Whether it stops
            early itself does not matter; its key is not looked at.
        images: Clean images in [0, 1], [B, C, H, W], best of whole 8-bit levels.
        labels: Classes that the model shall still say, integers [B].
        effort: How far and how long.
        key: The guard's key, where the attacker has it; None draws noise afresh.
        trace: Where to note how the search went.

    Returns:
        Images of whole 8-bit levels [B, C, H, W].

    Raises:
        LrpGuardError: As for :func:`lrpguard.attacks.adaptive.guard_aware_pgd`; or there are no
            looks.
    """
    known = windows(guard)

    def objective(noise: Noise, classes: Tensor) -> Objective:
        def see(batch: Tensor, rows: Tensor) -> Sight:
            of = classes[rows]
            seen = look(guard.model, batch, noise, guard.smoothing.sigma)
            lead = margin(seen.own, of)
            missed = _missed(known, batch, seen, of)
            return Sight((CONFIDENCE - lead).clamp(min=0), missed.to(lead.device), lead > 0)

        return see

    return in_chunks(guard, images, labels, effort, objective, key=key, trace=trace)


def _missed(known: Sequence[Window], batch: Tensor, seen: Seen, label: Tensor) -> Tensor:
    """Return by how much all looks miss their windows together [B]."""
    first = [Seen(seen.own, seen.noisy[: window.copies], seen.views) for window in known]
    missed = [
        window.miss(window.surrogate.anomaly(batch, part, label))
        for window, part in zip(known, first, strict=True)
    ]
    return torch.stack(missed).sum(0)
