"""An evaluation from beginning to end: draw, calibrate, attack, judge, count."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from lrpguard.attacks import Attack
from lrpguard.baselines import baseline
from lrpguard.conformal import check_size
from lrpguard.errors import EvaluationError
from lrpguard.evaluation.adversarial import attacked_set
from lrpguard.evaluation.candidates import Candidate
from lrpguard.evaluation.judging import (
    ALPHAS,
    BATCH,
    Detectors,
    content_halves,
    fit_baselines,
    installed_version,
    judge_attacked,
    judge_clean,
    judging_header,
)
from lrpguard.evaluation.outcomes import GUARD, Attacked, read_attacked, read_clean
from lrpguard.evaluation.protocol import ImageSet, Splits
from lrpguard.evaluation.summary import summarize
from lrpguard.fingerprint import model_fingerprint, model_precision
from lrpguard.guard import Guard
from lrpguard.rowlog import RowLog
from lrpguard.smoothing import clean_logits, to_model

SCHEMA = 2
"""Version of the card's form."""

SCORES_FILE = "scores.jsonl"
"""Where a run keeps the scores of its clean pool, in its folder."""

GUARD_ALPHA = 0.05
"""False-positive rate at which the guard flags, and therefore restores."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an evaluation is asked for.

    Attributes:
        attacks: Attacks and controls.
        baselines: Names of the baselines that stand beside the guard.
        restorations: Restorations whose labels are noted beside the guard's own.
        halves: Whether the guard is calibrated on one half of the pool and fitted to the other, as
            the baselines are, where it would cross few images.
        seed: Seed of attacks and bootstrap.
        out: Folder of rows and scores; None keeps them in memory.
        cache: Folder of stored attacked images; None stores none.
        progress: Whether to show progress on standard error, with rate and time left.
    """

    attacks: tuple[Attack, ...]
    baselines: tuple[str, ...] = ()
    restorations: tuple[Candidate, ...] = ()
    halves: bool = False
    seed: int = 0
    out: Path | None = None
    cache: Path | None = None
    progress: bool = False


def evaluate(
    model: nn.Module,
    splits: Splits,
    *,
    guard: Guard,
    settings: Settings,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a guard, and what stands beside it, on attacked and clean images.

    Thresholds come from the pool's calibration half alone. Attacks see the model, not the guard.
    An interrupted run with the same ``out`` and ``cache`` goes on where it stopped.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits, in eval mode.
        splits: Clean pool and test images.
        guard: A guard of the same model; it is calibrated here.
        settings: Attacks, baselines, seed, folders.
        about: More to be said in the card, such as the command.

    Returns:
        The card: JSON-ready.

    Raises:
        EvaluationError: The guard is of another model, or an attack broke its bounds.
        CalibrationSizeError: The pool is too small for a threshold at 1 %.
        LrpGuardError: Model, guard or a baseline failed.
    """
    if model_fingerprint(guard.model) != model_fingerprint(model):
        raise EvaluationError("the guard wraps another model than the one that is attacked.")
    check_size(len(content_halves(splits.pool)[1]), min(ALPHAS))
    begun = time.perf_counter()
    detectors = _calibrate(model, splits.pool, guard, settings)
    calibrated = time.perf_counter() - begun
    rows = None if settings.out is None else settings.out / "rows.jsonl"
    header = judging_header(detectors, splits.test, seed=settings.seed)
    crafted: dict[str, float] = {}
    judged: dict[str, list[dict[str, Any]]] = {}
    with RowLog(rows, header) as log:
        with _bar("judge clean", len(splits.test), settings) as bar:
            clean_rows = judge_clean(detectors, splits.test, log, on_batch=bar.update)
        right = _correct(model, splits.test)
        for number, attack in enumerate(settings.attacks, 1):
            chosen = right if attack.adversarial else splits.test
            place = f"{number}/{len(settings.attacks)} {attack.name}"
            with _bar(f"attack {place}", len(chosen), settings) as bar:
                made = attacked_set(
                    attack,
                    model,
                    chosen,
                    seed=settings.seed,
                    cache=settings.cache,
                    on_chunk=bar.update,
                    clock=time.perf_counter,
                )
            crafted[attack.name] = made.seconds
            with _bar(f"judge {place}", len(chosen), settings) as bar:
                judged[attack.name] = judge_attacked(
                    detectors, made, chosen, log, on_batch=bar.update
                )
    return _card(splits, detectors, settings, clean_rows, judged, crafted, calibrated, about or {})


def _calibrate(model: nn.Module, pool: ImageSet, guard: Guard, settings: Settings) -> Detectors:
    images = to_model(pool.pixels(), model)
    scores = None if settings.out is None else settings.out / SCORES_FILE
    guard.calibrate(
        images.split(BATCH),
        alpha=GUARD_ALPHA,
        checkpoint=scores,
        progress=settings.progress,
        crossed=False if settings.halves else None,
    )
    names = tqdm(settings.baselines, "baselines", disable=not settings.progress, unit="fit")
    beside = fit_baselines((baseline(name) for name in names), model, pool)
    return Detectors(guard, beside, settings.restorations)


def _correct(model: nn.Module, test: ImageSet) -> ImageSet:
    """Return the test images that the model has right."""
    parts = to_model(test.pixels(), model).split(BATCH)
    labels = torch.cat([clean_logits(model, part).argmax(1).cpu() for part in parts])
    return test.select((labels == test.labels).nonzero().flatten().tolist())


def _bar(text: str, total: int, settings: Settings) -> AbstractContextManager[Any]:
    bar: AbstractContextManager[Any] = tqdm(
        desc=text, total=total, unit="image", disable=not settings.progress
    )
    return bar


def _card(
    splits: Splits,
    detectors: Detectors,
    settings: Settings,
    clean_rows: Sequence[dict[str, Any]],
    judged: dict[str, list[dict[str, Any]]],
    crafted: dict[str, float],
    calibrated: float,
    about: dict[str, Any],
) -> dict[str, Any]:
    clean = read_clean(clean_rows)
    by_kind: dict[bool, list[Attacked]] = {True: [], False: []}
    for attack in settings.attacks:
        found = read_attacked(
            attack.name, judged[attack.name], clean, adversarial=attack.adversarial
        )
        by_kind[attack.adversarial].append(found)
    calibration = detectors.calibration
    beside = {b.name: len(b.anomalies) for b in detectors.baselines}
    every_row = [row for rows in (clean_rows, *judged.values()) for row in rows]
    return {
        "schema": SCHEMA,
        "kind": "evaluation",
        **about,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": settings.seed,
        "fingerprint": calibration.fingerprint,
        "precision": model_precision(detectors.guard.model),
        "image_shape": list(calibration.image_shape),
        "guard": {
            "detector": calibration.detector.name,
            "scores": list(calibration.detector.score_names),
            "alpha": calibration.alpha,
            "n": calibration.smoothing.n,
            "sigma": calibration.smoothing.sigma,
            "way": str(calibration.smoothing.way),
            "fit_n": calibration.fit_n,
            "calibration_n": calibration.n,
            "crossed": calibration.crossed,
        },
        "baselines": {
            b.name: {
                "attack_free": b.baseline.attack_free,
                "saw": list(b.baseline.saw),
                "passes": b.baseline.passes,
            }
            for b in detectors.baselines
        },
        "restorations": {
            c.name: {"title": c.title, "passes": c.passes, "control": c.control}
            for c in detectors.candidates
        },
        "splits": {"pool": _split(splits.pool), "test": _split(splits.test)},
        "suite": [
            {"title": a.title, "family": a.family, "adversarial": a.adversarial, **a.parameters()}
            for a in settings.attacks
        ],
        "results": summarize(
            clean,
            by_kind[True],
            by_kind[False],
            calibration_n={GUARD: calibration.n} | beside,
            seed=settings.seed,
            seen={
                b.name: [a.name for a in settings.attacks if a.family in b.baseline.saw]
                for b in detectors.baselines
                if not b.baseline.attack_free
            },
        ),
        "seconds": {
            "calibrate": round(calibrated, 1),
            "attacks": {name: round(took, 1) for name, took in crafted.items()},
            "judge": round(sum(row["seconds"] for row in every_row), 1),
        },
        "versions": _versions(),
        "threads": torch.get_num_threads(),
    }


def _split(part: ImageSet) -> dict[str, Any]:
    return {"n": len(part), "digest": part.digest, "indices": list(part.indices)}


def _versions() -> dict[str, str]:
    names = ("lrpguard", "torch", "torchvision", "numpy", "scipy", "torchattacks")
    found = {name: installed_version(name) for name in names}
    there = {name: number for name, number in found.items() if number is not None}
    return {"python": platform.python_version(), **there}
