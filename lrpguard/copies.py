"""The noisy copies of one request: run as far as is asked for, and farther later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from lrpguard.attribution.methods import MemoryFormat, Method, laid_out
from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.lrp.engine import plain_logits
from lrpguard.moments import RunningMoments
from lrpguard.noise import gaussian_copies, image_digest
from lrpguard.pixels import chroma_noise, line_noise, place_roughness
from lrpguard.views import changed_views


@dataclass(frozen=True)
class Way:
    """How copies go through the model: their relevance depends on it in its last digits.

    Args:
        memory_format: Order of a chunk of copies in memory.
        chunk: Most copies in one pass, >= 1; None goes by the memory budget.

    Raises:
        ConfigurationError: A value is none of these.
    """

    memory_format: MemoryFormat = "contiguous"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.memory_format not in get_args(MemoryFormat):
            raise ConfigurationError(
                f"memory_format is {self.memory_format!r}; there are {get_args(MemoryFormat)}."
            )
        if self.chunk is not None and self.chunk < 1:
            raise ConfigurationError(f"chunk is {self.chunk}; a pass has at least one copy.")

    def __str__(self) -> str:
        at_a_time = "" if self.chunk is None else f", at most {self.chunk} copies a pass"
        return self.memory_format + at_a_time


PLAIN = Way()
"""As torch runs a model by default, in chunks that the memory budget holds."""


class CopyRun:
    """Runs the copies of one request through the model, streaming their moments.

    The noise is keyed by the number of the copy, so the first m copies are the same however
    many follow. Out of memory halves the chunk and goes on.

    Args:
        model: Checked module.
        image: Checked image on the model's device [C, H, W].
        clean: Its clean logits [K].
        target: Class to explain, int64 [].
        sigma: Standard deviation of the noise on the pixel scale.
        key: Noise key.
        chunk: Largest number of copies in one pass.
        method: How each copy is explained.
        quantiles: Quantiles over the copies, each in [0, 1]; they keep every map in memory.
        views: Order in memory of the changed views, which run in one pass; None runs none.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        clean: Tensor,
        target: Tensor,
        *,
        sigma: float,
        key: bytes,
        chunk: int,
        method: Method,
        quantiles: Sequence[float] = (),
        views: MemoryFormat | None = None,
    ) -> None:
        self._model = model
        self._image = image
        self._clean = clean
        self._target = target
        self._sigma = sigma
        self._chunk = chunk
        self._method = method
        self._quantiles = quantiles
        self._digest = image_digest(image, key)
        self._moments = RunningMoments()
        self._logits: list[Tensor] = []
        self._totals: list[Tensor] = []
        self._maps: list[Tensor] = []
        self._views = None if views is None else _view_logits(model, image, views)[None]
        self._chroma = torch.tensor([chroma_noise(image)], device=image.device)
        self._line = torch.tensor([line_noise(image)], device=image.device)
        self._place = torch.tensor([place_roughness(image)], device=image.device)

    def until(self, n: int) -> Evidence:
        """Run copies until there are ``n``; return the evidence of all so far, of one request."""
        for logits, relevances in self._passes(n):
            self._moments.update(relevances)
            self._logits.append(logits)
            self._totals.append(relevances.sum((1, 2)))
            if self._quantiles:
                self._maps.append(relevances)
        moments = self._moments
        return Evidence(
            logits=self._clean[None],
            label=self._target[None],
            noisy_logits=torch.cat(self._logits)[None],
            relevance_mean=moments.mean.float()[None],
            relevance_variance=moments.variance.float()[None],
            relevance_total=torch.cat(self._totals).float()[None],
            relevance_quantiles=_quantiles(torch.cat(self._maps), self._quantiles)[None]
            if self._maps
            else None,
            view_logits=self._views,
            chroma_noise=self._chroma,
            line_noise=self._line,
            place_roughness=self._place,
            sigma=self._sigma,
        )

    def _passes(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits [c, K] and channel-summed relevance [c, H, W] of chunk after chunk."""
        image, done = self._image, self._moments.count
        while done < n:
            count = min(self._chunk, n - done)
            noise = gaussian_copies(self._digest, done, count, image.shape).to(image.device)
            copies = (image.float() + self._sigma * noise).to(image.dtype)
            try:
                result = self._method.attribute(self._model, copies, self._target.expand(count))
            except RuntimeError as error:
                if count == 1 or not _out_of_memory(error):
                    raise
                self._chunk = count // 2
                torch.cuda.empty_cache()
                continue
            yield result.logits, result.relevance.float().sum(1)
            done += count


def _view_logits(model: nn.Module, image: Tensor, memory_format: MemoryFormat) -> Tensor:
    """Return the logits of every changed view [V, K]."""
    return plain_logits(model, laid_out(changed_views(image), memory_format))


def _quantiles(maps: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Return quantiles over the copies [Q, H, W] of maps [N, H, W].

    Row by row, because torch.quantile takes at most 16 million values.
    """
    levels = torch.tensor(list(quantiles), dtype=maps.dtype, device=maps.device)
    rows = [row.quantile(levels, dim=0) for row in maps.unbind(1)]
    return torch.stack(rows, dim=1).float()


def _out_of_memory(error: RuntimeError) -> bool:
    """Say whether an allocator, on a GPU or the CPU, has refused."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
