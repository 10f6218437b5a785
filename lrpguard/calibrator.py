"""One calibration run: scores of clean images, the split, the fit, the calibration."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from lrpguard.calibration import Calibration, check_size
from lrpguard.consensus import propose
from lrpguard.detector import CombinedDetector, Detector, fit_detector, needs_fit
from lrpguard.errors import CalibrationSizeError, InputShapeError, NonFiniteScoreError
from lrpguard.evidence import Evidence
from lrpguard.inputs import check_images
from lrpguard.noise import image_digest
from lrpguard.readings import Readings, read
from lrpguard.scorelog import ScoreLog
from lrpguard.scores import SCORES
from lrpguard.smoothing import Smoothing
from lrpguard.version import __version__
from lrpguard.views import STRONG_VIEWS, VIEWS

FIT_SHARE = 0.5
"""Share of the images that fits a detector that learns; the rest calibrates it."""


@dataclass(frozen=True)
class Plan:
    """What a calibration run is for.

    Attributes:
        alpha: False-positive rate.
        detector: Name of the detector.
        smoothing: How the copies are made and explained.
        key: Noise key.
        fingerprint: Fingerprint of the model.
        precision: Arithmetic of the model.
    """

    alpha: float
    detector: str
    smoothing: Smoothing
    key: bytes
    fingerprint: str
    precision: str


def calibrate(
    batches: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]],
    *,
    evidence: Callable[[Tensor], Evidence],
    plan: Plan,
    checkpoint: Path | None,
    progress: bool,
) -> Calibration:
    """Score clean images, split them, fit the detector, and calibrate it.

    The split follows from the images' content, not from their order, so that an
    interrupted and resumed run gives the same calibration. An image seen twice counts once.

    Args:
        batches: Batches of clean images, or of tuples that begin with them.
        evidence: From a batch of images to its evidence.
        plan: What to calibrate for.
        checkpoint: Where to keep the scores, None for memory only.
        progress: Whether to show a progress bar.

    Raises:
        CalibrationSizeError: Too few images.
        CalibrationMismatchError: The checkpoint belongs to another run.
        NonFiniteScoreError: A score is NaN or infinite.
        InputError: Images break the contract or differ in size.
    """
    check_size(10**9, plan.alpha)  # refuse an impossible alpha, or detector, before the work
    needs_fit(plan.detector)
    shape: tuple[int, int, int] | None = None
    scores: dict[str, list[float]] = {}
    with ScoreLog(checkpoint, _header(plan)) as log:
        total = len(batches) if isinstance(batches, Sized) else None
        for batch in tqdm(batches, "calibrate", total, disable=not progress, unit="batch"):
            images = check_images(batch[0] if isinstance(batch, (tuple, list)) else batch)
            shape = _one_shape(shape, images)
            _score_new(images, log, evidence)
            scores |= {digest: log.scores[digest] for digest in _digests(images)}
    if shape is None:
        raise CalibrationSizeError("no images were given; calibration needs clean images.")
    return _from_scores(scores, shape, plan)


def _score_new(images: Tensor, log: ScoreLog, evidence: Callable[[Tensor], Evidence]) -> None:
    """Score the images that the log does not hold yet."""
    digests = _digests(images)
    fresh = {d: i for i, d in enumerate(digests) if d not in log.scores}
    if not fresh:
        return
    readings = read(evidence(images[list(fresh.values())]), tuple(SCORES))
    log.add(dict(zip(fresh, readings.to_rows(), strict=True)))


def _from_scores(
    scores: dict[str, list[float]], shape: tuple[int, int, int], plan: Plan
) -> Calibration:
    order = sorted(scores, key=split_key)
    rows = [scores[digest] for digest in order]
    broken = sum(not all(map(math.isfinite, row)) for row in rows)
    if broken:
        raise NonFiniteScoreError(
            f"{broken} of {len(rows)} clean images have NaN or infinite scores; the "
            "model overflows on them or on their noisy copies. Run it in float32, or lower sigma."
        )
    readings = Readings.from_rows(tuple(SCORES), rows)
    fit_n = round(FIT_SHARE * len(rows)) if needs_fit(plan.detector) else 0
    check_size(len(rows) - fit_n, plan.alpha)
    detector = fit_detector(plan.detector, readings.select(slice(fit_n)))
    rest = readings.select(slice(fit_n, None))
    anomalies = detector.anomaly(rest)
    return Calibration(
        detector=detector,
        anomalies=anomalies,
        proposals=_proposals(detector, rest, anomalies),
        alpha=plan.alpha,
        smoothing=plan.smoothing,
        image_shape=shape,
        fingerprint=plan.fingerprint,
        precision=plan.precision,
        fit_n=fit_n,
        data_digest=hashlib.sha256("".join(sorted(scores)).encode()).hexdigest(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
    )


def _proposals(detector: Detector, readings: Readings, anomalies: Tensor) -> Tensor | None:
    """Return the evidence for another label of clean images, where there are candidates [n]."""
    if not isinstance(detector, CombinedDetector) or readings.candidates is None:
        return None
    return propose(readings.candidates, detector.consistency, anomalies).evidence


def _header(plan: Plan) -> dict[str, object]:
    """Return what the scores of a run depend on; the secret key shows only as a digest."""
    smoothing = plan.smoothing
    return {
        "version": __version__,
        "fingerprint": plan.fingerprint,
        "precision": plan.precision,
        "n": smoothing.n,
        "sigma": smoothing.sigma,
        "composite": smoothing.composite.to_dict(),
        "key": hashlib.sha256(b"lrpguard checkpoint" + plan.key).hexdigest()[:16],
        "scores": list(SCORES),
        "views": [*VIEWS, *STRONG_VIEWS],
    }


def split_key(digest: str) -> bytes:
    """Return what the split sorts the images by: a hash of their content's digest."""
    return hashlib.sha256(digest.encode()).digest()


def fit_images(images: Iterable[Tensor], count: int) -> list[Tensor]:
    """Return up to ``count`` of the images that :func:`calibrate` will fit to, never to calibrate.

    Args:
        images: All the images of the run to come, each [C, H, W]; one is held at a time, beside
            those that are kept.
        count: How many at most.
    """
    kept: dict[bytes, Tensor] = {}
    seen: set[bytes] = set()
    for image in images:
        key = split_key(image_digest(image, b"").hex())
        seen.add(key)
        kept[key] = image
        if len(kept) > count:
            del kept[max(kept)]
    half = round(FIT_SHARE * len(seen))
    return [kept[key] for key in sorted(kept)[:half]]


def _digests(images: Tensor) -> list[str]:
    return [image_digest(image, b"").hex() for image in images]


def _one_shape(shape: tuple[int, int, int] | None, images: Tensor) -> tuple[int, int, int]:
    channels, height, width = images.shape[1:]
    found = (channels, height, width)
    if shape is not None and shape != found:
        raise InputShapeError(
            f"a batch has [C, H, W] = {list(found)} after one of {list(shape)}; scores depend on "
            "the size, so all calibration images must have one. Resize them first."
        )
    return found
