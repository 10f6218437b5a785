"""Baselines that read one forward pass: confidence, largest logit, energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrpguard.baselines.base import UnfittedBaseline, check_positive, finite_logits


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxSoftmax(UnfittedBaseline):
    """Low maximum softmax probability p, as ``log((1 - p) / p)``.

    The order is that of ``1 - p``, which rounds to 0 where the model is sure.

    Source: Hendrycks, Gimpel 2017, "A baseline for detecting misclassified and
    out-of-distribution examples in neural networks", section 2.
    """

    name: ClassVar[str] = "max-softmax"

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        logits = finite_logits(model, images).double()
        others = logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf)
        return others.logsumexp(1) - logits.amax(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxLogit(UnfittedBaseline):
    """The largest logit, negated.

    Source: Hendrycks et al. 2022, "Scaling out-of-distribution detection for real-world
    settings", section 3.
    """

    name: ClassVar[str] = "max-logit"

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        return -finite_logits(model, images).double().amax(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Energy(UnfittedBaseline):
    """Free energy ``-T logsumexp(logits / T)``.

    Source: Liu, Wang, Owens, Li 2020, "Energy-based out-of-distribution detection", equation (4).

    Attributes:
        temperature: T > 0; the paper recommends 1.
    """

    name: ClassVar[str] = "energy"

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        logits = finite_logits(model, images).double()
        return -self.temperature * (logits / self.temperature).logsumexp(1)
