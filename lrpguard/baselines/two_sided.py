"""A one-sided baseline made two-sided: strong and weak attacks move one score either way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from lrpguard.baselines.base import Baseline, check_scores
from lrpguard.errors import CalibrationSizeError, NotCalibratedError

LEAST_IMAGES = 20
"""Clean images that fit a median and two 5 % quantiles."""

NORMAL_95 = 1.6449
"""The standard normal distribution's 95 % quantile."""


@dataclass(frozen=True)
class _Centre:
    median: Tensor
    below: Tensor
    above: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoSided:
    """Distance of another baseline's score from its median on clean images, either way.

    In standard deviations, those below and above the median taken apart, each from its 5 %
    quantile. The published scores are one-sided; this is the form a careful user would take
    once a high-confidence attack has passed under them.

    Attributes:
        inner: The baseline.
        centre: Median and scales of its scores on clean images; None until fitted.
    """

    inner: Baseline
    centre: _Centre | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The inner baseline's name, marked."""
        return f"{self.inner.name}-two-sided"

    @property
    def attack_free(self) -> bool:
        """As the inner baseline."""
        return self.inner.attack_free

    @property
    def saw(self) -> tuple[str, ...]:
        """As the inner baseline."""
        return self.inner.saw

    @property
    def passes(self) -> str:
        """As the inner baseline."""
        return self.inner.passes

    def fit(self, model: nn.Module, images: Tensor, labels: Tensor) -> Self:
        """Return this baseline fitted; see :meth:`Baseline.fit`.

        Raises:
            CalibrationSizeError: Fewer than ``LEAST_IMAGES`` images.
        """
        inner = self.inner.fit(model, images, labels)
        if len(images) < LEAST_IMAGES:
            raise CalibrationSizeError(
                f"{self.name!r} was given {len(images)} images; it takes the 5 % quantiles of "
                f"clean scores and needs at least {LEAST_IMAGES}."
            )
        low, median, high = inner.anomaly(images).quantile(
            torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
        )
        least = 1e-6 * (1 + median.abs())  # a score that hardly ever varies
        below, above = (((d / NORMAL_95).clamp_min(least)) for d in (median - low, high - median))
        return replace(self, inner=inner, centre=_Centre(median, below, above))

    def anomaly(self, images: Tensor) -> Tensor:
        """Return a score for each image; see :meth:`Baseline.anomaly`."""
        self._centre()
        return self.of(self.inner.anomaly(images))

    def of(self, scores: Tensor) -> Tensor:
        """Return the anomaly [B] that follows from the inner baseline's own, float64 [B].

        Raises:
            NotCalibratedError: The baseline has not been fitted.
        """
        centre = self._centre()
        away = scores - centre.median
        scale = torch.where(away < 0, centre.below, centre.above)
        return check_scores(away.abs() / scale, self.name)

    def _centre(self) -> _Centre:
        if self.centre is None:
            raise NotCalibratedError(
                f"the baseline {self.name!r} has not been fitted. Take the object that "
                "fit(model, clean_images, labels) returns."
            )
        return self.centre
