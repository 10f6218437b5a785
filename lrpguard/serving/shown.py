"""The answer of ``POST /predict``, for programs and for the page."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from torch import Tensor

from lrpguard.calibration import Calibration
from lrpguard.serving.answer import Outcome
from lrpguard.serving.opening import Opened

BINS = 40
"""Bars of the calibration's histogram."""


def shown(outcome: Outcome, opened: Opened, *, request_id: str, scores: bool) -> dict[str, Any]:
    """Return the answer for one image.

    Args:
        outcome: What became of it, after the policies.
        opened: The guard.
        request_id: Name of the request.
        scores: Whether p-value and score are told.
    """
    answer: dict[str, Any] = {
        "request_id": request_id,
        "label": outcome.label,
        "class": opened.class_name(outcome.label),
        "logits": list(outcome.logits),
        "model_label": outcome.model_label,
        "model_class": opened.class_name(outcome.model_label),
        "flagged": outcome.flagged,
        "restored_label": outcome.restored_label,
        "restored_class": opened.class_name(outcome.restored_label),
        "status": outcome.status,
        "unguarded": outcome.unguarded,
        "reason": outcome.reason,
        "copies": outcome.copies,
    }
    if scores:
        answer |= {"p_value": outcome.p_value, "score": outcome.score}
    return answer


def shown_maps(image: Tensor, outcome: Outcome, calibration: Calibration) -> dict[str, Any]:
    """Return what the page draws: the image as the model sees it, its maps, the calibration.

    Arrays are base64 of little-endian float32, or of bytes.

    Args:
        image: Pixels [C, H, W] in [0, 1].
        outcome: What became of it.
        calibration: What it was compared with.
    """
    drawn: dict[str, Any] = {
        "shape": list(image.shape),
        "image": _floats(image),
        "calibration": histogram(calibration),
    }
    if outcome.maps is not None:
        drawn |= {
            "relevance": _floats(outcome.maps.relevance),
            "relevance_variance": _floats(outcome.maps.relevance_variance),
            "changed_pixels": _text(outcome.maps.changed_pixels.numpy().astype(np.uint8).tobytes()),
        }
    return drawn


def histogram(calibration: Calibration) -> dict[str, Any]:
    """Return the distribution of the calibration's scores; the last bar holds all above it."""
    scores = calibration.anomalies.numpy()
    low = float(scores[0])
    high = float(np.quantile(scores, 0.99)) or 1.0
    high = max(high, calibration.threshold, low + 1e-12) * (1.1 if high > 0 else 1.0)
    counts, edges = np.histogram(np.minimum(scores, high), bins=BINS, range=(low, high))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "threshold": calibration.threshold,
        "alpha": calibration.alpha,
        "n": calibration.n,
        "copies": calibration.smoothing.n,
        "detector": calibration.detector.name,
    }


def _floats(values: Tensor) -> str:
    return _text(values.float().cpu().numpy().astype("<f4").tobytes())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
