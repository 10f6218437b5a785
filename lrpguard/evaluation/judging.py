"""Every detector judges the same images; one row an image, written as it comes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from lrpguard.attacks import Attack
from lrpguard.baselines import Baseline, RestoringBaseline
from lrpguard.baselines.two_sided import TwoSided
from lrpguard.calibration import Calibration
from lrpguard.calibrator import FIT_SHARE, split_key
from lrpguard.conformal import check_size, conformal_p_values
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.adversarial import AttackedSet
from lrpguard.evaluation.candidates import Candidate, Told, restored_labels
from lrpguard.evaluation.protocol import ImageSet
from lrpguard.guard import Guard
from lrpguard.rowlog import RowLog
from lrpguard.smoothing import to_model
from lrpguard.verdict import Verdict
from lrpguard.version import __version__

ALPHAS = (0.01, 0.05)
"""False-positive rates at which detection is stated."""

CLEAN = "clean"
"""What rows of the untouched test images are called."""

BATCH = 16
"""Images judged together."""


@dataclass(frozen=True, eq=False)
class CalibratedBaseline:
    """A baseline with a conformal p-value, as our own detector has one.

    Attributes:
        baseline: The fitted baseline.
        anomalies: Its scores of the calibration images, ascending, float64 [n].
    """

    baseline: Baseline
    anomalies: Tensor

    @property
    def name(self) -> str:
        """The baseline's name."""
        return self.baseline.name


@dataclass(frozen=True, eq=False)
class Detectors:
    """All that judges.

    Attributes:
        guard: Our guard, calibrated on the pool.
        baselines: What stands beside it, fitted and calibrated on the same pool.
        candidates: Restorations whose labels are noted beside the guard's own.

    Raises:
        ConfigurationError: There are candidates, and the guard stops early: they take all copies.
    """

    guard: Guard
    baselines: tuple[CalibratedBaseline, ...]
    candidates: tuple[Candidate, ...] = ()

    def __post_init__(self) -> None:
        if self.candidates and self.guard.stopping:
            raise ConfigurationError(
                "the guard stops early, and other restorations take all the copies. Give none, or "
                "a guard without early stopping."
            )

    @property
    def calibration(self) -> Calibration:
        """The guard's calibration."""
        assert self.guard.calibration is not None  # the only maker calibrates it
        return self.guard.calibration


def content_halves(pool: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return the images that fit and those that calibrate, split as a calibration splits them.

    By content, so that both halves are the same whatever the order, and for every detector.
    """
    order = sorted(range(len(pool)), key=lambda row: split_key(pool.digests[row]))
    fit = round(FIT_SHARE * len(pool))
    return pool.select(order[:fit]), pool.select(order[fit:])


def fit_baselines(
    baselines: Iterable[Baseline], model: nn.Module, pool: ImageSet
) -> tuple[CalibratedBaseline, ...]:
    """Fit baselines on one half of the pool, and calibrate them on the other.

    Raises:
        CalibrationSizeError: The pool is too small for the smallest of ``ALPHAS``.
        LrpGuardError: A baseline cannot be fitted.
    """
    fit, rest = content_halves(pool)
    check_size(len(rest), min(ALPHAS))
    parts: list[tuple[Tensor, dict[str, Tensor]]] = [
        (part, {}) for part in to_model(rest.pixels(), model).split(BATCH)
    ]
    calibrated = []
    for baseline in baselines:
        fitted = baseline.fit(model, to_model(fit.pixels(), model), fit.labels)
        scores = torch.cat([_anomaly(fitted, part, known) for part, known in parts])
        calibrated.append(CalibratedBaseline(fitted, scores.sort().values))
    return tuple(calibrated)


def _anomaly(baseline: Baseline, images: Tensor, known: dict[str, Tensor]) -> Tensor:
    """Return a baseline's scores [B], those of one made two-sided from the one-sided ones.

    Args:
        baseline: A fitted baseline, of those of one run, where a name has one set of options.
        images: Pixels in [0, 1], [B, C, H, W].
        known: Scores of these images by the baseline's name; the new ones are added.
    """
    if isinstance(baseline, TwoSided):
        return baseline.of(_anomaly(baseline.inner, images, known))
    if baseline.name not in known:
        known[baseline.name] = baseline.anomaly(images).double().cpu()
    return known[baseline.name]


def judging_header(detectors: Detectors, test: ImageSet, *, seed: int) -> dict[str, Any]:
    """Return what the rows of a run depend on, beside the attacks."""
    calibration = detectors.calibration
    scores = {"guard": calibration.anomalies} | {b.name: b.anomalies for b in detectors.baselines}
    return {
        "schema": 1,
        "model": calibration.fingerprint,
        "test": test.digest,
        "pool": calibration.data_digest,
        "detector": calibration.detector.name,
        "alpha": calibration.alpha,
        "n": calibration.smoothing.n,
        "sigma": calibration.smoothing.sigma,
        "composite": calibration.smoothing.composite.to_dict(),
        "restoration": repr(detectors.guard.restoration),
        "stopping": detectors.guard.stopping,
        "version": __version__,
        "torchattacks": installed_version("torchattacks"),
        "seed": seed,
        "restorations": [candidate.name for candidate in detectors.candidates],
        "scores": {
            name: hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:20]
            for name, values in scores.items()
        },
    }


def installed_version(package: str) -> str | None:
    """Return the version of a package that may be missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def judge_clean(
    detectors: Detectors, test: ImageSet, log: RowLog, *, on_batch: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Judge the untouched test images; return their rows in order."""
    return _judge(detectors, CLEAN, CLEAN, test, test.images, log, on_batch)


def judge_attacked(
    detectors: Detectors,
    attacked: AttackedSet,
    clean: ImageSet,
    log: RowLog,
    *,
    on_batch: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Judge attacked images; return their rows in order.

    Args:
        detectors: Who judges.
        attacked: The attacked images.
        clean: What they were made of.
        log: Where rows are kept; images whose row is there are not judged again.
        on_batch: Told how many images more are done.
    """
    name = attacked.attack.name
    return _judge(
        detectors, name, _attack_key(attacked.attack), clean, attacked.images, log, on_batch
    )


def _attack_key(attack: Attack) -> str:
    text = json.dumps(attack.parameters(), sort_keys=True)
    return f"{attack.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _judge(
    detectors: Detectors,
    name: str,
    key: str,
    clean: ImageSet,
    images: Tensor,
    log: RowLog,
    on_batch: Callable[[int], None],
) -> list[dict[str, Any]]:
    keys = [f"{key}/{digest}" for digest in clean.digests]
    missing = [row for row, found in enumerate(keys) if found not in log.rows]
    on_batch(len(keys) - len(missing))
    for start in range(0, len(missing), BATCH):
        rows = missing[start : start + BATCH]
        for row, record in zip(rows, _records(detectors, images[rows]), strict=True):
            about = {
                "attack": name,
                "index": clean.indices[row],
                "digest": clean.digests[row],
                "label": int(clean.labels[row]),
            }
            log.add(keys[row], about | record)
        on_batch(len(rows))
    return [log.rows[found] for found in keys]


def _records(detectors: Detectors, levels: Tensor) -> list[dict[str, Any]]:
    """Return what every detector says of 8-bit images [B, C, H, W]."""
    begun = time.perf_counter()
    images = to_model(levels.float().div(255), detectors.guard.model)
    verdict, told = _verdict(detectors, images)
    took = (time.perf_counter() - begun) / len(levels)
    known: dict[str, Tensor] = {}
    judged = {b.name: _baseline_rows(b, images, known) for b in detectors.baselines}
    labels = {} if told is None else restored_labels(told, detectors.candidates)
    labels |= {name: found for name, (_, found) in judged.items() if told and found}
    return [
        {
            "model_label": int(verdict.label[i]),
            "p_value": float(verdict.p_value[i]),
            "score": float(verdict.score[i]),
            "flagged_1": bool(verdict.p_value[i] <= ALPHAS[0]),
            "flagged_5": bool(verdict.p_value[i] <= ALPHAS[1]),
            "status": verdict.status[i],
            "restored_label": int(verdict.restored_label[i]),
            "seconds": round(took, 4),
            "baselines": {name: rows[i] for name, (rows, _) in judged.items()},
            "restorations": {name: found[i] for name, found in labels.items()},
        }
        for i in range(len(verdict))
    ]


def _verdict(detectors: Detectors, images: Tensor) -> tuple[Verdict, Told | None]:
    """Return the guard's verdict and, where there are candidates, what they are told."""
    if not detectors.candidates:
        return detectors.guard(images), None
    verdict, evidence = detectors.guard.with_evidence(images)
    return verdict, Told(detectors.guard, images, evidence)


def _baseline_rows(
    calibrated: CalibratedBaseline, images: Tensor, known: dict[str, Tensor]
) -> tuple[list[dict[str, float]], list[int]]:
    """Return p-value and score of each image, and its other class where the baseline has one."""
    labels: list[int] = []
    if isinstance(calibrated.baseline, RestoringBaseline):
        scores, restored = calibrated.baseline.anomaly_and_label(images)
        labels = [int(label) for label in restored]
    else:
        scores = _anomaly(calibrated.baseline, images, known)
    p_values = conformal_p_values(calibrated.anomalies, scores)
    rows = [
        {"p_value": p, "score": score}
        for p, score in zip(p_values.tolist(), scores.tolist(), strict=True)
    ]
    return rows, labels
