"""Split conformal calibration: p-values, the threshold's guarantee, and the file.

Source: Vovk, Gammerman, Shafer 2005 (conformal p-values); the band of the realised
false-positive rate is the Beta law of an order statistic, Vovk 2012.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.stats import beta
from torch import Tensor

from lrpguard.conformal import check_size, conformal_p_values, flagged_rank
from lrpguard.detector import Detector, load_detector
from lrpguard.errors import (
    CalibrationFileError,
    CalibrationMismatchError,
    ConfigurationError,
    InputShapeError,
    NonFiniteScoreError,
    NotCalibratedError,
)
from lrpguard.smoothing import Smoothing
from lrpguard.staged import Staged
from lrpguard.stopping import CalibratedLooks

SCHEMA = 5
"""Version of the calibration file's form."""

_RECORD = "lrpguard"
_NO_LOOKS = "It was made without looks; calibrate with looks=Looks.of(n)."


@dataclass(frozen=True, eq=False)
class Calibration:
    """What clean data look like to one guard of one model.

    Attributes:
        detector: The fitted detector.
        anomalies: Anomaly scores of the clean calibration images, ascending, float64 [n].
        proposals: Evidence for another label of the same images, ascending, float64 [n]; None
            where the detector has no candidates.
        alpha: False-positive rate at which requests are flagged, in (0, 1).
        smoothing: How the copies were made and explained.
        image_shape: (C, H, W) of the images.
        fingerprint: Fingerprint of the model.
        precision: Arithmetic of the model.
        fit_n: Clean images that fitted the detector, disjoint from the n that calibrate unless
            ``crossed``.
        data_digest: Digest of all images used.
        created: ISO date and time, UTC.
        version: lrpguard's version.
        staged: What the same images look like after fewer copies, where that was asked for.
        noise_why: Why this noise, in words, where it was chosen on clean images.
        crossed: Whether the same images fitted and calibrate, each scored by a detector fitted
            without its tenth of them.

    Raises:
        ConfigurationError: ``alpha`` lies outside (0, 1), or the last look is not at all copies.
        NonFiniteScoreError: An anomaly score is NaN or infinite.
        CalibrationSizeError: n is too small for alpha: no p-value could reach it.
    """

    detector: Detector
    anomalies: Tensor
    proposals: Tensor | None
    alpha: float
    smoothing: Smoothing
    image_shape: tuple[int, int, int]
    fingerprint: str
    precision: str
    fit_n: int
    data_digest: str
    created: str
    version: str
    staged: Staged | None = None
    noise_why: str | None = None
    crossed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", round(float(self.alpha), 12))  # 1 - 0.9 is meant as 0.1
        object.__setattr__(self, "anomalies", _ascending(self.anomalies))
        if self.proposals is not None:
            object.__setattr__(self, "proposals", _ascending(self.proposals))
        check_size(self.n, self.alpha)
        if self.copies[-1] != self.smoothing.n:
            raise ConfigurationError(
                f"the last look is at {self.copies[-1]} copies, of {self.smoothing.n}; it must be "
                "at all of them."
            )

    @property
    def copies(self) -> tuple[int, ...]:
        """Numbers of copies at which a request can be judged, ascending; all of them last."""
        return (self.smoothing.n,) if self.staged is None else self.staged.looks.copies

    @cached_property
    def rule(self) -> CalibratedLooks:
        """The rule of early stopping, which keeps ``alpha`` over all looks together.

        Raises:
            ConfigurationError: There are no looks.
        """
        if self.staged is None:
            raise ConfigurationError(_NO_LOOKS)
        return self.staged.looks.calibrate(self.staged.anomalies, self.alpha)

    def at(self, copies: int) -> Calibration:
        """Return the calibration for requests of which so many copies are made.

        Its false-positive rate is ``alpha`` by itself: the number must not depend on the image.

        Args:
            copies: One of :attr:`copies`.

        Raises:
            ConfigurationError: It is none of them.
        """
        if copies not in self.copies:
            known = f"it knows {list(self.copies)}"
            raise ConfigurationError(
                f"the calibration knows nothing of {copies} copies; {known}. "
                + (_NO_LOOKS if self.staged is None else "Take one of these.")
            )
        return self._at[self.copies.index(copies)]

    @cached_property
    def _at(self) -> tuple[Calibration, ...]:
        """The calibration of each look."""
        staged = self.staged
        if staged is None:
            return (self,)
        fewer = tuple(
            replace(
                self,
                detector=staged.detectors[look],
                anomalies=staged.anomalies[:, look],
                proposals=None if staged.proposals is None else staged.proposals[:, look],
                smoothing=replace(self.smoothing, n=copies),
                staged=None,
            )
            for look, copies in enumerate(self.copies[:-1])
        )
        return (*fewer, self)

    @property
    def n(self) -> int:
        """Number of calibration images."""
        return len(self.anomalies)

    @property
    def threshold(self) -> float:
        """Largest anomaly score that is not flagged."""
        return float(self.anomalies[self.n - flagged_rank(self.n, self.alpha)])

    def fpr_band(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the central band in which this calibration's realised false-positive rate lies.

        Over calibration sets of this size the realised rate follows
        Beta(k, n + 1 - k) with k = floor(alpha (n + 1)), for scores without ties; of crossed
        images nearly so (docs/method.md).
        """
        k = flagged_rank(self.n, self.alpha)
        tail = (1 - confidence) / 2
        low, high = beta.ppf([tail, 1 - tail], k, self.n + 1 - k)
        return float(low), float(high)

    def p_values(self, anomalies: Tensor) -> Tensor:
        """Return conformal p-values ``(1 + #{calibration >= s}) / (n + 1)``, float64 [B].

        Args:
            anomalies: Anomaly scores of the requests [B].
        """
        return conformal_p_values(self.anomalies, anomalies)

    def flags(self, p_values: Tensor) -> Tensor:
        """Return whether requests with these p-values [B] are flagged, bool [B]: p at most alpha.

        Counted in steps of 1 / (n + 1), so that no rounding of alpha (1 / 30) or p decides.
        """
        return p_values * (self.n + 1) < flagged_rank(self.n, self.alpha) + 0.5

    def replacement_p_values(self, evidence: Tensor) -> Tensor:
        """Return the conformal p-values of the evidence for another label, float64 [B].

        For a clean request P(p <= harm) <= harm: that bounds how often a clean label is replaced.

        Args:
            evidence: Evidence of the proposals of the requests [B].

        Raises:
            NotCalibratedError: The detector has no candidates, so nothing was kept of them.
        """
        if self.proposals is None:
            raise NotCalibratedError(
                f"the calibration is one of the {self.detector.name!r} detector, which proposes no "
                "other label. Calibrate with detector='combined', or restore by Whitening()."
            )
        return conformal_p_values(self.proposals, evidence)

    def check_matches(self, fingerprint: str, precision: str) -> None:
        """Refuse a model other than the calibrated one.

        Raises:
            CalibrationMismatchError: Another precision, architecture or weights.
        """
        self.check_precision(precision)
        if fingerprint != self.fingerprint:
            raise CalibrationMismatchError(
                f"the model's fingerprint is {fingerprint[:12]}…; the calibration was made for "
                f"{self.fingerprint[:12]}…, another architecture, other weights or another "
                "normalisation. Calibrate this model, or load the model that was calibrated."
            )

    def check_precision(self, precision: str) -> None:
        """Refuse arithmetic other than the calibrated one.

        Raises:
            CalibrationMismatchError: Another precision.
        """
        if precision != self.precision:
            raise CalibrationMismatchError(
                f"the model runs in {precision}; the calibration was made in {self.precision}, "
                "and scores depend on it. Calibrate again in this precision."
            )

    def check_shape(self, images: Tensor) -> None:
        """Refuse images of another size than the calibrated one.

        Raises:
            InputShapeError: (C, H, W) differs.
        """
        shape = tuple(images.shape[1:])
        if shape != self.image_shape:
            raise InputShapeError(
                f"images have [C, H, W] = {list(shape)}; the calibration was made for "
                f"{list(self.image_shape)}, and scores depend on the size. Resize the images, or "
                "calibrate at this size."
            )

    def save(self, path: str | Path) -> None:
        """Write the calibration to one ``.safetensors`` file, atomically.

        Raises:
            OSError: The file cannot be written.
        """
        tensors = {"anomalies": self.anomalies} | {
            f"detector.{name}": tensor.contiguous()
            for name, tensor in self.detector.state().items()
        }
        if self.proposals is not None:
            tensors["proposals"] = self.proposals
        if self.staged is not None:
            tensors |= self.staged.tensors()
        record = self._record()
        record["digest"] = _digest(tensors, record)
        path = Path(path)
        partial = path.with_name(path.name + ".writing")
        try:
            save_file(tensors, str(partial), metadata={_RECORD: json.dumps(record)})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error
        os.replace(partial, path)

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read a calibration file.

        Raises:
            CalibrationFileError: Missing, truncated, altered, not a calibration, or of a
                schema that is not this lrpguard's.
        """
        tensors, record = _read(Path(path))
        schema = record.get("schema")
        if schema != SCHEMA:
            raise CalibrationFileError(
                f"{path} has schema {schema}, written by lrpguard {record.get('version')}; this "
                f"one reads schema {SCHEMA}. Update lrpguard, or calibrate again."
            )
        if record.pop("digest", None) != _digest(tensors, record):
            raise CalibrationFileError(
                f"{path} does not match its own digest: it was altered or damaged after it was "
                "written. Restore it from a copy, or calibrate again."
            )
        try:
            return _from_record(tensors, record)
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationFileError(
                f"{path} is not a complete calibration ({type(error).__name__}: {error}). "
                "Calibrate again."
            ) from error

    def _record(self) -> dict[str, Any]:
        low, high = self.fpr_band()
        return {
            "schema": SCHEMA,
            "version": self.version,
            "created": self.created,
            "alpha": self.alpha,
            "n": self.n,
            "fit_n": self.fit_n,
            "crossed": self.crossed,
            "fpr_band_95": [low, high],
            "threshold": self.threshold,
            "detector": self.detector.name,
            "scores": list(self.detector.score_names),
            "smoothing": self.smoothing.to_dict(),
            "noise_why": self.noise_why,
            "preprocessing": {"layout": "NCHW", "range": [0, 1], "shape": list(self.image_shape)},
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "data_digest": self.data_digest,
            "looks": None if self.staged is None else self.staged.looks.to_dict(),
        }


def _ascending(scores: Tensor) -> Tensor:
    """Return clean scores ascending, float64 [n].

    Raises:
        NonFiniteScoreError: One is NaN or infinite.
    """
    broken = int((~torch.isfinite(scores)).sum())
    if broken:
        raise NonFiniteScoreError(
            f"{broken} of {len(scores)} calibration scores are NaN or infinite; a model whose "
            "outputs overflow cannot be calibrated."
        )
    return scores.double().sort().values


def _digest(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    state = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CalibrationFileError(
            f"there is no calibration file {path}; make one with guard.calibrate(...).save(path) "
            "or 'lrpguard calibrate'."
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: the tensors lie in the file, which may be written over while they serve.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        record = json.loads(metadata[_RECORD])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise CalibrationFileError(
            f"{path} is not a whole lrpguard calibration file ({error}): truncated, or another "
            "kind of file. Restore it from a copy, or calibrate again."
        ) from error
    if not isinstance(record, dict):
        raise CalibrationFileError(f"{path} holds no calibration record. Calibrate again.")
    return tensors, record


def _from_record(tensors: dict[str, Tensor], record: Mapping[str, Any]) -> Calibration:
    state = {
        name.removeprefix("detector."): tensor
        for name, tensor in tensors.items()
        if name.startswith("detector.")
    }
    channels, height, width = record["preprocessing"]["shape"]
    detector = load_detector(record["detector"], tuple(record["scores"]), state)
    looks = record["looks"]
    return Calibration(
        detector=detector,
        anomalies=tensors["anomalies"],
        proposals=tensors["proposals"] if detector.takes_views else None,
        alpha=record["alpha"],
        smoothing=Smoothing.from_dict(record["smoothing"]),
        image_shape=(channels, height, width),
        fingerprint=record["fingerprint"],
        precision=record["precision"],
        fit_n=record["fit_n"],
        data_digest=record["data_digest"],
        created=record["created"],
        version=record["version"],
        staged=None if looks is None else Staged.load(looks, tensors, detector),
        noise_why=record["noise_why"],
        crossed=record["crossed"],
    )
