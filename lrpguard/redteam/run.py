"""One run of the red team: attack after attack until the time is spent, judged and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lrpguard.attacks.adaptive import Trace
from lrpguard.attacks.adaptive.surrogate import Surrogate
from lrpguard.errors import ConfigurationError, EvaluationError
from lrpguard.evaluation.judging import ALPHAS
from lrpguard.redteam.beside import Harm, harms
from lrpguard.redteam.outcome import Judged, attack_counts, judge, worst
from lrpguard.redteam.plan import GREY, KNOWS, Entry, Target, plan, sweeps
from lrpguard.redteam.signs import signs
from lrpguard.version import __version__

WORST = "worst of all grey-box"
"""Name of the row that takes of each image the attempt that passes best."""

JUDGED = 50
"""Passes of one verdict, about."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run shall do.

    Args:
        levels: Largest changes of a pixel, in levels of 255, each in 1 … 255.
        minutes: Wall-clock time for all attacks, > 0. An attack that would not end in time by the
            speed of those before it is left out.
        quick: Fewer steps, and no sweeps.
        progress: Told of each attack that is done, in one line.
        clock: Seconds.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    levels: tuple[int, ...]
    minutes: float
    quick: bool = False
    progress: Callable[[str], None] = lambda line: None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not self.levels or not all(1 <= level <= 255 for level in self.levels):
            raise ConfigurationError(
                f"the changes are {list(self.levels)}; expected levels of 255, such as 2,4,8."
            )
        if not self.minutes > 0:
            raise ConfigurationError(f"the budget is {self.minutes} minutes; expected more than 0.")


class _Clock:
    """How much of the time is spent, and what an attack is likely to take."""

    def __init__(self, settings: Settings) -> None:
        self._now = settings.clock
        self._begun = self._now()
        self._limit = 60 * settings.minutes
        self._passes = 0.0

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._now() - self._begun

    def allows(self, passes: float) -> bool:
        """Say whether so many passes are likely to end in time."""
        speed = self.spent / self._passes if self._passes else 0.0
        return self.spent + speed * passes <= self._limit

    def done(self, passes: float) -> None:
        """Count passes that were made."""
        self._passes += passes


def red_team(
    target: Target, clean: tuple[Tensor, Tensor], settings: Settings, *, about: dict[str, Any]
) -> dict[str, Any]:
    """Attack a guard, and return the card.

    Args:
        target: What is attacked: images that the model has right.
        clean: All test images [m, C, H, W] and their classes [m], for the guard's rates on them.
        settings: What to do.
        about: What else the card shall say, JSON values.

    Raises:
        EvaluationError: The model has none of the images right.
        LrpGuardError: The guard cannot be attacked.
    """
    if len(target.images) == 0:
        raise EvaluationError(
            "the model has none of the test images right, so there is nothing to attack. Check "
            "the labels, and the model's normalisation."
        )
    surrogate = Surrogate.of(target.guard)
    calibration = target.guard.calibration
    assert calibration is not None
    verdict = target.guard(clean[0])
    judged = judge(target.guard, target.images, target.labels)
    clock = _Clock(settings)
    log = _Log(target, settings, clock)
    log.attack(
        plan(
            settings.levels,
            substitute=target.substitute is not None,
            n=calibration.smoothing.n,
            quick=settings.quick,
        )
    )
    looks = calibration.staged is not None
    log.harm(harms(settings.levels, looks=looks, quick=settings.quick))
    if not settings.quick:
        log.attack(sweeps(settings.levels))
    log.add_worst()
    return about | {
        "kind": "red_team",
        "version": __version__,
        "torch": torch.__version__,
        "detector": calibration.detector.name,
        "scores": ["consistency", *calibration.detector.score_names],
        "n": calibration.smoothing.n,
        "sigma": calibration.smoothing.sigma,
        "alpha": calibration.alpha,
        "fit_n": calibration.fit_n,
        "calibration_n": calibration.n,
        "crossed": calibration.crossed,
        "fingerprint": calibration.fingerprint,
        "calibration": calibration.data_digest,
        "test": len(clean[0]),
        "right": len(target.images),
        "seed": target.seed,
        "quick": settings.quick,
        "clean": {
            f"flagged_{alpha:.0%}": (int((verdict.p_value <= alpha).sum()), len(clean[0]))
            for alpha in ALPHAS
        },
        "clean_attacked": attack_counts(judged),
        "rows": log.rows,
        "harms": log.harms,
        "warnings": signs(log.rows, surrogate.ignored),
        "left_out": log.left_out,
        "minutes": round(clock.spent / 60, 1),
        "knows": KNOWS,
    }


class _Log:
    """What has been done, and what was left out."""

    def __init__(self, target: Target, settings: Settings, clock: _Clock) -> None:
        self.rows: list[dict[str, Any]] = []
        self.harms: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self._target = target
        self._settings = settings
        self._clock = clock
        self._by_levels: dict[int, list[Judged]] = {}

    def attack(self, entries: Iterable[Entry]) -> None:
        """Run those attacks that the time allows."""
        for entry in entries:
            part = self._target.first(entry.images)
            passes = (entry.cost + JUDGED) * len(part.images)
            if not self._clock.allows(passes):
                name = f"{entry.attack}, {entry.levels}/255, {entry.steps} steps"
                self.left_out.append(f"{name}, {entry.copies} copies" if entry.copies else name)
                continue
            row, judged = _attack(part, entry, self._settings)
            self._clock.done(passes)
            self.rows.append(row)
            self._settings.progress(_line(row))
            if entry.knows == GREY and entry.images is None:
                self._by_levels.setdefault(entry.levels, []).append(judged)

    def harm(self, several: Iterable[Harm]) -> None:
        """Run those of the other harms that the time allows."""
        for harm in several:
            part = self._target.first(harm.images)
            passes = harm.cost * len(part.images)
            if not self._clock.allows(passes):
                self.left_out.append(f"{harm.attack}, {harm.levels}/255")
                continue
            begun = self._settings.clock()
            before, after, more = harm.run(part)
            self._clock.done(passes)
            about = {"attack": harm.attack, "knows": harm.knows, "levels": harm.levels}
            found = {"wanted": harm.wanted, "before": before, "after": after, **more}
            seconds = round(self._settings.clock() - begun, 1)
            self.harms.append(about | found | {"seconds": seconds})
            progress = f"{harm.attack}, {harm.levels}/255: {after[0]} of {after[1]}"
            self._settings.progress(progress)

    def add_worst(self) -> None:
        """Add a row for each change: of each image the grey-box attempt that passes best."""
        for levels, several in sorted(self._by_levels.items()):
            row = _row_of(WORST, GREY, levels, worst(several))
            self.rows.append(row | {"steps": 0, "copies": 0, "sweep": None})
            self._settings.progress(_line(self.rows[-1]))


def _attack(target: Target, entry: Entry, settings: Settings) -> tuple[dict[str, Any], Judged]:
    trace, begun = Trace(), settings.clock()
    images, queries = entry.run(target, trace)
    seconds = settings.clock() - begun
    _check_ball(entry, target.images, images)
    judged = judge(target.guard, images, target.labels)
    row = _row_of(entry.attack, entry.knows, entry.levels, judged) | {
        "steps": entry.steps,
        "copies": entry.copies,
        "sweep": entry.sweep,
        "seconds": round(seconds, 1),
    }
    if queries is not None:
        row["queries"] = queries
    if trace.first:
        row |= {"fell": trace.fell, "blind": round(trace.blind_share, 4)}
        row |= {"taken": float(median(trace.taken)), "loss": _ends(trace)}
    return row, judged


def _ends(trace: Trace) -> list[float]:
    """Return the mean loss of an image at its first and at its last step."""
    return [round(sum(losses) / len(losses), 3) for losses in (trace.first, trace.last)]


def _check_ball(entry: Entry, images: Tensor, attacked: Tensor) -> None:
    far = 255 * float((attacked - images).abs().max())
    if far > entry.levels + 1e-3:
        raise EvaluationError(
            f"{entry.attack} changed a pixel by {far:.2f} levels; {entry.levels} are allowed. Its "
            "result counts for nothing: mend the attack."
        )


def _row_of(attack: str, knows: str, levels: int, judged: Judged) -> dict[str, Any]:
    return {"attack": attack, "knows": knows, "levels": levels} | attack_counts(judged)


def _line(row: dict[str, Any]) -> str:
    passed: Sequence[int] = row["sr_5%"]
    about = f"{row['attack']}, {row['levels']}/255, {row['steps']} steps"
    return f"{about}: {row['fooled'][0]} fool the model, {passed[0]} of {passed[1]} the guard, too"
