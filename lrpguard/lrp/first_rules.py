"""Rules for the first layer, whose relevance goes to the network's input itself.

Their relevance is not proportional to the input, so it bypasses ``R = a * c``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrpguard.lrp.affine import Affine, detour
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.rules import RefusalError, WeightRule
from lrpguard.lrp.trace import Entry, trace_of


@dataclass(frozen=True)
class Flat(WeightRule):
    """LRP-flat, for the first layer: relevance spreads evenly over the receptive field.

    Args:
        stabilizer: Keeps the sums off zero.

    Source: Lapuschkin et al. 2019.
    """

    stabilizer: float = 1e-9

    def check(self, layer: Affine) -> None:
        """Refuse a layer that does not take the network's input."""
        _entry(layer, "flat")

    def propagate(
        self, layer: Affine, value: Tensor, ledger: Ledger | None, *, rectified: bool
    ) -> Tensor:
        """Send relevance through weights of one, straight to the input."""
        entry = _entry(layer, "flat")
        total = layer.function(1 + entry.direct, torch.ones_like(layer.weight), None)
        return detour(value, total, self.stabilizer, ledger)


@dataclass(frozen=True)
class WSquare(WeightRule):
    """LRP-w-square, for the first layer: relevance in proportion to the squared weights.

    Args:
        stabilizer: Keeps the sums off zero.

    Source: Montavon et al. 2017.
    """

    stabilizer: float = 1e-9

    def check(self, layer: Affine) -> None:
        """Refuse a layer that does not take the network's input."""
        _entry(layer, "w-square")

    def propagate(
        self, layer: Affine, value: Tensor, ledger: Ledger | None, *, rectified: bool
    ) -> Tensor:
        """Send relevance through the squared weights, straight to the input."""
        entry = _entry(layer, "w-square")
        weight, bias = layer.parameters()
        bias = None if bias is None else bias**2
        total = layer.function(1 + entry.direct, weight**2, _booked(bias, ledger))
        return detour(value, total, self.stabilizer, ledger)


@dataclass(frozen=True)
class ZBox(WeightRule):
    """LRP-z-box, for the first layer: pixels that lie between a lowest and a highest value.

    The bounds are those of pixels in [0, 1], carried through a known normalisation.

    Args:
        stabilizer: Keeps the sums off zero.

    Source: Montavon et al. 2017 (z^B rule).
    """

    stabilizer: float = 1e-9

    def check(self, layer: Affine) -> None:
        """Refuse a layer that does not take the network's input."""
        _entry(layer, "z-box")

    def propagate(
        self, layer: Affine, value: Tensor, ledger: Ledger | None, *, rectified: bool
    ) -> Tensor:
        """Send relevance through ``x w - low w+ - high w-``, straight to the input."""
        entry = _entry(layer, "z-box")
        weight, bias = layer.parameters()
        up, down = _parts(weight)
        bias_up, bias_down = (None, None) if bias is None else _parts(bias)
        scale = 1 + entry.direct
        total = (
            layer.function(layer.x.detach() * scale, weight, _booked(bias, ledger))
            - layer.function(entry.low * scale, up, _booked(bias_up, ledger))
            - layer.function(entry.high * scale, down, _booked(bias_down, ledger))
        )
        return detour(value, total, self.stabilizer, ledger)


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative part."""
    return values.clamp(min=0), values.clamp(max=0)


def _booked(bias: Tensor | None, ledger: Ledger | None) -> Tensor | None:
    return ledger.leaf(bias) if ledger is not None and bias is not None else bias


def _entry(layer: Affine, rule: str) -> Entry:
    trace = trace_of(layer.x)
    if trace is None or trace.entry is None:
        raise RefusalError(
            f"the {rule} rule is for a first layer that takes the network's input itself; "
            "this one takes something computed from it."
        )
    return trace.entry
