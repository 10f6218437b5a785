"""Mean and variance of a stream of maps, without holding them together."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningMoments:
    """Streaming mean and variance over the first dimension of successive chunks.

    Accumulates in float64, so that the result hardly depends on the division into chunks.

    Source: Chan, Golub, LeVeque 1979, pairwise merge of two samples.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, values: Tensor) -> None:
        """Merge a chunk of shape [n, ...], n >= 1."""
        values = values.double()
        count = len(values)
        mean = values.mean(0)
        squares = (values - mean).square_().sum(0)  # var_mean over dim 0 is many times slower
        if self.count == 0:
            self.count, self._mean, self._squares = count, mean, squares
            return
        total = self.count + count
        shift = mean - self._mean
        self._mean = self._mean + shift * (count / total)
        self._squares = self._squares + squares + shift**2 * (self.count * count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean of everything seen, float64."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Unbiased variance of everything seen, float64; NaN below two values."""
        return self._squares / (self.count - 1) if self.count > 1 else self._squares * torch.nan
