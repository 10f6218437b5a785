"""What a baseline is, and what all of ours share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from lrpguard.attacks.pgd import check_labels
from lrpguard.attacks.suite import kin
from lrpguard.errors import (
    ConfigurationError,
    ModelOutputError,
    NonFiniteScoreError,
    NotCalibratedError,
)
from lrpguard.inputs import check_images, check_model
from lrpguard.lrp.engine import plain_logits
from lrpguard.smoothing import to_model

BATCH = 32
"""Images in one forward pass."""

State = TypeVar("State")


class Baseline(Protocol):
    """A detector that a user might take instead of lrpguard's.

    Attributes:
        name: Name in the registry.
        attack_free: Whether clean images alone fit it; False marks one fitted with attacks.
        saw: Families of the attacks that it was fitted with, and their kin
            (:func:`lrpguard.attacks.suite.kin`); none where it is attack-free.
        passes: What one request costs, in forward and backward passes of the model.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def attack_free(self) -> bool: ...  # noqa: D102

    @property
    def saw(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def passes(self) -> str: ...  # noqa: D102

    def fit(self, model: nn.Module, images: Tensor, labels: Tensor) -> Baseline:
        """Return this baseline fitted to a model and clean images; this object stays as it is.

        Args:
            model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode. It is held
                and run, never changed.
            images: Clean images [n, C, H, W] in [0, 1].
            labels: Their true classes, integers [n].

        Raises:
            InputError: The images are not what lrpguard takes.
            ModelError: The model cannot be used.
            ConfigurationError: The labels are not one integer an image.
            CalibrationSizeError: Too few images.
        """
        ...

    def anomaly(self, images: Tensor) -> Tensor:
        """Return a score for each image, larger is more anomalous: float64 on the CPU [B].

        An image's score does not depend on the batch it comes in, beyond rounding.

        Args:
            images: Pixels in [0, 1], [B, C, H, W].

        Raises:
            NotCalibratedError: The baseline has not been fitted.
            InputError: The images are not what lrpguard takes.
            ModelOutputError: The model's logits are not finite.
            NonFiniteScoreError: A score is NaN or infinite.
        """
        ...


@runtime_checkable
class RestoringBaseline(Baseline, Protocol):
    """A baseline that says, too, of which class a request is if it is adversarial."""

    def anomaly_and_label(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`Baseline.anomaly` and the other class of each image, int64 on the CPU.

        Args:
            images: Pixels in [0, 1], [B, C, H, W].
        """
        ...


@dataclass(frozen=True)
class Fitted(Generic[State]):
    """What a fit has given.

    Attributes:
        model: The model it was fitted to.
        state: What was learnt from the clean images.
    """

    model: nn.Module
    state: State


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelBaseline(ABC, Generic[State]):
    """A baseline as two steps: learn from clean images, score a batch.

    Attributes:
        fitted: None until :meth:`fit` has made a fitted copy.
    """

    name: ClassVar[str]
    attack_free: ClassVar[bool] = True

    fitted: Fitted[State] | None = field(default=None, repr=False)

    @property
    def saw(self) -> tuple[str, ...]:
        """Families of the attacks that it was fitted with: those of PGD, where it was at all."""
        return () if self.attack_free else kin(["pgd"])

    @property
    @abstractmethod
    def passes(self) -> str:
        """What one request costs, in forward and backward passes of the model."""

    @abstractmethod
    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> State:
        """Learn from checked clean images on the model's device."""

    @abstractmethod
    def _score(self, model: nn.Module, state: State, images: Tensor) -> Tensor:
        """Return the anomaly [b] of at most ``BATCH`` checked images on the model's device."""

    def fit(self, model: nn.Module, images: Tensor, labels: Tensor) -> Self:
        """Return this baseline fitted; see :meth:`Baseline.fit`."""
        model = check_model(model)
        images = to_model(check_images(images), model)
        classes = check_labels(labels, images)
        return replace(self, fitted=Fitted(model, self._learn(model, images, classes)))

    def anomaly(self, images: Tensor) -> Tensor:
        """Return a score for each image; see :meth:`Baseline.anomaly`."""
        fitted = self._need_fit()
        images = to_model(check_images(images), fitted.model)
        rows = [self._score(fitted.model, fitted.state, part) for part in images.split(BATCH)]
        return check_scores(torch.cat(rows), self.name)

    def _need_fit(self) -> Fitted[State]:
        if self.fitted is None:
            raise NotCalibratedError(
                f"the baseline {self.name!r} has not been fitted. Take the object that "
                "fit(model, clean_images, labels) returns."
            )
        return self.fitted


@dataclass(frozen=True, kw_only=True, eq=False)
class UnfittedBaseline(ModelBaseline[None]):
    """A baseline that learns nothing: fitting it only gives it its model."""

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        return None


def finite_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's logits [B, K], without a graph.

    Raises:
        ModelOutputError: The output is not logits, or not finite.
    """
    logits = plain_logits(model, images)
    if not bool(torch.isfinite(logits).all()):
        bad = (~torch.isfinite(logits)).any(1).nonzero().flatten().tolist()
        raise ModelOutputError(
            f"the model's logits of images {bad[:8]} are NaN or infinite; a baseline scores "
            "finite ones. Look at the model's weights, and at these images."
        )
    return logits


def check_scores(scores: Tensor, name: str) -> Tensor:
    """Return scores as float64 on the CPU [B].

    Raises:
        NonFiniteScoreError: A score is NaN or infinite.
    """
    scores = scores.detach().double().cpu()
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteScoreError(
            f"the baseline {name!r} gives image {bad[0]} the score {float(scores[bad[0]])}; "
            "expected a finite one. Are the model's logits and gradients finite on it?"
        )
    return scores


def check_positive(**values: float) -> None:
    """Refuse an option that is not a finite number above zero.

    Raises:
        ConfigurationError: Naming the first such option.
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigurationError(f"{name} is {value}; it must be finite and > 0.")
