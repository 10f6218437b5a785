"""The guard: the only place where the steps are put in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lrpguard.calibration import Calibration
from lrpguard.calibrator import Plan, calibrate
from lrpguard.consensus import Consensus, propose, restored
from lrpguard.detector import CombinedDetector, needs_fit
from lrpguard.errors import (
    CalibrationMismatchError,
    ConfigurationError,
    ModelOutputError,
    NonFiniteScoreError,
    NotCalibratedError,
)
from lrpguard.evidence import Evidence
from lrpguard.fingerprint import model_fingerprint, model_precision
from lrpguard.inputs import check_eval, check_images, check_model
from lrpguard.noise import key_bytes
from lrpguard.readings import Readings, read
from lrpguard.restoration import Restoration, Whitening, whiten
from lrpguard.smoothing import (
    Smoothing,
    check_budget,
    chunk_size,
    clean_logits,
    smooth,
    to_model,
)
from lrpguard.verdict import Verdict, judged, unguarded, with_empty_maps, with_restoration

Policy = Literal["fail_closed", "fail_open"]
Restoring = Consensus | Whitening | Literal["auto"] | None

_log = logging.getLogger("lrpguard")


class Guard(nn.Module):
    """A classifier, wrapped: each request is explained, scored, flagged and restored.

    The wrapped model is never changed: its weights, mode, hooks, grad flags and device are
    the same after any call. Several guards, or several threads, may share one model.

    Args:
        model: Eager ``nn.Module`` in eval mode, from [B, C, H, W] in [0, 1] to logits [B, K].
            Wrap a model that wants normalised input with :func:`lrpguard.normalized`.
        calibration: A :class:`Calibration`, or the file of one; None until :meth:`calibrate`.
        smoothing: Copies, noise and composite; None takes the calibration's, or the paper's.
        restoration: How flagged requests are restored: :class:`Consensus` takes the class that
            noise and denoised views fall back to, :class:`Whitening` is the paper's way, None
            only flags. ``"auto"`` goes with the detector: consensus for ``combined``, whitening
            for ``paper``.
        on_failure: What to do when the guard itself fails: ``"fail_closed"`` raises,
            ``"fail_open"`` returns the model's own answer, marked ``unguarded``. Images that
            break the input contract are refused under either.
        key: Secret key of the noise, 16 to 64 bytes, so that nobody outside can predict it;
            None takes the public seed.
        memory_budget: Bytes of activations one chunk of copies may hold; None takes the
            device's default.

    Raises:
        ModelError: The model cannot be wrapped.
        CalibrationError: The calibration is not one of this model.
        ConfigurationError: An argument is out of its range or contradicts the calibration.

    Example:
        >>> import torch
        >>> from lrpguard import Guard
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
        >>> guard = Guard(model)
        >>> _ = guard.calibrate(torch.rand(120, 3, 2, 2).split(30), alpha=0.05)
        >>> guard(torch.rand(4, 3, 2, 2)).p_value.shape
        torch.Size([4])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        calibration: Calibration | str | Path | None = None,
        smoothing: Smoothing | None = None,
        restoration: Restoring = "auto",
        on_failure: Policy = "fail_closed",
        key: bytes | None = None,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        if on_failure not in ("fail_closed", "fail_open"):
            raise ConfigurationError(
                f"on_failure is {on_failure!r}; there are 'fail_closed' and 'fail_open'."
            )
        if restoration not in ("auto", None) and not isinstance(restoration, Consensus | Whitening):
            raise ConfigurationError(
                f"restoration is {restoration!r}; there are 'auto', Consensus(), Whitening() and "
                "None."
            )
        self.model = check_model(model)
        self.training = False
        if isinstance(calibration, (str, os.PathLike)):
            calibration = Calibration.load(calibration)
        if calibration is not None:
            calibration.check_matches(model_fingerprint(self.model), model_precision(self.model))
            if smoothing not in (None, calibration.smoothing):
                raise CalibrationMismatchError(
                    f"smoothing is {smoothing}; the calibration was made with "
                    f"{calibration.smoothing}. Leave it out, or calibrate again."
                )
            smoothing = calibration.smoothing
            _check_restoration(restoration, calibration.detector.name)
        self.calibration = calibration
        self.smoothing = smoothing or Smoothing()
        self.restoration = restoration
        self.on_failure: Policy = on_failure
        self._key = key_bytes(self.smoothing.seed, key)
        check_budget(memory_budget)
        self._memory_budget = memory_budget
        self._chunks: dict[tuple[object, ...], int] = {}

    def train(self, mode: bool = True) -> Guard:
        """Leave the wrapped model's mode alone, whatever is asked: a guard only infers."""
        return self

    def forward(self, images: Tensor, *, maps: bool = False) -> Verdict:
        """Judge a batch of requests.

        Args:
            images: Floating-point pixels in [0, 1], [B, C, H, W].
            maps: Whether the verdict shall hold relevance and variance maps.

        Returns:
            The verdict, on the model's device.

        Raises:
            NotCalibratedError: There is no calibration.
            InputError: The images break the contract.
            InputShapeError: The images have another size than the calibrated.
            CalibrationMismatchError: The model has another precision than the calibrated.
            TrainingModeError: The model was put in train mode.
            LrpGuardError: The guard failed, under ``fail_closed``.
        """
        calibration = self._calibrated()
        check_eval(self.model)
        images = check_images(images)
        calibration.check_shape(images)
        calibration.check_precision(model_precision(self.model))  # guard.half() after the fact
        images = to_model(images, self.model)
        logits = clean_logits(self.model, images)
        try:
            return self._judge(images, logits, calibration, maps)
        except Exception as error:
            if self.on_failure == "fail_closed":
                raise
            if len(images) == 1:
                _log.exception("the guard failed; a request goes unguarded")
                verdict = unguarded(logits, f"{type(error).__name__}: {error}")
                return with_empty_maps(verdict, images) if maps else verdict
        # One request must not take the guard from the others of its batch.
        return Verdict.concatenate([self(image[None], maps=maps) for image in images])

    def evidence(self, images: Tensor, *, views: bool = False) -> Evidence:
        """Return what the noisy copies of each image show; needs no calibration.

        Args:
            images: Floating-point pixels in [0, 1], [B, C, H, W].
            views: Whether to run the denoised views, too, which ``combined`` needs.

        Raises:
            InputError: The images break the contract.
            ModelError: The model cannot be explained.
        """
        check_eval(self.model)
        images = to_model(check_images(images), self.model)
        return self._smooth(images, clean_logits(self.model, images), views)

    def calibrate(
        self,
        images: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]],
        *,
        alpha: float = 0.05,
        detector: str = "combined",
        checkpoint: str | Path | None = None,
        progress: bool = False,
    ) -> Calibration:
        """Learn what clean requests look like, and use it from now on.

        Args:
            images: Batches of clean images in [0, 1], [B, C, H, W], all of one size, such as a
                DataLoader gives; of a tuple (images, labels) the first is taken. They must be
                like the requests to come, and must not have trained the model.
            alpha: Share of clean requests that may be flagged.
            detector: ``"combined"`` (needs fit images: half are set aside), or ``"paper"``.
            checkpoint: JSONL file that keeps the scores as they are made: an interrupted
                calibration started again with the same file goes on where it stopped.
            progress: Show a progress bar on standard error.

        Returns:
            The calibration; ``.save(path)`` writes it.

        Raises:
            CalibrationSizeError: Too few images for alpha, or for the detector's fit.
            CalibrationMismatchError: The checkpoint belongs to another run.
            ConfigurationError: There is no such detector, or it proposes no label to restore.
            NonFiniteScoreError: A score is NaN or infinite.
            InputError: Images break the contract or differ in size.
        """
        check_eval(self.model)
        _check_restoration(self.restoration, detector)
        self.calibration = calibrate(
            images,
            evidence=lambda batch: self.evidence(batch, views=True),
            plan=Plan(
                alpha=alpha,
                detector=detector,
                smoothing=self.smoothing,
                key=self._key,
                fingerprint=model_fingerprint(self.model),
                precision=model_precision(self.model),
            ),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            progress=progress,
        )
        return self.calibration

    def as_classifier(self) -> GuardedClassifier:
        """Return a drop-in ``nn.Module`` from images to logits [B, K], restored where flagged."""
        return GuardedClassifier(self)

    def _calibrated(self) -> Calibration:
        if self.calibration is None:
            raise NotCalibratedError(
                "the guard has no calibration, so it cannot say what is unusual. Call "
                "guard.calibrate(clean_batches, alpha=0.05), or pass calibration='file'."
            )
        return self.calibration

    def _smooth(self, images: Tensor, logits: Tensor, views: bool) -> Evidence:
        return smooth(
            self.model,
            images,
            logits,
            logits.argmax(1),
            smoothing=self.smoothing,
            key=self._key,
            chunk=self._chunk(images),
            views=views,
        )

    def _chunk(self, images: Tensor) -> int:
        """Return the chunk size for this kind of image, measured at its first request."""
        kind = (*images.shape[1:], images.dtype, str(images.device))
        if kind not in self._chunks:
            self._chunks[kind] = chunk_size(
                self.model,
                images,
                composite=self.smoothing.composite,
                memory_budget=self._memory_budget,
            )
        return self._chunks[kind]

    def _judge(
        self, images: Tensor, logits: Tensor, calibration: Calibration, maps: bool
    ) -> Verdict:
        """Score, flag and restore checked images."""
        broken = (~torch.isfinite(logits)).any(1)
        if bool(broken.any()):
            raise ModelOutputError(
                f"the model returned NaN or infinite logits for images {_rows(broken)} of the "
                "batch; there is no prediction to guard."
            )
        detector = calibration.detector
        evidence = self._smooth(images, logits, detector.takes_views)
        readings = read(evidence, detector.score_names)
        anomaly = detector.anomaly(readings)
        if not bool(torch.isfinite(anomaly).all()):
            raise NonFiniteScoreError(
                f"the scores of images {_rows(~torch.isfinite(anomaly))} of the batch are NaN or "
                "infinite: the model overflows on noisy copies of them."
            )
        p_value = calibration.p_values(anomaly)
        verdict = judged(evidence, anomaly, p_value, p_value <= calibration.alpha)
        if maps:
            verdict = replace(
                verdict,
                relevance=evidence.relevance_mean,
                relevance_variance=evidence.relevance_variance,
                changed_pixels=torch.zeros_like(evidence.relevance_mean, dtype=torch.bool),
            )
        rows = verdict.flagged.nonzero().flatten()
        if self.restoration is None or len(rows) == 0:
            return verdict
        restoration = self._restore(
            images[rows],
            evidence.select(rows),
            readings.select(rows.cpu()),
            anomaly[rows.cpu()],
            calibration,
        )
        return with_restoration(verdict, rows, restoration)

    def _restore(
        self,
        images: Tensor,
        evidence: Evidence,
        readings: Readings,
        anomaly: Tensor,
        calibration: Calibration,
    ) -> Restoration:
        """Restore flagged images in the configured way."""
        how = self.restoration
        detector = calibration.detector
        if how == "auto":
            how = Consensus() if isinstance(detector, CombinedDetector) else Whitening()
        if isinstance(how, Whitening):
            return whiten(
                self.model,
                images,
                evidence,
                whitening=how,
                smoothing=self.smoothing,
                key=self._key,
                chunk=self._chunk(images),
            )
        _check_restoration(how, detector.name)
        assert isinstance(how, Consensus)
        assert isinstance(detector, CombinedDetector)
        assert readings.candidates is not None
        proposal = propose(readings.candidates, detector.consistency, anomaly)
        accepted = calibration.replacement_p_values(proposal.evidence) <= how.harm
        return restored(proposal, accepted, evidence)


class GuardedClassifier(nn.Module):
    """A guard in the shape of the bare model: logits in place of a verdict.

    Where a request is flagged and restored, its logits are those of the restored image. Where
    no label was accepted the model's own logits stand, since logits cannot say "unknown":
    use the guard itself where abstention matters.

    Args:
        guard: The guard.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.guard = guard
        self.training = False

    def train(self, mode: bool = True) -> GuardedClassifier:
        """Leave the wrapped model's mode alone, as :meth:`Guard.train` does."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] for images [B, C, H, W] in [0, 1]; raises as the guard does."""
        verdict: Verdict = self.guard(images)
        return verdict.restored_logits


def _check_restoration(how: Restoring, detector: str) -> None:
    """Refuse consensus with a detector that proposes no other label.

    Raises:
        ConfigurationError: There is no such detector, or it proposes none.
    """
    if isinstance(how, Consensus) and not needs_fit(detector):
        raise ConfigurationError(
            f"restoration is {how}, and the calibration is one of the {detector!r} detector, "
            "which proposes no other label. Calibrate with detector='combined', or restore by "
            "Whitening()."
        )


def _rows(mask: Tensor) -> list[int]:
    """Return the first few rows where the mask holds, for an error message."""
    return mask.nonzero().flatten()[:8].tolist()
