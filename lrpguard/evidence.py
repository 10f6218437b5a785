"""What one SmoothLRP pass says about a batch of requests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """Everything the N noisy copies of each request have shown.

    Relevance maps are summed over the channels, in units of the explained logit.

    Attributes:
        logits: Logits of the clean request [B, K].
        label: Explained class, the predicted one unless another was asked for [B].
        noisy_logits: Logits of the copies [B, N, K].
        relevance_mean: Mean over the copies of the relevance map [B, H, W].
        relevance_variance: Unbiased variance over the copies of the relevance map [B, H, W].
        relevance_total: Summed relevance of each copy [B, N].
        relevance_quantiles: Quantiles over the copies [B, Q, H, W], where asked for.
        sigma: Standard deviation of the noise, on the [0, 1] pixel scale.
    """

    logits: Tensor
    label: Tensor
    noisy_logits: Tensor
    relevance_mean: Tensor
    relevance_variance: Tensor
    relevance_total: Tensor
    relevance_quantiles: Tensor | None
    sigma: float

    def __len__(self) -> int:
        """Return the number of requests B."""
        return len(self.label)

    @property
    def n(self) -> int:
        """Number of noisy copies N of each request."""
        return self.noisy_logits.shape[1]

    @property
    def explained_logit(self) -> Tensor:
        """Clean logit of the explained class [B]."""
        return self.logits.gather(1, self.label[:, None]).squeeze(1)

    def select(self, rows: Tensor | slice) -> Evidence:
        """Return the evidence of some of the requests, by index [R] or slice."""
        quantiles = self.relevance_quantiles
        return Evidence(
            logits=self.logits[rows],
            label=self.label[rows],
            noisy_logits=self.noisy_logits[rows],
            relevance_mean=self.relevance_mean[rows],
            relevance_variance=self.relevance_variance[rows],
            relevance_total=self.relevance_total[rows],
            relevance_quantiles=None if quantiles is None else quantiles[rows],
            sigma=self.sigma,
        )

    @staticmethod
    def concatenate(parts: list[Evidence]) -> Evidence:
        """Join the evidence of several batches of equally sized requests, in order."""
        quantiles = [p.relevance_quantiles for p in parts if p.relevance_quantiles is not None]
        return Evidence(
            logits=torch.cat([p.logits for p in parts]),
            label=torch.cat([p.label for p in parts]),
            noisy_logits=torch.cat([p.noisy_logits for p in parts]),
            relevance_mean=torch.cat([p.relevance_mean for p in parts]),
            relevance_variance=torch.cat([p.relevance_variance for p in parts]),
            relevance_total=torch.cat([p.relevance_total for p in parts]),
            relevance_quantiles=torch.cat(quantiles) if quantiles else None,
            sigma=parts[0].sigma,
        )
