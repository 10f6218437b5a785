"""From evidence to a decision: after a given number of copies, or look after look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrpguard.calibration import Calibration
from lrpguard.copies import CopyRun
from lrpguard.detector import Detector
from lrpguard.errors import ModelOutputError, NonFiniteScoreError
from lrpguard.evidence import Evidence
from lrpguard.fingerprint import model_precision
from lrpguard.inputs import check_eval, check_images
from lrpguard.readings import Readings, read
from lrpguard.smoothing import clean_logits, to_model


@dataclass(frozen=True)
class Judged:
    """What was found of requests after the same number of copies.

    Attributes:
        at: The calibration for so many copies.
        evidence: What the copies have shown.
        readings: What the detector read of it.
        anomaly: Anomaly scores, float64 [B].
        p_value: p-values, float64 [B].
        flagged: Whether each is flagged, bool [B].
        replacement: From the evidence for other labels to its p-values, [B] to float64 [B].
    """

    at: Calibration
    evidence: Evidence
    readings: Readings
    anomaly: Tensor
    p_value: Tensor
    flagged: Tensor
    replacement: Callable[[Tensor], Tensor]


def judge(evidence: Evidence, at: Calibration) -> Judged:
    """Judge requests by all the copies that were made of them.

    Args:
        evidence: Of the requests.
        at: The calibration for so many copies.

    Raises:
        NonFiniteScoreError: A score is NaN or infinite.
    """
    readings, anomaly = _scored(evidence, at.detector, 0)
    p_value = at.p_values(anomaly)
    flagged = at.flags(p_value)
    return Judged(at, evidence, readings, anomaly, p_value, flagged, at.replacement_p_values)


def stop_early(run: CopyRun, calibration: Calibration, row: int) -> Judged:
    """Make copies of one request until a look decides.

    Args:
        run: Its copies, none made yet.
        calibration: With looks.
        row: Its place in the batch, for error messages.

    Raises:
        ConfigurationError: The calibration has no looks.
        NonFiniteScoreError: The score at a look is NaN or infinite.
    """
    rule, staged = calibration.rule, calibration.staged
    assert staged is not None
    level = None
    for look, copies in enumerate(calibration.copies):
        at, evidence = calibration.at(copies), run.until(copies)
        readings, anomaly = _scored(evidence, at.detector, row)
        decision = rule.decide(look, anomaly, level)
        level = decision.level
        if not bool(decision.goes_on):
            break
    p_value, flagged = decision.p_value, decision.flagged
    return Judged(at, evidence, readings, anomaly, p_value, flagged, staged.replacement_p_values)


def ready(model: nn.Module, images: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Return checked images on the model's device [B, C, H, W], and the model's own logits [B, K].

    Raises:
        InputError: The images break the contract, or have another size than the calibrated.
        CalibrationMismatchError: The model has another precision than the calibrated.
        TrainingModeError: The model was put in train mode.
    """
    check_eval(model)
    images = check_images(images)
    calibration.check_shape(images)
    calibration.check_precision(model_precision(model))  # guard.half() after the fact
    images = to_model(images, model)
    return images, clean_logits(model, images)


def check_finite(logits: Tensor) -> None:
    """Refuse logits [B, K] that are NaN or infinite.

    Raises:
        ModelOutputError: Some are.
    """
    broken = (~torch.isfinite(logits)).any(1)
    if bool(broken.any()):
        raise ModelOutputError(
            f"the model returned NaN or infinite logits for images {rows_of(broken)} of the "
            "batch; there is no prediction to guard."
        )


def rows_of(mask: Tensor, first: int = 0) -> list[int]:
    """Return the first few rows where the mask holds, for an error message."""
    return [first + row for row in mask.nonzero().flatten()[:8].tolist()]


def _scored(evidence: Evidence, detector: Detector, row: int) -> tuple[Readings, Tensor]:
    """Return readings and anomaly scores of requests that begin at a row of the batch."""
    readings = read(evidence, detector.score_names)
    anomaly = detector.anomaly(readings)
    if not bool(torch.isfinite(anomaly).all()):
        raise NonFiniteScoreError(
            f"the scores of images {rows_of(~torch.isfinite(anomaly), row)} of the batch are NaN "
            "or infinite: the model overflows on noisy copies of them."
        )
    return readings, anomaly
