"""One calibration run: scores of clean images, the split, the fit, the calibration."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lrpguard.calibration import Calibration
from lrpguard.conformal import check_size, flagged_rank
from lrpguard.consensus import propose
from lrpguard.detector import CombinedDetector, Detector, fit_detector, needs_fit
from lrpguard.errors import (
    CalibrationSizeError,
    ConfigurationError,
    InputShapeError,
    NonFiniteScoreError,
)
from lrpguard.evidence import Evidence
from lrpguard.inputs import check_images
from lrpguard.noise import image_digest
from lrpguard.readings import Readings, read
from lrpguard.scorelog import ScoreLog
from lrpguard.scores import SCORES
from lrpguard.smoothing import Smoothing
from lrpguard.staged import Staged
from lrpguard.stopping import Looks
from lrpguard.version import __version__
from lrpguard.views import STRONG_VIEWS, VIEWS

FIT_SHARE = 0.5
"""Share of the images that fits a detector that learns; the rest calibrates it."""

SPLIT_FROM = 1000
"""Images from which they are split in two. Of fewer, all fit and all calibrate, crossed."""

PARTS = 10
"""Parts in turn left out of the fit of crossed images, to be scored by a detector without them."""


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
        looks: Fewer copies to calibrate for, too; None for all copies alone.
        noise_why: Why this noise, in words, where it was chosen on clean images.
        crossed: Whether every image fits and calibrates; None where a half would be too small.

    Raises:
        ConfigurationError: The last look is not at all copies.
    """

    alpha: float
    detector: str
    smoothing: Smoothing
    key: bytes
    fingerprint: str
    precision: str
    looks: Looks | None = None
    noise_why: str | None = None
    crossed: bool | None = None

    def __post_init__(self) -> None:
        if self.copies[-1] != self.smoothing.n:
            raise ConfigurationError(
                f"the last look is at {self.copies[-1]} copies, and smoothing makes "
                f"{self.smoothing.n}; take Looks.of({self.smoothing.n}), or that many copies."
            )

    @property
    def copies(self) -> tuple[int, ...]:
        """Numbers of copies to calibrate for, ascending; all of them last."""
        return (self.smoothing.n,) if self.looks is None else self.looks.copies


def calibrate(
    batches: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]],
    *,
    evidence: Callable[[Tensor], Sequence[Evidence]],
    plan: Plan,
    checkpoint: Path | None,
    progress: bool,
) -> Calibration:
    """Score clean images, split or cross them, fit the detector, and calibrate it.

    From ``SPLIT_FROM`` images on, one half fits the detector and the other calibrates it. Of fewer,
    or where half is too few for alpha, each is scored by a detector fitted to those outside its own
    tenth, and the detector that judges is fitted to all: calibration scores are still those of
    images that the fit has not seen, at the price of a guarantee that is no longer exact (Vovk
    2015, Barber et al. 2021).

    The split follows from the images' content, not from their order, so that an
    interrupted and resumed run gives the same calibration. An image seen twice counts once.

    Args:
        batches: Batches of clean images, or of tuples that begin with them.
        evidence: From a batch of images to its evidence at each look, the last of all copies.
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
        for batch in tqdm(
            batches, "calibrate", _count(batches), disable=not progress, unit="batch"
        ):
            images = check_images(batch[0] if isinstance(batch, (tuple, list)) else batch)
            shape = _one_shape(shape, images)
            _score_new(images, log, evidence)
            scores |= {digest: log.scores[digest] for digest in _digests(images)}
    if shape is None:
        raise CalibrationSizeError("no images were given; calibration needs clean images.")
    return _from_scores(scores, shape, plan)


def _count(batches: object) -> int | None:
    """Return the number of batches, None where it is not known before the end."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader of an IterableDataset has a length in name only
        return None


def _score_new(
    images: Tensor, log: ScoreLog, evidence: Callable[[Tensor], Sequence[Evidence]]
) -> None:
    """Score the images that the log does not hold yet; all copies first, then fewer."""
    digests = _digests(images)
    fresh = {d: i for i, d in enumerate(digests) if d not in log.scores}
    if not fresh:
        return
    at_looks = evidence(images[list(fresh.values())])
    rows = [read(shown, tuple(SCORES)).to_rows() for shown in reversed(at_looks)]
    whole = [list(chain(*parts)) for parts in zip(*rows, strict=True)]
    log.add(dict(zip(fresh, whole, strict=True)))


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
    crossed = _crosses(plan, len(rows))
    fitted = [_fit(plan, readings) for readings in _at_looks(rows, plan)]
    last = fitted[-1]
    return Calibration(
        detector=last.detector,
        anomalies=last.anomalies,
        proposals=last.proposals,
        alpha=plan.alpha,
        smoothing=plan.smoothing,
        image_shape=shape,
        fingerprint=plan.fingerprint,
        precision=plan.precision,
        fit_n=len(rows) if crossed else len(rows) - len(last.anomalies),
        crossed=crossed,
        data_digest=hashlib.sha256("".join(sorted(scores)).encode()).hexdigest(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        staged=None if plan.looks is None else _staged(plan.looks, fitted),
        noise_why=plan.noise_why,
    )


def _at_looks(rows: list[list[float]], plan: Plan) -> list[Readings]:
    """Return the readings at each look, fewest copies first, of rows that begin with all."""
    width = len(rows[0]) // len(plan.copies)
    starts = reversed(range(0, len(rows[0]), width))
    parts = [[row[start : start + width] for row in rows] for start in starts]
    return [Readings.from_rows(tuple(SCORES), part) for part in parts]


@dataclass(frozen=True)
class Fitted:
    """A fitted detector, and what it says of the images that calibrate it.

    Attributes:
        detector: The detector.
        anomalies: Scores of the calibrating images, each by a detector that has not seen it [n].
        proposals: Their evidence for another label [n]; None where there are no candidates.
    """

    detector: Detector
    anomalies: Tensor
    proposals: Tensor | None


def _crosses(plan: Plan, count: int) -> bool:
    """Say whether so many images are crossed, rather than split.

    They are, too, where half of them could flag nothing at alpha.
    """
    half = count - round(FIT_SHARE * count)
    usual = count < SPLIT_FROM or flagged_rank(half, plan.alpha) < 1
    return needs_fit(plan.detector) and (usual if plan.crossed is None else plan.crossed)


def _fit(plan: Plan, readings: Readings) -> Fitted:
    if _crosses(plan, len(readings)):
        check_size(len(readings), plan.alpha)
        return fit_crossed(plan.detector, readings)
    check_size(len(readings) - _fit_n(plan.detector, readings), plan.alpha)
    return fit_split(plan.detector, readings)


def _fit_n(name: str, readings: Readings) -> int:
    return round(FIT_SHARE * len(readings)) if needs_fit(name) else 0


def fit_split(name: str, readings: Readings) -> Fitted:
    """Fit to the first half of the images, if the detector learns, and score the others.

    Args:
        name: Name of the detector.
        readings: Of clean images, in the order of the split.

    Raises:
        CalibrationSizeError: Too few images.
    """
    fit_n = _fit_n(name, readings)
    detector = fit_detector(name, readings.select(slice(fit_n)))
    return Fitted(detector, *_calibrating(detector, readings.select(slice(fit_n, None))))


def fit_crossed(name: str, readings: Readings) -> Fitted:
    """Fit to all images; score each by a detector fitted to those outside its own tenth.

    Args:
        name: Name of a detector that learns.
        readings: Of clean images, in the order of the split.

    Raises:
        CalibrationSizeError: Too few images.

    Source: Vovk 2015 (cross-conformal prediction); Barber et al. 2021 (jackknife+ and CV+).
    """
    needed = math.ceil(CombinedDetector.images_needed() * PARTS / (PARTS - 1))
    if len(readings) < needed:
        raise CalibrationSizeError(
            f"{len(readings)} clean images to fit and calibrate the combined detector; give at "
            f"least {needed}, better 1,000, or use detector='paper', which fits nothing."
        )
    detector = fit_detector(name, readings)
    part = torch.arange(len(readings)) % PARTS
    anomalies = torch.empty(len(readings), dtype=torch.float64)
    proposals = None if readings.candidates is None else torch.empty_like(anomalies)
    for number in range(PARTS):
        without = fit_detector(name, readings.select(part != number))
        rows = part == number
        anomalies[rows], proposed = _calibrating(without, readings.select(rows))
        if proposals is not None and proposed is not None:
            proposals[rows] = proposed
    return Fitted(detector, anomalies, proposals)


def _calibrating(detector: Detector, readings: Readings) -> tuple[Tensor, Tensor | None]:
    """Return scores, and evidence for another label, of images that the detector has not seen."""
    anomalies = detector.anomaly(readings)
    return anomalies, _proposals(detector, readings, anomalies)


def _staged(looks: Looks, fitted: Sequence[Fitted]) -> Staged:
    proposals = [at.proposals for at in fitted if at.proposals is not None]
    return Staged(
        looks=looks,
        detectors=tuple(at.detector for at in fitted),
        anomalies=torch.stack([at.anomalies for at in fitted], 1),
        proposals=torch.stack(proposals, 1) if proposals else None,
    )


def _proposals(detector: Detector, readings: Readings, anomalies: Tensor) -> Tensor | None:
    """Return the evidence for another label of clean images, where there are candidates [n]."""
    if not isinstance(detector, CombinedDetector) or readings.candidates is None:
        return None
    found, painted = readings.candidates, detector.painted(readings)
    return propose(found, detector.consistency, anomalies, painted).evidence


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
        "views": [*VIEWS, "covered", *STRONG_VIEWS],
        "way": str(smoothing.way),
    } | ({} if plan.looks is None else {"looks": list(plan.copies)})


def split_key(digest: str) -> bytes:
    """Return what the split sorts the images by: a hash of their content's digest."""
    return hashlib.sha256(digest.encode()).digest()


def fit_images(images: Iterable[Tensor], count: int) -> list[Tensor]:
    """Return up to ``count`` of the images that :func:`calibrate` will fit to.

    Where it splits the images, these never calibrate. Where it crosses them they do, so nothing
    may be chosen on them by their scores.

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
