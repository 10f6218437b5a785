"""Whether relevance is conserved on a given model: the engine's own check."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from lrpguard.lrp.engine import conservation
from lrpguard.smoothing import to_model

LIMITS = {"float64": 1e-10, "float32": 1e-4}
"""Largest residual that is rounding, by precision; other precisions are not judged."""


@dataclass(frozen=True)
class Residual:
    """What the conservation law does not account for.

    Attributes:
        value: Share of the law's largest term.
        precision: Arithmetic in which it was measured.
    """

    value: float
    precision: str

    @property
    def is_rounding(self) -> bool:
        """Whether it is no more than rounding."""
        return self.value <= LIMITS.get(self.precision, 0.1)


class ConservationAudit:
    """Measures how exactly relevance is conserved, in float64 on a copy of the model.

    A model whose forward insists on its own precision is measured in that.

    Args:
        model: Checked module, which stays as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = model
        self._exact: nn.Module | None = None

    def measure(self, images: Tensor, target: Tensor | None = None) -> Residual:
        """Return the residual of explaining some images.

        Args:
            images: Checked images [B, C, H, W].
            target: Explained classes [B]; None explains the predicted ones.

        Raises:
            LrpGuardError: The model cannot be explained.
        """
        try:
            if self._exact is None:
                self._exact = copy.deepcopy(self._own).double()
            return _measured(self._exact, images, target)
        except (RuntimeError, TypeError):  # a dtype fixed in the forward, or not on the device
            return _measured(self._own, images, target)


def _measured(model: nn.Module, images: Tensor, target: Tensor | None) -> Residual:
    images = to_model(images, model)
    residual = conservation(model, images, target).residual
    return Residual(residual, str(images.dtype).removeprefix("torch."))
