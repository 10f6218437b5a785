"""What the paper's experiment leaves behind: a row an image, and the threshold between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from lrpguard.errors import ConfigurationError

Split = Literal["threshold", "conformal", "test"]


@dataclass(frozen=True)
class Row:
    """What became of one image. Fields of steps that were not taken are None.

    Success of the attack is counted in two ways. ``successful``: the clean image was classified
    correctly, and the adversarial one is not. ``misled``: the adversarial image is misclassified,
    whatever the clean one was. The paper's words, "leading to a misclassification", fit either.

    Attributes:
        image: Public digest of the clean pixels.
        index: Position in its source.
        name: Name in its source.
        label: True class.
        clean_label: Prediction for the clean image.
        clean_score: Mean relevance variance of the clean image.
        clean_kept: Share of its noisy copies that keep its label.
        adversarial_label: Prediction for the adversarial image.
        adversarial_score: Mean relevance variance of the adversarial image.
        adversarial_kept: Share of its noisy copies that keep its label.
        restored_label: Label after whitening what varies most, -1 where it never changed.
        restored_rounds: Rounds that took.
        control_label: Label after whitening as many random pixels, -1 where it never changed.
        control_rounds: Rounds that took.
        seconds: Wall time spent on this image.
    """

    image: str
    index: int
    name: str
    label: int
    clean_label: int
    clean_score: float
    clean_kept: float
    adversarial_label: int | None = None
    adversarial_score: float | None = None
    adversarial_kept: float | None = None
    restored_label: int | None = None
    restored_rounds: int | None = None
    control_label: int | None = None
    control_rounds: int | None = None
    seconds: float = 0.0

    @property
    def correct(self) -> bool:
        """Whether the clean image is classified correctly."""
        return self.clean_label == self.label

    @property
    def misled(self) -> bool:
        """Whether the adversarial image is misclassified."""
        return self.adversarial_label is not None and self.adversarial_label != self.label

    @property
    def successful(self) -> bool:
        """Whether the attack turned a correct classification into a wrong one."""
        return self.correct and self.misled

    def detected(self, threshold: float) -> bool:
        """Whether the adversarial image's score lies above a threshold."""
        return self.adversarial_score is not None and self.adversarial_score > threshold


@dataclass(frozen=True)
class Threshold:
    """A threshold between clean and adversarial scores.

    Attributes:
        value: Scores above it count as adversarial.
        balanced_accuracy: What it reaches on the scores that placed it, in [0, 1].
        other_side: The best threshold if scores *below* counted as adversarial; a remark only.
        other_side_balanced_accuracy: What that one would reach.
    """

    value: float
    balanced_accuracy: float
    other_side: float
    other_side_balanced_accuracy: float


@dataclass(frozen=True)
class Outcome:
    """The rows of the whole experiment.

    Attributes:
        threshold: The paper's threshold.
        rows: Rows of each split, in its order.
    """

    threshold: Threshold
    rows: Mapping[Split, tuple[Row, ...]]


def choose_threshold(clean: Iterable[float], adversarial: Iterable[float]) -> Threshold:
    """Place a threshold between clean and adversarial scores.

    The paper says only that it was "mean based". Here it is the one of highest balanced
    accuracy, midway between two neighbouring scores, where higher counts as adversarial; of
    several that are equally good the highest, which raises the fewest false alarms.

    Args:
        clean: Scores of clean images.
        adversarial: Scores of adversarial images.

    Raises:
        ConfigurationError: One kind is missing, or all scores are equal.
    """
    negatives = torch.tensor(list(clean), dtype=torch.float64)
    positives = torch.tensor(list(adversarial), dtype=torch.float64)
    values = torch.cat([negatives, positives]).unique()
    if not len(negatives) or not len(positives) or len(values) < 2:
        raise ConfigurationError(
            f"{len(negatives)} clean and {len(positives)} adversarial scores with {len(values)} "
            "different values place no threshold; give some of both that differ."
        )
    middles = (values[:-1] + values[1:]) / 2
    above = (positives > middles[:, None]).double().mean(1)
    false = (negatives > middles[:, None]).double().mean(1)
    accuracy = (above + 1 - false) / 2
    best = len(middles) - 1 - int(accuracy.flip(0).argmax())
    other = int(accuracy.argmin())
    return Threshold(
        value=float(middles[best]),
        balanced_accuracy=float(accuracy[best]),
        other_side=float(middles[other]),
        other_side_balanced_accuracy=1 - float(accuracy[other]),
    )
