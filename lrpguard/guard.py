"""The guard: the only place where the steps are put in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from lrpguard.calibration import Calibration
from lrpguard.calibrator import Plan, calibrate
from lrpguard.classifier import GuardedClassifier
from lrpguard.consensus import check_proposes
from lrpguard.copies import PLAIN, CopyRun
from lrpguard.errors import CalibrationMismatchError, ConfigurationError, NotCalibratedError
from lrpguard.evidence import Evidence
from lrpguard.fingerprint import model_fingerprint, model_precision
from lrpguard.inputs import check_eval, check_images, check_model
from lrpguard.judging import Judged, check_finite, judge, ready, stop_early
from lrpguard.noise import key_bytes
from lrpguard.preparing import DEFAULT_REPEATS, Preparation, check_unsettled, probe
from lrpguard.restoring import Restoring, answer, check_restoring
from lrpguard.smoothing import ChunkSizes, Smoothing, clean_logits, to_model
from lrpguard.stopping import Looks, check_rising
from lrpguard.tuning import Batch, Choice, choose_for
from lrpguard.verdict import Verdict, unguarded, with_empty_maps

Policy = Literal["fail_closed", "fail_open"]

_log = logging.getLogger("lrpguard")


class Guard(nn.Module):
    """A classifier, wrapped: each request is explained, scored, flagged and restored.

    The wrapped model is never changed: its weights, mode, hooks, grad flags and device are
    the same after any call. Several guards, or several threads, may share one model.

    Args:
        model: Eager ``nn.Module`` in eval mode, from [B, C, H, W] in [0, 1] to logits [B, K].
            Wrap a model that wants normalised input with :func:`lrpguard.normalized`.
        calibration: A :class:`Calibration`, or the file of one; None until :meth:`calibrate`.
        smoothing: Copies, noise and composite, or the :class:`Choice` of
            :func:`lrpguard.choose_smoothing`. None takes the calibration's; without one,
            :meth:`calibrate` chooses noise that suits the model, and until then it is the paper's.
        restoration: :class:`Consensus` takes the class that noise and denoised views fall back to,
            :class:`Whitening` is the paper's way, None only flags. ``"auto"`` goes with the
            detector: consensus for ``combined``, whitening for ``paper``.
        on_failure: What to do when the guard itself fails: ``"fail_closed"`` raises,
            ``"fail_open"`` returns the model's own answer, marked ``unguarded``. Images that
            break the input contract are refused under either.
        key: Secret key of the noise, 16 to 64 bytes, so that nobody outside can predict it;
            None takes the public seed.
        memory_budget: Bytes of activations one chunk of copies may hold; None takes the
            device's default, or the chunk that :meth:`prepare` chose.
        stopping: Whether the calibration's looks may decide a request before all copies are made
            (:mod:`lrpguard.stopping`). Its time then tells how clear it was: off by default.

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
        smoothing: Smoothing | Choice | None = None,
        restoration: Restoring = "auto",
        on_failure: Policy = "fail_closed",
        key: bytes | None = None,
        memory_budget: int | None = None,
        stopping: bool = False,
    ) -> None:
        super().__init__()
        if on_failure not in ("fail_closed", "fail_open"):
            raise ConfigurationError(
                f"on_failure is {on_failure!r}; there are 'fail_closed' and 'fail_open'."
            )
        check_restoring(restoration)
        self.model = check_model(model)
        self.training = False
        if isinstance(calibration, (str, os.PathLike)):
            calibration = Calibration.load(calibration)
        self.noise_why: str | None = None
        if isinstance(smoothing, Choice):
            self.noise_why, smoothing = smoothing.why, smoothing.smoothing
        if calibration is not None:
            calibration.check_matches(model_fingerprint(self.model), model_precision(self.model))
            if smoothing not in (None, calibration.smoothing):
                raise CalibrationMismatchError(
                    f"smoothing is {smoothing}; the calibration was made with "
                    f"{calibration.smoothing}. Leave it out, or calibrate again."
                )
            smoothing, self.noise_why = calibration.smoothing, calibration.noise_why
            check_proposes(restoration, calibration.detector.name)
            if stopping:
                _ = calibration.rule  # refuses a calibration without looks
        self.calibration = calibration
        self._chooses = smoothing is None
        self.smoothing = smoothing or Smoothing()
        self.restoration = restoration
        self.on_failure: Policy = on_failure
        self.stopping = stopping
        self._key = key_bytes(self.smoothing.seed, key)
        self._memory_budget = memory_budget
        self._chunks = ChunkSizes(self.model, memory_budget)

    def extra_repr(self) -> str:
        """Return noise, way and calibration, for ``repr``."""
        known, noise = self.calibration, f"n={self.smoothing.n}, sigma={self.smoothing.sigma:g}"
        way = "" if self.smoothing.way == PLAIN else f", {self.smoothing.way}"
        if self._chooses and known is None:
            return f"noise to be chosen{way}, not calibrated"
        noise += ", chosen on clean images" if self.noise_why else ""
        at = f"{known.detector.name}, alpha={known.alpha:g}" if known else "not calibrated"
        return f"{noise}{way}, {at}"

    def train(self, mode: bool = True) -> Guard:
        """Leave the wrapped model's mode alone, whatever is asked: a guard only infers."""
        return self

    def forward(self, images: Tensor, *, maps: bool = False, copies: int | None = None) -> Verdict:
        """Judge a batch of requests.

        Args:
            images: Floating-point pixels in [0, 1], [B, C, H, W].
            maps: Whether the verdict shall hold relevance and variance maps.
            copies: How many copies to make of each request, one of ``calibration.copies``, with
                no early stopping. It must not depend on the images. None makes all, or as many
                as early stopping needs.

        Returns:
            The verdict, on the model's device.

        Raises:
            NotCalibratedError: There is no calibration.
            ConfigurationError: The calibration knows nothing of so many copies.
            InputError: The images break the contract, or have another size than the calibrated.
            CalibrationMismatchError: The model has another precision than the calibrated.
            TrainingModeError: The model was put in train mode.
            LrpGuardError: The guard failed, under ``fail_closed``.
        """
        calibration = self._calibrated()
        at = None if copies is None else calibration.at(copies)
        images, logits = ready(self.model, images, calibration)
        try:
            judged = self._judge(images, logits, calibration, at)
            return Verdict.concatenate(
                [self._answer(images[rows], found, maps) for rows, found in judged]
            )
        except Exception as error:
            if self.on_failure == "fail_closed":
                raise
            if len(images) == 1:
                _log.exception("the guard failed; a request goes unguarded")
                verdict = unguarded(logits, f"{type(error).__name__}: {error}")
                return with_empty_maps(verdict, images) if maps else verdict
        # One request must not take the guard from the others of its batch.
        return Verdict.concatenate([self(i[None], maps=maps, copies=copies) for i in images])

    def with_evidence(self, images: Tensor) -> tuple[Verdict, Evidence]:
        """Judge a batch as a call does, by all copies; return what the verdict rests on, too.

        Args:
            images: Floating-point pixels in [0, 1], [B, C, H, W].

        Raises:
            LrpGuardError: As a call under ``fail_closed``.
        """
        calibration = self._calibrated()
        images, logits = ready(self.model, images, calibration)
        ((_, found),) = self._judge(images, logits, calibration, calibration)
        return self._answer(images, found, maps=False), found.evidence

    def evidence(self, images: Tensor, *, views: bool = False) -> Evidence:
        """Return what the noisy copies of each image show; needs no calibration.

        Args:
            images: Floating-point pixels in [0, 1], [B, C, H, W].
            views: Whether to run the changed views, too, which ``combined`` needs.

        Raises:
            InputError: The images break the contract.
            ModelError: The model cannot be explained.
        """
        return self.evidence_at(images, self._looks(), views=views)[-1]

    def evidence_at(
        self, images: Tensor, copies: Sequence[int], *, views: bool = False
    ) -> list[Evidence]:
        """Return what the first copies of each image show, after each of these numbers of them.

        Args:
            images: Floating-point pixels in [0, 1], [B, C, H, W].
            copies: Numbers of copies, ascending, each >= 2.
            views: Whether to run the changed views, too.

        Raises:
            ConfigurationError: The numbers do not rise from at least 2.
            InputError: The images break the contract.
            ModelError: The model cannot be explained.
        """
        check_eval(self.model)
        check_rising(copies)
        images = to_model(check_images(images), self.model)
        return self._smooth(images, clean_logits(self.model, images), views, copies)

    def prepare(self, images: Tensor, *, repeats: int = DEFAULT_REPEATS) -> Preparation:
        """Find the fastest way to run the copies here (:mod:`lrpguard.preparing`), and keep to it.

        Call it before :meth:`calibrate`, whose calibration holds for this way and brings it along.

        Args:
            images: Pixels in [0, 1] of the size of the requests [B, C, H, W]; the first is used.
            repeats: Timed passes of each way, >= 1.

        Raises:
            ConfigurationError: The guard is calibrated; or ``repeats`` is below 1.
            InputError: The images break the contract.
            ModelError: The model cannot be explained.
        """
        check_unsettled(self.calibration)
        found = probe(self.model, images, self.smoothing, self._key, self._memory_budget, repeats)
        self.smoothing = replace(self.smoothing, way=found.way)
        return found

    def calibrate(
        self,
        images: Iterable[Batch],
        *,
        alpha: float = 0.05,
        detector: str = "combined",
        checkpoint: str | Path | None = None,
        progress: bool = False,
        looks: Looks | None = None,
        budget: int | None = None,
        crossed: bool | None = None,
    ) -> Calibration:
        """Learn what clean requests look like, and use it from now on.

        A guard that was given neither smoothing nor calibration first chooses its noise
        (:func:`lrpguard.choose_smoothing`) on some of the images that will fit the detector, and
        says which and why: in the log, ``noise_why`` and the calibration's file. The images are
        then read twice; an iterator, which cannot be, is kept in memory. With the ``"paper"``
        detector the noise is the paper's.

        Args:
            images: Batches of clean images in [0, 1], [B, C, H, W], all of one size, such as a
                DataLoader gives; of a tuple (images, labels) the first is taken. They must be
                like the requests to come, and must not have trained the model.
            alpha: Share of clean requests that may be flagged.
            detector: ``"combined"`` (needs fit images: half are set aside), or ``"paper"``.
            checkpoint: JSONL file that keeps the scores as they are made: an interrupted
                calibration started again with the same file goes on where it stopped.
            progress: Show a progress bar on standard error.
            looks: Calibrate for fewer copies, too: for early stopping, and for ``copies`` of
                :meth:`forward`. It costs no further pass. None takes ``Looks.of(n)`` where the
                guard stops early, and no looks elsewhere. Where the noise is chosen, n is that
                of the last look.
            budget: Most passes through the model that one request may cost, where n is chosen;
                None takes :data:`lrpguard.tuning.DEFAULT_BUDGET`.
            crossed: Whether all images both fit and calibrate; None where they are under 1,000.

        Returns:
            The calibration; ``.save(path)`` writes it.

        Raises:
            CalibrationSizeError: Too few images for alpha, or for the detector's fit.
            CalibrationMismatchError: The checkpoint belongs to another run.
            ConfigurationError: There is no such detector, or it proposes no label to restore;
                or the last look is not at all copies; or a budget is too small, or given where n
                is not chosen.
            NonFiniteScoreError: A score is NaN or infinite.
            InputError: Images break the contract or differ in size.
        """
        check_eval(self.model)
        check_proposes(self.restoration, detector)
        if self._chooses:
            images = list(images) if isinstance(images, Iterator) else images
            n = None if looks is None else looks.copies[-1]
            tuned = Guard(
                self.model,
                smoothing=choose_for(self.model, images, detector, n, budget, self._key),
                restoration=self.restoration,
                key=self._key,
                memory_budget=self._memory_budget,
                stopping=self.stopping,
            )
            tuned.smoothing = replace(tuned.smoothing, way=self.smoothing.way)
            self.calibration = tuned.calibrate(
                images,
                alpha=alpha,
                detector=detector,
                checkpoint=checkpoint,
                progress=progress,
                looks=looks,
                crossed=crossed,
            )
            self.smoothing, self.noise_why = tuned.smoothing, tuned.noise_why
            return self.calibration
        if budget is not None:
            raise ConfigurationError(
                "the budget is for choosing n, and the guard has its smoothing; leave one out."
            )
        looks = looks or (Looks.of(self.smoothing.n) if self.stopping else None)
        at = (self.smoothing.n,) if looks is None else looks.copies
        self.calibration = calibrate(
            images,
            evidence=lambda batch: self.evidence_at(batch, at, views=True),
            plan=Plan(
                alpha=alpha,
                detector=detector,
                smoothing=self.smoothing,
                key=self._key,
                fingerprint=model_fingerprint(self.model),
                precision=model_precision(self.model),
                looks=looks,
                noise_why=self.noise_why,
                crossed=crossed,
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

    def _looks(self) -> tuple[int, ...]:
        """Return the numbers of copies that no chunk goes across, the last of them all copies."""
        return (self.smoothing.n,) if self.calibration is None else self.calibration.copies

    def _smooth(
        self, images: Tensor, logits: Tensor, views: bool, at: Sequence[int]
    ) -> list[Evidence]:
        """Return the evidence after each of these numbers of copies."""
        runs = [[run.until(n) for n in at] for run in self._runs(images, logits, views)]
        return [Evidence.concatenate(list(parts)) for parts in zip(*runs, strict=True)]

    def _runs(self, images: Tensor, logits: Tensor, views: bool) -> Iterator[CopyRun]:
        """Yield the copies of each request, none of them run yet."""
        method, chunk = self.smoothing.method(), self._chunk(images)
        for request in zip(images, logits, logits.argmax(1), strict=True):
            yield CopyRun(
                self.model,
                *request,
                sigma=self.smoothing.sigma,
                key=self._key,
                chunk=chunk,
                method=method,
                views=self.smoothing.way.memory_format if views else None,
            )

    def _chunk(self, images: Tensor) -> int:
        """Return the most copies of such images in one pass."""
        return self._chunks.of(images, self.smoothing)

    def _judge(
        self, images: Tensor, logits: Tensor, calibration: Calibration, at: Calibration | None
    ) -> Iterator[tuple[slice, Judged]]:
        """Score and flag checked images; yield rows of them with what was found."""
        check_finite(logits)
        views = calibration.detector.takes_views
        if at is None and self.stopping:
            for row, run in enumerate(self._runs(images, logits, views)):
                yield slice(row, row + 1), stop_early(run, calibration, row)
            return
        at = at or calibration
        looks = [n for n in self._looks() if n <= at.smoothing.n]
        yield slice(None), judge(self._smooth(images, logits, views, looks)[-1], at)

    def _answer(self, images: Tensor, found: Judged, maps: bool) -> Verdict:
        """Return the verdict, with flagged requests restored."""
        how, key, chunk = self.restoration, self._key, self._chunk
        return answer(self.model, images, found, maps=maps, how=how, key=key, chunk=chunk)
