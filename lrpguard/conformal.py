"""Conformal p-values, and how many clean images they need.

Source: Vovk, Gammerman, Shafer 2005.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrpguard.errors import CalibrationSizeError, ConfigurationError


def check_size(n: int, alpha: float) -> None:
    """Refuse an n at which no p-value could be as small as alpha.

    Raises:
        ConfigurationError: ``alpha`` lies outside (0, 1).
        CalibrationSizeError: ``alpha < 1 / (n + 1)``.
    """
    if not 0 < alpha < 1:
        raise ConfigurationError(f"alpha is {alpha}; it must lie between 0 and 1, e.g. 0.05.")
    needed = math.ceil(1 / alpha - 1e-9) - 1
    if n < needed:
        raise CalibrationSizeError(
            f"{n} calibration images for alpha = {alpha:g}; the smallest p-value would be "
            f"{1 / (n + 1):.3g}, so nothing could ever be flagged. Give at least {needed}, "
            f"better {20 * needed}, or a larger alpha."
        )


def images_text(fit: int, calibrate: int, *, crossed: bool) -> str:
    """Return how many clean images did what, in words.

    Args:
        fit: Images that fitted the detector.
        calibrate: Images that calibrated it.
        crossed: Whether these are the same ones.
    """
    if crossed:
        return f"{calibrate} fit and calibrate, crossed"
    return (f"{fit} fit, " if fit else "") + f"{calibrate} calibrate"


def card_images_text(about: Mapping[str, Any]) -> str:
    """Return the same of what a card says of a guard; cards before crossing do not mention it."""
    return images_text(about["fit_n"], about["calibration_n"], crossed=about.get("crossed", False))


def conformal_p_values(calibration: Tensor, anomalies: Tensor) -> Tensor:
    """Return conformal p-values ``(1 + #{calibration >= s}) / (n + 1)``, float64 [B].

    Args:
        calibration: Anomaly scores of clean calibration images, ascending, float64 [n].
        anomalies: Anomaly scores of the requests [B].
    """
    n = len(calibration)
    below = torch.searchsorted(calibration, anomalies.to(calibration).contiguous())
    return (1 + n - below).double() / (n + 1)


def flagged_rank(n: int, alpha: float) -> int:
    """Return k = floor(alpha (n + 1)): the k largest calibration scores are flagged."""
    return math.floor(alpha * (n + 1) + 1e-9)
