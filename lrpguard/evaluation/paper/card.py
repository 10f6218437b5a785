"""The card of a run: every count, with what it was counted on, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
import torchvision
from torch import nn

from lrpguard.calibration import Calibration
from lrpguard.detector import PaperDetector
from lrpguard.errors import LoadingError
from lrpguard.evaluation.metrics import auroc, proportion
from lrpguard.evaluation.paper.experiment import Settings
from lrpguard.evaluation.paper.record import Outcome, Row
from lrpguard.fingerprint import model_fingerprint, model_precision
from lrpguard.version import __version__

SCHEMA = 1
"""Version of the card's form."""


def make_card(
    name: str,
    outcome: Outcome,
    *,
    model: nn.Module,
    settings: Settings,
    image_shape: tuple[int, int, int],
    command: str,
) -> dict[str, Any]:
    """Count the rows of a run.

    Args:
        name: Name of the model, for tables.
        outcome: The run.
        model: The model, for its fingerprint.
        settings: Settings of the run.
        image_shape: (C, H, W) of the images.
        command: Command that makes this card again.

    Returns:
        JSON-ready record. A share is ``{"successes", "n", "low", "high"}`` with its 95 % Wilson
        interval.

    Raises:
        CalibrationSizeError: Too few conformal images for alpha.
    """
    calibration = _calibration(outcome, model, settings, image_shape)
    return {
        "schema": SCHEMA,
        "model": name,
        "command": command,
        "fingerprint": model_fingerprint(model),
        "image_shape": list(image_shape),
        "settings": asdict(settings) | {"composite": settings.smoothing.composite.to_dict()},
        "splits": {split: _split(rows) for split, rows in outcome.rows.items()},
        "attack": _attack_shares(outcome.rows["test"]),
        "threshold": asdict(outcome.threshold) | _threshold_counts(outcome.rows["threshold"]),
        "paper": _detector_shares(outcome.rows["test"], outcome.threshold.value),
        "restoration": _restoration_shares(outcome.rows["test"], outcome.threshold.value),
        "conformal": _conformal(outcome.rows["test"], calibration),
        "auroc": _auroc(outcome.rows["test"]),
        "copies_that_keep_their_label": _kept(outcome.rows["test"]),
        "versions": _versions(),
        "device": _device(model),
        "threads": torch.get_num_threads(),
        "seconds": round(sum(row.seconds for rows in outcome.rows.values() for row in rows)),
    }


def write_card(card: dict[str, Any], path: Path) -> None:
    """Write a card as JSON, each list on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(card, indent=1, allow_nan=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")


def load_card(path: Path, *, what: str, schema: int, kind: str | None = None) -> dict[str, Any]:
    """Read a card that :func:`write_card` has written.

    Args:
        path: The file.
        what: What it should be, for people.
        schema: Version of the card's form.
        kind: Kind of card; None where cards of this form name none.

    Raises:
        LoadingError: It cannot be read, or is something else.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadingError(f"the card {path} cannot be read ({error}). Run its command.") from error
    good = isinstance(card, dict) and card.get("schema") == schema
    if not good or (kind is not None and card.get("kind") != kind):
        raise LoadingError(f"{path} is no {what} of schema {schema}. Run its command again.")
    return dict(card)


def share(successes: int, n: int) -> dict[str, Any]:
    """Return a share with its 95 % Wilson interval; None for the ends where n is 0."""
    counted = proportion(successes, n)
    ends = [None if math.isnan(end) else end for end in (counted.low, counted.high)]
    return {"successes": successes, "n": n, "low": ends[0], "high": ends[1]}


def _attack_shares(rows: Sequence[Row]) -> dict[str, Any]:
    correct = [row for row in rows if row.correct]
    successful = sum(row.successful for row in rows)
    return {
        "attempted": len(rows),
        "correct": share(len(correct), len(rows)),
        "successful_of_attempted": share(successful, len(rows)),
        "successful_of_correct": share(successful, len(correct)),
        "misled_of_attempted": share(sum(row.misled for row in rows), len(rows)),
    }


def _threshold_counts(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "images": len(rows),
        "correct": sum(row.correct for row in rows),
        "successful": sum(row.successful for row in rows),
        "misled": sum(row.misled for row in rows),
    }


def _detector_shares(rows: Sequence[Row], threshold: float) -> dict[str, Any]:
    successful = [row for row in rows if row.successful]
    misled = [row for row in rows if row.misled]
    return {
        "detected_of_successful": share(
            sum(row.detected(threshold) for row in successful), len(successful)
        ),
        "detected_of_misled": share(sum(row.detected(threshold) for row in misled), len(misled)),
        "false_positives": share(sum(row.clean_score > threshold for row in rows), len(rows)),
    }


def _restoration_shares(rows: Sequence[Row], threshold: float) -> dict[str, Any]:
    successful = [row for row in rows if row.successful]
    detected = [row for row in successful if row.detected(threshold)]
    restored = sum(row.restored_label == row.label for row in detected)
    return {
        "restored_of_detected": share(restored, len(detected)),
        "restored_of_successful": share(restored, len(successful)),
        "changed_of_detected": share(
            sum(row.restored_label not in (None, -1) for row in detected), len(detected)
        ),
        "control_restored_of_detected": share(
            sum(row.control_label == row.label for row in detected), len(detected)
        ),
        "control_changed_of_detected": share(
            sum(row.control_label not in (None, -1) for row in detected), len(detected)
        ),
        "median_rounds": _median([row.restored_rounds for row in detected]),
        "control_median_rounds": _median([row.control_rounds for row in detected]),
    }


def _conformal(rows: Sequence[Row], calibration: Calibration) -> dict[str, Any]:
    def flagged(scores: list[float]) -> dict[str, Any]:
        p_values = calibration.p_values(torch.tensor(scores, dtype=torch.float64))
        return share(int(calibration.flags(p_values).sum()), len(scores))

    band = calibration.fpr_band()
    return {
        "alpha": calibration.alpha,
        "n": calibration.n,
        "threshold": calibration.threshold,
        "fpr_band_95": [round(end, 4) for end in band],
        "false_positives": flagged([row.clean_score for row in rows]),
        "detected_of_successful": flagged(_adversarial_scores(rows)),
    }


def _auroc(rows: Sequence[Row]) -> dict[str, Any]:
    adversarial = _adversarial_scores(rows)
    if not adversarial:
        return {"all_clean": None, "same_images": None}
    return {
        "all_clean": auroc([row.clean_score for row in rows], adversarial),
        "same_images": auroc([row.clean_score for row in rows if row.successful], adversarial),
    }


def _kept(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "clean": _mean_of([row.clean_kept for row in rows]),
        "clean_correct": _mean_of([row.clean_kept for row in rows if row.correct]),
        "adversarial": _mean_of(
            [row.adversarial_kept or 0.0 for row in rows if row.successful],
        ),
    }


def _mean_of(shares: Sequence[float]) -> dict[str, Any]:
    """Return the mean over images, with a normal 95 % interval: copies are not independent."""
    if len(shares) < 2:
        return {"mean": shares[0] if shares else None, "n": len(shares), "low": None, "high": None}
    mean = float(np.mean(shares))
    half = 1.96 * float(np.std(shares, ddof=1)) / math.sqrt(len(shares))
    return {"mean": mean, "n": len(shares), "low": max(0.0, mean - half), "high": mean + half}


def _calibration(
    outcome: Outcome, model: nn.Module, settings: Settings, image_shape: tuple[int, int, int]
) -> Calibration:
    rows = outcome.rows["conformal"]
    scores = torch.tensor([row.clean_score for row in rows], dtype=torch.float64)
    return Calibration(
        detector=PaperDetector(),
        anomalies=scores.sort().values,
        proposals=None,
        alpha=settings.alpha,
        smoothing=settings.smoothing,
        image_shape=image_shape,
        fingerprint=model_fingerprint(model),
        precision=model_precision(model),
        fit_n=0,
        data_digest=_digest(rows),
        created="",
        version=__version__,
    )


def _adversarial_scores(rows: Sequence[Row]) -> list[float]:
    return [
        row.adversarial_score
        for row in rows
        if row.successful and row.adversarial_score is not None
    ]


def _split(rows: Sequence[Row]) -> dict[str, Any]:
    return {"n": len(rows), "digest": _digest(rows), "indices": [row.index for row in rows]}


def _digest(rows: Sequence[Row]) -> str:
    return hashlib.sha256("".join(sorted(row.image for row in rows)).encode()).hexdigest()


def _median(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _device(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.device.type == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(parameter.device)


def _versions() -> dict[str, str]:
    return {
        "lrpguard": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
