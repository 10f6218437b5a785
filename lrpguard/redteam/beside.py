"""Attacks that do not seek to fool the model past the guard: harms of other kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrpguard.attacks.adaptive import (
    Effort,
    delay_answer,
    false_alarm,
    guard_aware_pgd,
    hop_skip_jump,
    mislead_explanation,
    mislead_restoration,
)
from lrpguard.attacks.adaptive.explanation import likeness
from lrpguard.attacks.adaptive.queries import nudged, passes, passes_once
from lrpguard.attacks.pgd import quantize
from lrpguard.errors import EvaluationError
from lrpguard.guard import Guard
from lrpguard.redteam.outcome import Counts
from lrpguard.redteam.plan import BLACK, GREY, QUERIED, STATIC, WHITE, Target

TRIES = 10
"""How often one image is sent."""

HOPS, ESTIMATES = 5, 30
"""HopSkipJump's iterations, and its queries for one estimate."""

HOPPED = 5
"""Images that HopSkipJump gets."""


@dataclass(frozen=True, kw_only=True)
class Harm:
    """One attack beside the plan.

    Attributes:
        attack: Its name.
        knows: Which attacker.
        levels: Largest change of a pixel, in levels of 255.
        wanted: What counts as success.
        cost: Forward and backward passes of one image, about.
        run: From the target to (before, after, more): how many there were without the attack, how
            many with it, and what else is worth a word.
        images: How many of the images it gets; None for all.
    """

    attack: str
    knows: str
    levels: int
    wanted: str
    cost: float
    run: Callable[[Target], tuple[Counts, Counts, dict[str, Any]]]
    images: int | None = None


def harms(levels: Sequence[int], *, looks: bool, quick: bool) -> Iterator[Harm]:
    """Yield them, for the smallest and the largest of the changes.

    Args:
        levels: Largest changes of a pixel, in levels of 255.
        looks: Whether the calibration has looks, so that early stopping can be attacked.
        quick: Without HopSkipJump.
    """
    low, high = min(levels), max(levels)
    yield _alarm(low)
    yield _random_alarm(low)
    if looks:
        yield _latency(low)
        yield _latency(low, known=True)
    yield _restoration(high)
    yield _explanation(high)
    for kind in ("the same image", "one value changed", "fresh keys"):
        yield _again(low, kind)
    if not quick:
        yield _hop(high)


def _alarm(levels: int) -> Harm:
    def run(target: Target) -> tuple[Counts, Counts, dict[str, Any]]:
        effort = Effort(eps=levels / 255, steps=10, seed=target.seed)
        found = false_alarm(target.guard, target.images, target.labels, effort)
        return _alarmed(target, target.images), _alarmed(target, found), {}

    return Harm(
        attack="false alarm by gradient, 10 steps",
        knows=GREY,
        levels=levels,
        wanted="a flag, the model's label being right",
        cost=110.0,
        run=run,
    )


def _random_alarm(levels: int) -> Harm:
    def run(target: Target) -> tuple[Counts, Counts, dict[str, Any]]:
        generator = torch.Generator().manual_seed(target.seed)
        signs = torch.randn(target.images.shape, generator=generator).sign().to(target.images)
        found = quantize(target.images + levels / 255 * signs)
        return _alarmed(target, target.images), _alarmed(target, found), {}

    return Harm(
        attack="false alarm by random signs",
        knows=STATIC,
        levels=levels,
        wanted="a flag, the model's label being right",
        cost=50.0,
        run=run,
    )


def _alarmed(target: Target, images: Tensor) -> Counts:
    verdict = target.guard(images)
    return _count(verdict.flagged & (verdict.label == target.labels))


def _latency(levels: int, *, known: bool = False) -> Harm:
    """Return the attack on early stopping; the guard is one that stops early."""

    def run(target: Target) -> tuple[Counts, Counts, dict[str, Any]]:
        guard, images = target.guard, target.images
        stopping = Guard(guard.model, calibration=guard.calibration, key=target.key, stopping=True)
        effort = Effort(eps=levels / 255, steps=20, copies=4, seed=target.seed)
        key = target.key if known else None
        found = delay_answer(guard, images, target.labels, effort, key=key)
        verdicts = stopping(images), stopping(found)
        before, after = (
            (verdict.copies == guard.smoothing.n)
            & ~verdict.flagged
            & (verdict.label == target.labels)
            for verdict in verdicts
        )
        means = [round(float(verdict.copies.double().mean()), 2) for verdict in verdicts]
        more = {"mean_copies_before": means[0], "mean_copies_after": means[1]}
        return _count(before), _count(after), more

    return Harm(
        attack=f"delay of early stopping, 20 steps{', key known' if known else ''}",
        knows=WHITE if known else GREY,
        levels=levels,
        wanted="all copies made and no flag, the model's label being right",
        cost=500.0 if known else 250.0,
        run=run,
    )


def _restoration(levels: int) -> Harm:
    def wronged(target: Target, images: Tensor) -> Counts:
        verdict = target.guard(images)
        final = verdict.restored_label
        kept = verdict.label == target.labels
        return _count(kept & verdict.flagged & (final >= 0) & (final != target.labels))

    def run(target: Target) -> tuple[Counts, Counts, dict[str, Any]]:
        effort = Effort(eps=levels / 255, steps=20, seed=target.seed)
        found = mislead_restoration(target.guard, target.images, target.labels, effort)
        return wronged(target, target.images), wronged(target, found), {}

    return Harm(
        attack="misled restoration, 20 steps",
        knows=GREY,
        levels=levels,
        wanted="a wrong restored label, the model's own being right",
        cost=200.0,
        run=run,
    )


def _explanation(levels: int) -> Harm:
    def run(target: Target) -> tuple[Counts, Counts, dict[str, Any]]:
        guard, images = target.guard, target.images
        own = guard.evidence(images).relevance_mean
        wanted = own.roll(1, dims=0)
        effort = Effort(eps=levels / 255, steps=100, seed=target.seed)
        found = mislead_explanation(guard.model, images, target.labels, wanted, effort)
        after = guard.evidence(found)
        nearer = likeness(after.relevance_mean, wanted) > likeness(after.relevance_mean, own)
        kept = after.label == target.labels
        more = {
            "likeness_before": round(float(likeness(own, wanted).mean()), 3),
            "likeness_after": round(float(likeness(after.relevance_mean, wanted).mean()), 3),
        }
        return _count(likeness(own, wanted) > 1 - 1e-6), _count(nearer & kept), more

    return Harm(
        attack="another image's heat map, 100 steps",
        knows=GREY,
        levels=levels,
        wanted="a map more like the other's than like its own, the label being right",
        cost=700.0,
        run=run,
        images=QUERIED,
    )


def _again(levels: int, kind: str) -> Harm:
    """Return resubmission of what guard-aware PGD made in too few steps."""

    def run(target: Target) -> tuple[Counts, Counts, dict[str, Any]]:
        guard, labels = target.guard, target.labels
        effort = Effort(eps=levels / 255, steps=5, seed=target.seed)
        found = guard_aware_pgd(guard, target.images, labels, effort, manner="orthogonal")
        tries = [nudged(found, i if kind == "one value changed" else 0) for i in range(TRIES)]
        guards = [guard] * TRIES
        if kind == "fresh keys":
            keys = [b"fresh key %d of the red team's" % i for i in range(1, TRIES)]
            guards[1:] = [Guard(guard.model, calibration=guard.calibration, key=k) for k in keys]
        return _count(passes(guard(found), labels)), _count(passes_once(guards, tries, labels)), {}

    return Harm(
        attack=f"{TRIES} tries of guard-aware PGD's 5th step: {kind}",
        knows=BLACK if kind != "fresh keys" else "no attacker",
        levels=levels,
        wanted="a wrong label without a flag, at least once",
        cost=50.0 + TRIES * 40.0,
        run=run,
        images=QUERIED,
    )


def _hop(levels: int) -> Harm:
    def run(target: Target) -> tuple[Counts, Counts, dict[str, Any]]:
        starts = _passing_starts(target)
        found = hop_skip_jump(
            target.guard,
            target.images,
            target.labels,
            starts,
            iterations=HOPS,
            evaluations=ESTIMATES,
            seed=target.seed,
        )
        far = (found.images - target.images).abs().amax((1, 2, 3))
        through = passes(target.guard(found.images), target.labels)
        more = {
            "median_levels": round(255 * float(far[through].median())) if through.any() else None,
            "median_queries": int(found.queries.median()),
        }
        near = far <= levels / 255 + 1e-6
        return (0, len(near)), _count(near & through), more

    return Harm(
        attack="HopSkipJump, label and flag alone",
        knows=BLACK,
        levels=levels,
        wanted="a wrong label without a flag, within this change",
        cost=400.0 * 25,
        run=run,
        images=HOPPED,
    )


def _passing_starts(target: Target) -> Tensor:
    """Return for each image a donor that passes as another class.

    Raises:
        EvaluationError: There is none to begin with.
    """
    verdict = target.guard(target.donors)
    starts = []
    for label in target.labels:
        rows = ((verdict.label != label) & ~verdict.flagged).nonzero().flatten()
        if len(rows) == 0:
            raise EvaluationError(
                "HopSkipJump begins at a clean image that passes as another class, and of "
                f"{len(verdict)} donors none does. Give more images."
            )
        starts.append(target.donors[rows[0]])
    return torch.stack(starts)


def _count(hits: Tensor) -> Counts:
    return int(hits.sum()), len(hits)
