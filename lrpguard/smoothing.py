"""SmoothLRP: relevance of N noisy copies of each request, streamed into its moments.

Source: Raulf et al. 2021, section 2 and Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrpguard.attribution.methods import Lrp, Method
from lrpguard.copies import PLAIN, CopyRun, Way
from lrpguard.errors import ConfigurationError, InputShapeError
from lrpguard.evidence import Evidence
from lrpguard.inputs import check_images, check_model
from lrpguard.lrp.composites import EPSILON, Composite
from lrpguard.lrp.engine import plain_logits
from lrpguard.lrp.weights import WeightCache
from lrpguard.noise import key_bytes

PAPER_N = 50
PAPER_SIGMA = 0.05

MEMORY_BUDGET = {"cpu": 144 * 2**20, "cuda": 4 * 2**30}
"""Bytes of activations that one chunk of copies may hold for its backward pass.

On a CPU a chunk that fits its caches is the fastest (docs/performance.md); a GPU wants it large.
"""

MAX_CHUNK = PAPER_N
"""Most copies in one pass, however small they are: beyond it memory grows and speed does not."""


@dataclass(frozen=True)
class Smoothing:
    """How the noisy copies are made and explained.

    Args:
        n: Noisy copies of each request, >= 2.
        sigma: Standard deviation of the noise on the [0, 1] pixel scale, > 0.
        seed: Public seed of the noise, used where there is no secret key.
        composite: Which LRP rule for which layer.
        way: How the copies go through the model; :meth:`lrpguard.Guard.prepare` chooses it.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    n: int = PAPER_N
    sigma: float = PAPER_SIGMA
    seed: int = 0
    composite: Composite = EPSILON
    way: Way = PLAIN

    def __post_init__(self) -> None:
        # Plain numbers, whatever the caller computed them with: they go into a JSON record.
        object.__setattr__(self, "sigma", float(self.sigma))
        for name in ("n", "seed"):
            value = getattr(self, name)
            if not math.isfinite(value) or value != int(value):
                raise ConfigurationError(f"{name} is {value}; it must be a whole number.")
            object.__setattr__(self, name, int(value))
        if self.n < 2:
            raise ConfigurationError(f"n is {self.n}; a variance needs at least 2 noisy copies.")
        if not 0 < self.sigma < float("inf"):
            raise ConfigurationError(f"sigma is {self.sigma}; it must be finite and > 0.")
        key_bytes(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return it for a JSON record."""
        noise = {"n": self.n, "sigma": self.sigma, "seed": self.seed}
        return noise | {"composite": self.composite.to_dict(), "way": asdict(self.way)}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Smoothing:
        """Return what :meth:`to_dict` has recorded; a record without a way knew the plain one."""
        composite, way = Composite.from_dict(record["composite"]), Way(**record.get("way", {}))
        return Smoothing(record["n"], record["sigma"], record["seed"], composite, way)

    def method(self) -> Lrp:
        """Return how a copy is explained; it keeps modified weights from chunk to chunk."""
        return Lrp(self.composite, WeightCache(), self.way.memory_format)


def explain(
    model: nn.Module,
    images: Tensor,
    *,
    target: Tensor | int | None = None,
    n: int = PAPER_N,
    sigma: float = PAPER_SIGMA,
    seed: int = 0,
    key: bytes | None = None,
    composite: Composite = EPSILON,
    method: Method | None = None,
    quantiles: Sequence[float] = (),
    memory_budget: int | None = None,
) -> Evidence:
    """Explain each image by SmoothLRP, or by another method smoothed in the same way.

    Args:
        model: Eager module in eval mode, from [B, C, H, W] in [0, 1] to logits [B, K].
        images: Floating-point pixels in [0, 1], [B, C, H, W].
        target: Explained class, one for all or one an image [B]; None explains the predicted one.
        n: Noisy copies of each image, >= 2.
        sigma: Standard deviation of the noise on the pixel scale.
        seed: Public seed of the noise.
        key: Secret key of the noise, in place of the seed.
        composite: Which LRP rule for which layer.
        method: Method of :mod:`lrpguard.attribution` in place of LRP by ``composite``:
            ``Gradient()`` gives SmoothGrad.
        quantiles: Quantiles of the relevance over the copies, each in [0, 1]. They need all
            N maps of one image in memory at a time; mean and variance do not.
        memory_budget: Bytes of activations one chunk of copies may hold; None takes
            ``MEMORY_BUDGET`` for the model's device.

    Returns:
        Evidence on the model's device: mean, variance and, where asked for, quantiles.

    Raises:
        InputError: The images break the contract; see :func:`lrpguard.inputs.check_images`.
        ModelError: The model cannot be explained, or an operator of it has no rule.
        ConfigurationError: An argument is out of its range.

    Example:
        >>> import torch
        >>> from lrpguard import explain
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
        >>> explain(model, torch.rand(2, 3, 2, 2), n=5).relevance_mean.shape
        torch.Size([2, 2, 2])
    """
    smoothing = Smoothing(n=n, sigma=sigma, seed=seed, composite=composite)
    model = check_model(model)
    images = to_model(check_images(images), model)
    logits = clean_logits(model, images)
    label = _targets(target, logits)
    if method is not None and composite != EPSILON:
        raise ConfigurationError(
            f"both a method, {method}, and a composite, {composite.name!r}, are given; pass "
            "method=Lrp(composite), or the method alone."
        )
    chunk = chunk_size(
        model, images, composite=composite, method=method, memory_budget=memory_budget
    )
    return smooth(
        model,
        images,
        logits,
        label,
        smoothing=smoothing,
        key=key_bytes(seed, key),
        chunk=chunk,
        method=method,
        quantiles=quantiles,
    )


def to_model(images: Tensor, model: nn.Module) -> Tensor:
    """Return the images on the model's device, in its floating-point type, in NCHW order.

    In one order of memory whatever order they came in: sums round by it.
    """
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    if reference is None:
        return images.contiguous()
    return images.to(reference.device, reference.dtype).contiguous()


def clean_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the bare model's own answer for each image, logits [B, K].

    Each image goes through the model alone, so that its logits do not round differently
    with the batch it came in.

    Raises:
        ModelOutputError: The output is not logits [B, K].
        InputShapeError: The images have other channels than the model takes.
    """
    return torch.cat([plain_logits(model, image[None]) for image in images])


def chunk_size(
    model: nn.Module,
    images: Tensor,
    *,
    composite: Composite,
    memory_budget: int | None,
    method: Method | None = None,
) -> int:
    """Return how many copies fit the budget, from one measured pass of one image; at least 1.

    Args:
        model: Checked module.
        images: Checked images on the model's device [B, C, H, W].
        composite: Which LRP rule for which layer.
        memory_budget: Bytes, None for ``MEMORY_BUDGET``.
        method: Method in place of LRP by ``composite``.

    Raises:
        ConfigurationError: The budget is not positive.
        UnsupportedOperatorError: An operator has no rule.
    """
    check_budget(memory_budget)
    if memory_budget is None:
        memory_budget = MEMORY_BUDGET.get(images.device.type, MEMORY_BUDGET["cpu"])
    fitting = memory_budget // (method or Lrp(composite)).saved_bytes(model, images[:1])
    return min(max(1, fitting), MAX_CHUNK)


class ChunkSizes:
    """The most copies in one pass, measured once for each kind of image.

    Args:
        model: Checked module.
        memory_budget: Bytes of activations; None takes ``MEMORY_BUDGET``, or the chunk of the
            smoothing's way.

    Raises:
        ConfigurationError: The budget is not positive.
    """

    def __init__(self, model: nn.Module, memory_budget: int | None) -> None:
        check_budget(memory_budget)
        self._model = model
        self._budget = memory_budget
        self._measured: dict[tuple[object, ...], int] = {}

    def of(self, images: Tensor, smoothing: Smoothing) -> int:
        """Return the most copies of images like these [B, C, H, W], at least 1.

        Raises:
            UnsupportedOperatorError: An operator has no rule.
        """
        chosen, composite = smoothing.way.chunk, smoothing.composite
        if chosen is not None and self._budget is None:
            return chosen
        kind = (*images.shape[1:], images.dtype, str(images.device))
        if kind not in self._measured:
            self._measured[kind] = chunk_size(
                self._model, images, composite=composite, memory_budget=self._budget
            )
        return min(chosen or MAX_CHUNK, self._measured[kind])


def check_budget(memory_budget: int | None) -> None:
    """Refuse a memory budget that is not positive.

    Raises:
        ConfigurationError: It is zero or negative.
    """
    if memory_budget is not None and memory_budget <= 0:
        raise ConfigurationError(f"memory_budget is {memory_budget} bytes; it must be positive.")


def smooth(
    model: nn.Module,
    images: Tensor,
    logits: Tensor,
    label: Tensor,
    *,
    smoothing: Smoothing,
    key: bytes,
    chunk: int,
    method: Method | None = None,
    quantiles: Sequence[float] = (),
) -> Evidence:
    """Run the noisy copies of checked images through the model, and gather the evidence.

    A chunk never holds copies of two requests, so the evidence of a request does not
    depend on its batch. Out of memory halves the chunk and goes on.

    Args:
        model: Checked module.
        images: Checked images on the model's device [B, C, H, W].
        logits: Clean logits [B, K].
        label: Explained classes [B].
        smoothing: Number of copies, noise and composite.
        key: Noise key.
        chunk: Largest number of copies in one pass.
        method: Method in place of LRP by the smoothing's composite.
        quantiles: Quantiles over the copies, each in [0, 1].

    Raises:
        ConfigurationError: A quantile lies outside [0, 1].
        UnsupportedOperatorError: An operator has no rule.
    """
    if any(not 0 <= q <= 1 for q in quantiles):
        raise ConfigurationError(f"quantiles are {list(quantiles)}; each must lie in [0, 1].")
    method = method or smoothing.method()
    runs = (
        CopyRun(
            model,
            *request,
            sigma=smoothing.sigma,
            key=key,
            chunk=chunk,
            method=method,
            quantiles=quantiles,
        )
        for request in zip(images, logits, label, strict=True)
    )
    return Evidence.concatenate([run.until(smoothing.n) for run in runs])


def _targets(target: Tensor | int | None, logits: Tensor) -> Tensor:
    """Return the explained class of each image [B]."""
    if target is None:
        return logits.argmax(1)
    classes = torch.as_tensor(target, device=logits.device).long()
    if classes.ndim == 0:
        classes = classes.expand(len(logits))
    if classes.shape != (len(logits),):
        raise InputShapeError(
            f"target has shape {list(classes.shape)}; give one class, or one an image "
            f"[{len(logits)}]."
        )
    if bool((classes < 0).any()) or bool((classes >= logits.shape[1]).any()):
        raise ConfigurationError(
            f"target holds classes {sorted(set(classes.tolist()))}; the model has classes 0 … "
            f"{logits.shape[1] - 1}."
        )
    return classes
