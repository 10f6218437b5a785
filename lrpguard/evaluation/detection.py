"""A static look at the detectors: PGD of several strengths, one clean-only threshold each.

A first measurement, not the whole protocol: one attack family, no adaptive attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lrpguard.attacks.pgd import pgd, quantize
from lrpguard.evaluation.labelled import Labelled
from lrpguard.evaluation.metrics import Proportion, proportion
from lrpguard.guard import Guard
from lrpguard.smoothing import Smoothing, clean_logits

DETECTORS = ("combined", "paper")


@dataclass(frozen=True)
class DetectionRow:
    """What one detector does at one attack strength.

    Attributes:
        detector: Name of the detector.
        eps: Strength in the maximum norm, in 1/255; 0 for the clean images.
        attempts: Images attacked: those classified correctly before. For eps 0, all images.
        fooled: How many were misclassified after the attack; for eps 0, before any.
        flagged_fooled: How many of those that were fooled are flagged.
        flagged: How many of all attempts are flagged.
    """

    detector: str
    eps: int
    attempts: int
    fooled: int
    flagged_fooled: int
    flagged: int

    @property
    def success(self) -> Proportion:
        """Attack success, of the attempts."""
        return proportion(self.fooled, self.attempts)

    @property
    def detected(self) -> Proportion:
        """Flagged, of the successful attacks."""
        return proportion(self.flagged_fooled, self.fooled)

    @property
    def flagged_share(self) -> Proportion:
        """Flagged, of all attempts; for eps 0 the realised false-positive rate."""
        return proportion(self.flagged, self.attempts)


def measure_detection(
    model: nn.Module,
    clean: Labelled,
    test: Labelled,
    *,
    smoothing: Smoothing,
    strengths: Sequence[int],
    alpha: float,
    steps: int,
    seed: int,
) -> list[DetectionRow]:
    """Calibrate each detector on clean images, and count what it flags.

    Clean and adversarial images alike are rounded to 8 bits.

    Args:
        model: From [B, C, H, W] in [0, 1] to logits, in eval mode.
        clean: Images that fit and calibrate, disjoint from ``test``.
        test: Images that are judged, clean and attacked.
        smoothing: Copies and noise.
        strengths: PGD's eps values, in 1/255.
        alpha: False-positive rate asked for.
        steps: PGD's steps.
        seed: PGD's seed.

    Returns:
        A row for each detector and each of 0 (clean) and ``strengths``.
    """
    guards = {name: Guard(model, smoothing=smoothing, restoration=None) for name in DETECTORS}
    reference = _images(clean)[0].split(50)
    with TemporaryDirectory() as folder:
        scores = Path(folder) / "scores.jsonl"  # made once, for all detectors
        for name, guard in guards.items():
            guard.calibrate(reference, alpha=alpha, detector=name, checkpoint=scores)
    images, labels = _images(test)
    right = clean_logits(model, images).argmax(1) == labels
    attacked = {0: images} | {
        eps: quantize(
            pgd(model, images[right], labels[right], eps=eps / 255, steps=steps, seed=seed)
        )
        for eps in strengths
    }
    return [
        _row(name, guard, eps, batch, labels if eps == 0 else labels[right])
        for eps, batch in attacked.items()
        for name, guard in guards.items()
    ]


def as_record(rows: Sequence[DetectionRow], **about: Any) -> dict[str, Any]:
    """Return the rows and what they are about as one JSON-ready card."""
    return {**about, "rows": [asdict(row) for row in rows]}


def detection_table(rows: Sequence[DetectionRow]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| attack | detector | attack success | flagged, of the successful | flagged, of all |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        attack = f"PGD {row.eps}/255" if row.eps else "none (clean)"
        success, detected = (row.success, row.detected) if row.eps else ("-", "-")
        lines.append(
            f"| {attack} | {row.detector} | {success} | {detected} | {row.flagged_share} |"
        )
    return "\n".join(lines)


def _row(name: str, guard: Guard, eps: int, images: Tensor, labels: Tensor) -> DetectionRow:
    verdict = guard(images)
    fooled = verdict.label != labels
    return DetectionRow(
        detector=name,
        eps=eps,
        attempts=len(labels),
        fooled=int(fooled.sum()),
        flagged_fooled=int((fooled & verdict.flagged).sum()),
        flagged=int(verdict.flagged.sum()),
    )


def _images(part: Labelled) -> tuple[Tensor, Tensor]:
    """Return images, rounded to 8 bits, and labels."""
    items = list(part)
    images = torch.stack([item.image for item in items if item.image is not None])
    return quantize(images), torch.tensor([item.label for item in items])
