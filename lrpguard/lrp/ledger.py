"""The books of one backward pass: where relevance goes that does not reach the input."""

from __future__ import annotations

import torch
from torch import Tensor


class Ledger:
    """Relevance absorbed by biases and by stabilizers during one backward pass.

    For the logit f that relevance starts from, the exact conservation law is
    ``f = sum(input relevance) + bias + stabilizer`` (see docs/method.md).
    """

    def __init__(self) -> None:
        self._biases: list[Tensor] = []
        self._stabilizers: list[Tensor] = []
        self._absorbed_by_biases: list[Tensor] = []

    def leaf(self, bias: Tensor) -> Tensor:
        """Put ``bias`` into the graph so that its share will be booked."""
        leaf = bias.detach().clone().requires_grad_()
        self._biases.append(leaf)
        return leaf.clone()  # a leaf forbids in-place use

    def absorb(self, relevance: Tensor) -> None:
        """Book relevance that a stabilizer has absorbed."""
        self._stabilizers.append(relevance)

    def absorb_bias(self, relevance: Tensor) -> None:
        """Book relevance that a bias has absorbed which is no leaf of the graph."""
        self._absorbed_by_biases.append(relevance)

    @property
    def biases(self) -> list[Tensor]:
        """The bias leaves, to ask autograd for their gradients."""
        return self._biases

    def bias_relevance(self, gradients: tuple[Tensor | None, ...]) -> float:
        """Return the relevance absorbed by all biases, ``sum(b * g_b)``."""
        pairs = zip(self._biases, gradients, strict=True)
        shares = [(b.detach() * g).sum() for b, g in pairs if g is not None]
        return sum(float(share) for share in (*shares, *self._absorbed_by_biases))

    def stabilizer_relevance(self) -> float:
        """Return the relevance absorbed by all stabilizers."""
        return float(torch.stack(self._stabilizers).sum()) if self._stabilizers else 0.0
