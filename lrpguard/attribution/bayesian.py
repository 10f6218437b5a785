"""B-LRP: LRP over networks sampled by Monte-Carlo dropout, with quantile maps.

The dropout happens inside the pass (a ``TorchFunctionMode``); the model stays in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrpguard.attribution.methods import Method, predicted
from lrpguard.errors import ConfigurationError
from lrpguard.lrp.calls import plain_name
from lrpguard.lrp.composites import EPSILON, Composite
from lrpguard.lrp.engine import Relevance, relevance_under, saved_bytes
from lrpguard.lrp.mode import LrpMode
from lrpguard.lrp.operators import DROPOUT
from lrpguard.lrp.trace import carries, is_gate
from lrpguard.lrp.weights import WeightCache
from lrpguard.moments import RunningMoments
from lrpguard.noise import image_digest, key_bytes

QUANTILES = (0.05, 0.5, 0.95)
"""Quantile maps of the paper: where nearly all, half, or a few of the networks see relevance."""

_CHANNEL_WISE = frozenset(("dropout1d", "dropout2d", "dropout3d", "feature_dropout"))
_WEIGHTED = frozenset("conv1d conv2d conv3d linear".split())


@dataclass(frozen=True)
class BayesianLrp(Method):
    """LRP averaged over networks sampled by Monte-Carlo dropout (B-LRP).

    Activations are dropped where the network itself has dropout (``nn.Dropout``, ``F.dropout``,
    with p > 0), or at the inputs of the layers named; what stays is divided by ``1 - rate``. Which
    are dropped follows from the seed, the image's pixels, the sample's number and the place: not
    from the batch. Logits are the mean over the samples. Images go through one at a time.

    Args:
        composite: Which LRP rule for which layer.
        samples: Sampled networks, >= 1; each costs one forward and one backward pass.
        layers: Shell pattern of the dotted names of convolutions and dense layers whose inputs
            are dropped, e.g. ``"classifier.*"``; None takes the network's own dropout.
        rate: Share of activations that are dropped, in (0, 1); None takes that of the network's
            own dropout. Needed where ``layers`` is given.
        seed: Public seed of the dropout.

    Raises:
        ConfigurationError: A value is out of its range.

    Source: Bykov et al. 2020 (arXiv 2006.09000); dropout at the input of a layer as an
    approximate posterior over its weights: Gal & Ghahramani 2016.
    """

    composite: Composite = EPSILON
    samples: int = 50
    layers: str | None = None
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.samples != int(self.samples):
            raise ConfigurationError(f"samples is {self.samples}; it must be a whole number >= 1.")
        if self.rate is not None and not 0 < self.rate < 1:
            raise ConfigurationError(f"rate is {self.rate}; it must lie between 0 and 1.")
        if self.layers is not None and self.rate is None:
            raise ConfigurationError(
                f"layers is {self.layers!r} without a rate; say how much is dropped there, e.g. "
                "rate=0.1."
            )
        key_bytes(self.seed)

    def attribute(
        self, model: nn.Module, images: Tensor, target: Tensor | None = None
    ) -> Relevance:
        """Average logits and relevance over the samples; see :func:`bayesian_relevance`."""
        result = bayesian_relevance(model, images, target, method=self, quantiles=())
        return Relevance(result.logits, result.relevance)

    def saved_bytes(self, model: nn.Module, images: Tensor) -> int:
        """Measure what one pass keeps for its backward: a mask, too, for each activation."""
        return 2 * saved_bytes(model, images, composite=self.composite)


@dataclass(frozen=True)
class BayesianRelevance(Relevance):
    """Relevance over networks sampled by dropout.

    Attributes:
        logits: Mean of the sampled networks' logits [B, K].
        relevance: Mean of their relevance [B, C, H, W].
        quantiles: Quantiles of their relevance, value by value [B, Q, C, H, W].
        levels: The Q levels of the quantiles, each in [0, 1].
    """

    quantiles: Tensor
    levels: tuple[float, ...]


def bayesian_relevance(
    model: nn.Module,
    images: Tensor,
    target: Tensor | None = None,
    *,
    method: BayesianLrp = BayesianLrp(),
    quantiles: Sequence[float] = QUANTILES,
) -> BayesianRelevance:
    """Explain a batch by B-LRP, with quantile maps over the sampled networks.

    Args:
        model: Eager module in eval mode, from [B, C, H, W] in [0, 1] to logits [B, K].
        images: Pixels in [0, 1] (noise may carry them beyond), on the model's device.
        target: Explained class of each image [B]; None explains the class that the network
            predicts without dropout.
        method: How the networks are sampled and explained.
        quantiles: Levels in [0, 1]; all maps of one image are in memory at a time for them.

    Raises:
        ConfigurationError: The network has no dropout and no layers are named, none matches the
            name, or a quantile lies outside [0, 1].
        ModelError: As for :func:`lrpguard.lrp.relevance`.
    """
    if any(not 0 <= q <= 1 for q in quantiles):
        raise ConfigurationError(f"quantiles are {list(quantiles)}; each must lie in [0, 1].")
    _, target = predicted(model, images, target)
    explained = [
        _of_one(model, image[None], label[None], method, quantiles)
        for image, label in zip(images, target, strict=True)
    ]
    logits, means, maps = (torch.stack(parts) for parts in zip(*explained, strict=True))
    return BayesianRelevance(logits, means, maps, tuple(quantiles))


def _of_one(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    method: BayesianLrp,
    quantiles: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean logits [K], mean relevance [C, H, W] and quantiles [Q, C, H, W]."""
    logits, moments, maps = RunningMoments(), RunningMoments(), []
    for sample in _samples(model, image, label, method):
        logits.update(sample.logits)
        moments.update(sample.relevance)
        if quantiles:
            maps.append(sample.relevance)
    levels = torch.tensor(list(quantiles), dtype=torch.float64, device=image.device)
    rows = [
        row.double().quantile(levels, dim=0) for row in (torch.cat(maps).unbind(1) if maps else ())
    ]  # channel by channel, because torch.quantile takes at most 16 million values
    found = torch.stack(rows, dim=1) if rows else image.new_empty(0, *image.shape[1:])
    dtype = image.dtype
    return logits.mean.to(dtype), moments.mean.to(dtype), found.to(dtype)


def _samples(
    model: nn.Module, image: Tensor, label: Tensor, method: BayesianLrp
) -> Iterator[Relevance]:
    digest, cache = image_digest(image[0], key_bytes(method.seed)), WeightCache()
    for number in range(method.samples):
        mode = partial(_DropoutMode, method=method, digest=digest, sample=number, cache=cache)
        yield relevance_under(mode, model, image, label)


class _DropoutMode(LrpMode):
    """LRP on the network that one draw of dropout masks gives.

    Args:
        model: The model that will run.
        method: Where and how much is dropped.
        digest: Keyed digest of the image, 16 bytes.
        sample: Number of the draw.
        cache: Where modified weights are kept from draw to draw.
    """

    def __init__(
        self,
        model: nn.Module,
        method: BayesianLrp,
        digest: bytes,
        sample: int,
        cache: WeightCache,
    ) -> None:
        super().__init__(model, method.composite, cache=cache)
        self._method = method
        self._digest = digest
        self._sample = sample
        self._masks = 0
        self._layers: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator by its rule, its input or its result dropped where that is meant."""
        kwargs = kwargs or {}
        name = plain_name(func)
        if self._method.layers is None and name in DROPOUT:
            result = super().__torch_function__(func, types, args, kwargs)
            rate = _argument(args, kwargs, 1, "p", 0.5)
            if not rate or not (carries(result) or is_gate(result)):
                return result
            if "alpha" in name:
                raise self._error(func, "alpha dropout has no mask in B-LRP; name layers instead.")
            return self._dropped(result, self._method.rate or rate, name)
        if name in _WEIGHTED and self._is_meant(_argument(args, kwargs, 1, "weight")):
            assert self._method.rate is not None
            x = self._dropped(_argument(args, kwargs, 0, "input"), self._method.rate, name)
            args = (x, *args[1:])
            kwargs = {k: v for k, v in kwargs.items() if k != "input"}
        return super().__torch_function__(func, types, args, kwargs)

    def end(self, logits: Tensor) -> Tensor:
        """Return the network's output; refuse a network in which nothing was dropped."""
        if not self._masks and self._method.layers is None:
            raise ConfigurationError(
                "the network calls no dropout with p > 0, so there is nothing for B-LRP to sample. "
                "Name the layers whose inputs are to be dropped, and how much: "
                "BayesianLrp(layers='classifier.*', rate=0.1)."
            )
        if not self._masks:
            raise ConfigurationError(
                f"no convolution or dense layer on the way is named {self._method.layers!r}; "
                f"there are {', '.join(self._layers[:12])}{' …' * (len(self._layers) > 12)}."
            )
        return super().end(logits)

    def _is_meant(self, weight: Any) -> bool:
        layer = self._names.get(id(weight), "")
        if not layer or self._method.layers is None:
            return False
        self._layers.append(layer)
        return fnmatchcase(layer, self._method.layers)

    def _dropped(self, x: Tensor, rate: float, name: str) -> Any:
        """Return ``x`` with some values, or whole channels, at zero and the others scaled up."""
        shape = tuple(x.shape)
        if name in _CHANNEL_WISE:
            shape = (*shape[:2], *(1 for _ in shape[2:]))
        # Counters 0 and 3 are those of the noise (lrpguard.noise), whose counter 2 stays at 0.
        self._masks += 1
        counter = np.array([0, 0, self._masks, self._sample], dtype=np.uint64)
        key = np.frombuffer(self._digest, dtype=np.uint64)
        draws = np.random.Generator(np.random.Philox(counter=counter, key=key)).random(
            shape, dtype=np.float32
        )
        kept = torch.from_numpy(draws >= rate).to(x.device, x.dtype)
        scale = 1 / (1 - rate) if rate < 1 else 0.0
        return super().__torch_function__(torch.mul, (), (x, kept * scale))


def _argument(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None
) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)
