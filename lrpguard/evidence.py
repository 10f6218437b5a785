"""What one SmoothLRP pass says about a batch of requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

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
        view_logits: Logits of the changed views [B, V, K], where asked for.
        chroma_noise: Noise floor of the image's pixels, :func:`lrpguard.pixels.chroma_noise` [B].
        line_noise: The same along one axis, :func:`lrpguard.pixels.line_noise` [B].
        place_roughness: Of its roughest place, :func:`lrpguard.pixels.place_roughness` [B].
        sigma: Standard deviation of the noise, on the [0, 1] pixel scale.
    """

    logits: Tensor
    label: Tensor
    noisy_logits: Tensor
    relevance_mean: Tensor
    relevance_variance: Tensor
    relevance_total: Tensor
    relevance_quantiles: Tensor | None
    view_logits: Tensor | None
    chroma_noise: Tensor
    line_noise: Tensor
    place_roughness: Tensor
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
        return self._map(lambda tensors: tensors[0][rows])

    @staticmethod
    def concatenate(parts: list[Evidence]) -> Evidence:
        """Join the evidence of several batches of equally sized requests, in order."""
        return parts[0]._map(torch.cat, parts)

    def _map(
        self, join: Callable[[list[Tensor]], Tensor], parts: list[Evidence] | None = None
    ) -> Evidence:
        """Apply a function to each tensor of all parts; what a part lacks stays None."""
        parts = [self] if parts is None else parts
        joined: dict[str, Any] = {}
        for field in fields(self):
            values = [getattr(part, field.name) for part in parts]
            tensors = [value for value in values if isinstance(value, Tensor)]
            joined[field.name] = join(tensors) if tensors else values[0]
        return Evidence(**joined)
