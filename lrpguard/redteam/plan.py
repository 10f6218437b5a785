"""Which attacks, in order of worth: what comes first is done first where time is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lrpguard.attacks.adaptive import Effort, Manner, Trace, feature_matching, guard_aware_pgd
from lrpguard.attacks.adaptive.queries import square_on_guard
from lrpguard.attacks.pgd import pgd, quantize
from lrpguard.calibration import Calibration
from lrpguard.fingerprint import model_fingerprint, model_precision
from lrpguard.guard import Guard
from lrpguard.views import VIEWS

STATIC, BLACK, TRANSFER = "static", "black-box", "transfer"
GREY, WHITE = "grey-box", "white-box"
KNOWS = {
    STATIC: "the model, not the guard",
    BLACK: "nothing; asks the guard, and reads logits and anomaly score",
    TRANSFER: "another network in the model's place; in its guard-aware form detector and "
    "calibration, too",
    GREY: "model, detector, calibration and noise level, not the key",
    WHITE: "all, the key, too",
}
"""Attackers, and what each of them knows."""

STEPS = 30
QUICK_STEPS = 20
SWEPT_STEPS = (5, 10, 100)
SWEPT_WEIGHTS = (0.1, 10.0)
SWEPT_COPIES = 40
"""Copies of the one run that has many: the expectation over the noise, without momentum's help."""

QUERIES = 150
QUERIED = 10
"""Queries of an image, and how many images are attacked by queries: each query costs a verdict."""

OTHER_KEY = b"the key of another deployment..."


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        guard: The guard.
        key: Its noise key.
        images: Clean images that its model has right, of 8-bit levels [n, C, H, W].
        labels: Their classes [n].
        donors: Other clean images, of the attacker's own.
        substitute: Another network for the same classes, or None.
        seed: Seed of all attacks.
    """

    guard: Guard
    key: bytes
    images: Tensor
    labels: Tensor
    donors: Tensor
    substitute: nn.Module | None
    seed: int

    def first(self, count: int | None) -> Target:
        """Return the target with the first images alone."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])


Attack = Callable[[Target, Trace], tuple[Tensor, int | None]]
"""From the target to attacked images, and the median number of queries of an image, if it asks."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One attack of the plan.

    Attributes:
        attack: Its name.
        knows: Which attacker.
        levels: Largest change of a pixel, in levels of 255.
        steps: Gradient steps, or most queries.
        copies: Noisy copies at each step; 0 where it looks at none.
        cost: Forward and backward passes of one image, about.
        run: The attack.
        sweep: What is varied, where it is part of a sweep.
        images: How many of the images it gets; None for all.
    """

    attack: str
    knows: str
    levels: int
    steps: int
    copies: int
    cost: float
    run: Attack
    sweep: str | None = None
    images: int | None = None


def plan(levels: Sequence[int], *, substitute: bool, n: int, quick: bool) -> Iterator[Entry]:
    """Yield the attacks.

    Args:
        levels: Largest changes of a pixel, in levels of 255.
        substitute: Whether there is another network to craft on.
        n: Copies of the guard.
        quick: Fewer steps.
    """
    steps = QUICK_STEPS if quick else STEPS
    levels = sorted(levels, reverse=True)
    for each in levels:
        yield _plain(each, steps)
        yield _aware(each, steps)
    # Where there is something left to gain: at the smallest change.
    yield _aware(levels[-1], steps, manner="orthogonal")
    yield _aware(levels[-1], steps, gray=True)
    yield _aware(levels[-1], steps, key="its own", n=n)
    yield _aware(levels[-1], steps, key="another", n=n)
    yield _matching(levels[0], 2 * steps)
    if substitute:
        yield _from_substitute(levels[0], steps)
        yield _from_substitute(levels[0], steps, aware=True)
    yield _square(levels[0])


def sweeps(levels: Sequence[int]) -> Iterator[Entry]:
    """Yield what shows whether the attacks have converged: steps, manner, weight, copies."""
    least = min(levels)
    for count in SWEPT_STEPS:
        yield _aware(least, count, sweep="steps")
    yield _aware(least, STEPS, manner="selective")
    for weight in SWEPT_WEIGHTS:
        yield _aware(least, STEPS, weight=weight, sweep="weight")
    yield _aware(least, STEPS, copies=SWEPT_COPIES, sweep="copies", images=QUERIED)


def _plain(levels: int, steps: int) -> Entry:
    def run(target: Target, trace: Trace) -> tuple[Tensor, int | None]:
        model, images, labels = target.guard.model, target.images, target.labels
        found = pgd(model, images, labels, eps=levels / 255, steps=steps, seed=target.seed)
        return quantize(found), None

    return Entry(
        attack="PGD", knows=STATIC, levels=levels, steps=steps, copies=0, cost=steps, run=run
    )


def _aware(
    levels: int,
    steps: int,
    *,
    manner: Manner = "joint",
    weight: float = 1.0,
    copies: int = 2,
    gray: bool = False,
    key: str | None = None,
    n: int = 0,
    sweep: str | None = None,
    images: int | None = None,
) -> Entry:
    """Return guard-aware PGD; with a key every copy is the guard's, or another guard's."""
    copies = n if key else copies

    def run(target: Target, trace: Trace) -> tuple[Tensor, int | None]:
        keys = {None: None, "its own": target.key, "another": OTHER_KEY}
        found = guard_aware_pgd(
            target.guard,
            target.images,
            target.labels,
            Effort(eps=levels / 255, steps=steps, copies=copies, seed=target.seed, gray=gray),
            manner=manner,
            weight=weight,
            key=keys[key],
            trace=trace,
        )
        return found, None

    told = f"joint, weight {weight:g}" if manner == "joint" else manner
    beside = ", all channels alike" if gray else ""
    beside += {None: "", "its own": ", key known", "another": ", crafted under another key"}[key]
    return Entry(
        attack=f"guard-aware PGD, {told}{beside}",
        knows=WHITE if key == "its own" else GREY,
        levels=levels,
        steps=steps,
        copies=copies,
        cost=steps * (1.5 + copies + len(VIEWS)),
        run=run,
        sweep=sweep,
        images=images,
    )


def _matching(levels: int, steps: int) -> Entry:
    def run(target: Target, trace: Trace) -> tuple[Tensor, int | None]:
        effort = Effort(eps=levels / 255, steps=steps, seed=target.seed)
        found = feature_matching(
            target.guard.model, target.images, target.labels, target.donors, effort, trace=trace
        )
        return found, None

    return Entry(
        attack="logit matching",
        knows=GREY,
        levels=levels,
        steps=steps,
        copies=0,
        cost=steps,
        run=run,
    )


def _from_substitute(levels: int, steps: int, *, aware: bool = False) -> Entry:
    """Return PGD on the other network, or guard-aware PGD on a guard of the other network."""

    def run(target: Target, trace: Trace) -> tuple[Tensor, int | None]:
        assert target.substitute is not None
        images, labels = target.images, target.labels
        if not aware:
            eps = levels / 255
            found = pgd(target.substitute, images, labels, eps=eps, steps=steps, seed=target.seed)
            return quantize(found), None
        effort = Effort(eps=levels / 255, steps=steps, seed=target.seed)
        stand_in = _guard_of(target.substitute, target.guard.calibration)
        return guard_aware_pgd(
            stand_in, images, labels, effort, manner="orthogonal", trace=trace
        ), None

    return Entry(
        attack=f"{'guard-aware PGD, orthogonal' if aware else 'PGD'}, on the other network",
        knows=TRANSFER,
        levels=levels,
        steps=steps,
        copies=2 if aware else 0,
        cost=1.6 * steps * (3.5 + len(VIEWS) if aware else 1),
        run=run,
    )


def _guard_of(model: nn.Module, calibration: Calibration | None) -> Guard:
    """Return a guard of another network with the calibration of the one attacked."""
    assert calibration is not None
    other = replace(
        calibration, fingerprint=model_fingerprint(model), precision=model_precision(model)
    )
    return Guard(model, calibration=other)


def _square(levels: int) -> Entry:
    def run(target: Target, trace: Trace) -> tuple[Tensor, int | None]:
        effort = Effort(eps=levels / 255, steps=QUERIES, seed=target.seed)
        found = square_on_guard(target.guard, target.images, target.labels, effort)
        return found.images, int(torch.median(found.queries))

    return Entry(
        attack="Square with the anomaly score",
        knows=BLACK,
        levels=levels,
        steps=QUERIES,
        copies=0,
        cost=QUERIES * 25.0,
        run=run,
        images=QUERIED,
    )
