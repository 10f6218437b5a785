"""One measurement of hardened guards: every variant, each attacked by what knows it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lrpguard.attacks.adaptive import Effort, Manner, Trace, guard_aware_pgd
from lrpguard.attacks.pgd import pgd, quantize
from lrpguard.errors import EvaluationError
from lrpguard.evaluation.judging import ALPHAS
from lrpguard.evaluation.protocol import Splits
from lrpguard.guard import Guard
from lrpguard.redteam.hardened_attack import hardened_pgd, passes
from lrpguard.redteam.hardening import VARIANTS, Hardened, Signals, Variant, read_signals
from lrpguard.smoothing import Smoothing
from lrpguard.version import __version__

FIT_SHARE = 0.4
"""Share of the variants' clean images that puts the signals on one scale; the rest calibrates."""

Counts = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done.

    Attributes:
        guard: Clean images of the pool that calibrate the guard; the others are the variants'.
        steps: Gradient steps of each attack.
        levels: Largest changes of a pixel, in levels of 255.
        copies: Copies of each noise at a step.
        manners: Of each attack all are run, and of each image the attempt that passes best counts.
    """

    guard: int
    steps: int
    levels: tuple[int, ...]
    copies: int = 2
    manners: tuple[Manner, ...] = ("joint", "selective")


def harden(
    model: nn.Module,
    splits: Splits,
    smoothing: Smoothing,
    sizes: Sizes,
    *,
    seed: int,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Attack every variant, and return the card.

    Args:
        model: From [B, C, H, W] in [0, 1] to logits.
        splits: Clean images to calibrate with, and test images.
        smoothing: Of the guard.
        sizes: How much is done.
        seed: Of keys and attacks.
        progress: Told of each row, in one line.

    Raises:
        EvaluationError: The model has none of the test images right.
        LrpGuardError: A guard cannot be calibrated.
    """
    begun = time.monotonic()
    key = hashlib.blake2b(f"harden {seed}".encode(), digest_size=32).digest()
    guard = Guard(model, smoothing=smoothing, key=key)
    pool = splits.pool.pixels()
    guard.calibrate(pool[: sizes.guard].split(16))
    clean = read_signals(guard, key, pool[sizes.guard :]).values
    fit_n = round(FIT_SHARE * len(clean))
    variants = [Hardened.fit(variant, clean[:fit_n], clean[fit_n:]) for variant in VARIANTS]
    tested = read_signals(guard, key, splits.test.pixels())
    right = tested.label == splits.test.labels
    images, labels = splits.test.pixels()[right], splits.test.labels[right]
    if len(images) == 0:
        raise EvaluationError("the model has none of the test images right; nothing to attack.")
    progress(f"{len(clean) - fit_n} calibrate, {len(images)} are attacked")
    run = _Run(guard, key, images, labels, sizes, seed)
    rows = []
    for levels in sizes.levels:
        rows += run.at(levels, variants, progress)
    return {
        "kind": "hardening",
        "version": __version__,
        "torch": torch.__version__,
        "n": smoothing.n,
        "sigma": smoothing.sigma,
        "guard_n": sizes.guard,
        "fit_n": fit_n,
        "calibration_n": len(clean) - fit_n,
        "test": len(splits.test),
        "right": len(images),
        "steps": sizes.steps,
        "copies": sizes.copies,
        "manners": list(sizes.manners),
        "seed": seed,
        "clean": {
            each.variant.name: {
                f"flagged_{alpha:.0%}": _count(each.p_values(tested) <= alpha) for alpha in ALPHAS
            }
            for each in variants
        },
        "rows": rows,
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }


@dataclass(frozen=True)
class _Attempt:
    """Attacked images, read once, and what they were made against."""

    against: Variant | None
    signals: Signals
    fooled: Tensor


class _Run:
    """The attacks of one guard's images."""

    def __init__(
        self,
        guard: Guard,
        key: bytes,
        images: Tensor,
        labels: Tensor,
        sizes: Sizes,
        seed: int,
    ) -> None:
        self._guard, self._key, self._sizes, self._seed = guard, key, sizes, seed
        self._images, self._labels = images, labels

    def at(
        self, levels: int, variants: Sequence[Hardened], progress: Callable[[str], None]
    ) -> list[dict[str, Any]]:
        """Return the rows of one change: the model alone, then every variant."""
        effort = Effort(
            eps=levels / 255, steps=self._sizes.steps, copies=self._sizes.copies, seed=self._seed
        )
        attempts = [self._attempt(found, None) for found in self._on_the_model(effort)]
        taken: dict[str, float] = {}
        for hardened in variants:
            trace = Trace()
            for manner in self._sizes.manners:
                found = hardened_pgd(
                    self._guard,
                    hardened,
                    self._images,
                    self._labels,
                    effort,
                    manner=manner,
                    trace=trace,
                )
                attempts.append(self._attempt(found, hardened.variant))
            taken[hardened.variant.name] = float(median(trace.taken))
            progress(f"{levels}/255, {hardened.variant.name}: attacked")
        fooled = torch.stack([attempt.fooled for attempt in attempts]).any(0)
        rows = [{"variant": "model alone", "levels": levels, "sr": _count(fooled)}]
        for hardened in variants:
            row = self._row(hardened, levels, attempts, fooled)
            row["taken"] = taken[hardened.variant.name]
            rows.append(row)
            progress(f"{levels}/255, {row['variant']}: {row['sr_5%']}")
        return rows

    def _on_the_model(self, effort: Effort) -> list[Tensor]:
        """Return attacks that know no guard: PGD on the cross-entropy, and on the margin."""
        model, images, labels = self._guard.model, self._images, self._labels
        plain = pgd(model, images, labels, eps=effort.eps, steps=effort.steps, seed=effort.seed)
        return [
            quantize(plain),
            guard_aware_pgd(self._guard, images, labels, effort, weight=0),
        ]

    def _attempt(self, images: Tensor, against: Variant | None) -> _Attempt:
        signals = read_signals(self._guard, self._key, images)
        return _Attempt(against, signals, signals.label != self._labels)

    def _row(
        self, hardened: Hardened, levels: int, attempts: Sequence[_Attempt], fooled: Tensor
    ) -> dict[str, Any]:
        """Return the counts of one variant: of the attacks made for it, and of all attempts."""
        p_values = [hardened.p_values(attempt.signals) for attempt in attempts]
        row: dict[str, Any] = {
            "variant": hardened.variant.name,
            "levels": levels,
            "passes": passes(hardened, self._sizes.copies),
        }
        for alpha in ALPHAS:
            passed = [
                attempt.fooled & (p_value > alpha)
                for attempt, p_value in zip(attempts, p_values, strict=True)
            ]
            own = [
                each
                for each, attempt in zip(passed, attempts, strict=True)
                if attempt.against is hardened.variant
            ]
            row[f"own_{alpha:.0%}"] = _count(torch.stack(own).any(0))
            every = torch.stack(passed).any(0)
            row[f"sr_{alpha:.0%}"] = _count(every)
            row[f"saved_{alpha:.0%}"] = _count(fooled & ~every)
        return row


def _count(hits: Tensor) -> Counts:
    return int(hits.sum()), len(hits)
