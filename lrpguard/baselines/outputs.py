"""Baselines that read one forward pass: confidence, largest logit, energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrpguard.baselines.base import UnfittedBaseline, check_positive
from lrpguard.lrp.engine import plain_logits


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxSoftmax(UnfittedBaseline):
    """One minus the maximum softmax probability.

    Source: Hendrycks, Gimpel 2017, "A baseline for detecting misclassified and
    out-of-distribution examples in neural networks", section 2.
    """

    name: ClassVar[str] = "max-softmax"

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        logits = plain_logits(model, images).double()
        # Summed over the other classes: 1 - p would round to 0 where the model is sure.
        others = logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf)
        return torch.exp(others.logsumexp(1) - logits.logsumexp(1))


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
        return -plain_logits(model, images).double().amax(1)


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
        logits = plain_logits(model, images).double()
        return -self.temperature * (logits / self.temperature).logsumexp(1)
