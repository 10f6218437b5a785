"""LRP, gradient, gradient times input, integrated gradients, SmoothGrad.

Each method gives a :class:`~lrpguard.lrp.Relevance` from the same arguments, and each can be
smoothed: ``lrpguard.explain(model, images, method=IntegratedGradients())``. All but LRP take plain
gradients, which exist on any differentiable network: they are the knowing choice for a network
that LRP refuses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_model
from lrpguard.lrp.composites import EPSILON, Composite
from lrpguard.lrp.engine import Relevance, network_input, plain_logits, relevance, saved_bytes
from lrpguard.lrp.gradient import gradient_bytes, input_gradient
from lrpguard.lrp.weights import WeightCache
from lrpguard.noise import gaussian_copies, image_digest, key_bytes

MemoryFormat = Literal["contiguous", "channels_last"]
"""Order in which the values of a batch [B, C, H, W] lie in memory: by channel, or by pixel."""


class Method(ABC):
    """How a batch is explained, at the input of the network (after a known normalisation).

    An image's attribution is a function of the network, the image and the method alone, not of
    the batch it comes in (up to the rounding of batched operators).
    """

    @abstractmethod
    def attribute(
        self, model: nn.Module, images: Tensor, target: Tensor | None = None
    ) -> Relevance:
        """Explain a batch.

        Args:
            model: Eager module in eval mode, from [B, C, H, W] to logits [B, K].
            images: Pixels in [0, 1] (noise may carry them beyond), on the model's device.
            target: Explained class of each image [B]; None explains the predicted one.

        Raises:
            ModelError: The model cannot be explained by this method.
        """

    def saved_bytes(self, model: nn.Module, images: Tensor) -> int:
        """Measure what one pass keeps for its backward, in bytes for the whole batch."""
        return gradient_bytes(model, images)


def attribute(
    model: nn.Module, images: Tensor, target: Tensor | None = None, *, method: Method
) -> Relevance:
    """Explain a batch by any method.

    Args:
        model: Eager module in eval mode, from [B, C, H, W] in [0, 1] to logits [B, K].
        images: Pixels in [0, 1] (noise may carry them beyond), on the model's device, [B, C, H, W].
        target: Explained class of each image [B]; None explains the predicted one.
        method: One of :mod:`lrpguard.attribution`.

    Returns:
        Logits and attribution [B, C, H, W], detached.

    Raises:
        ModelError: The model is not eager or not in eval mode, or the method cannot explain it.
        InputShapeError: Wrong channels, or not one target an image.

    Example:
        >>> import torch
        >>> from lrpguard.attribution import IntegratedGradients, attribute
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
        >>> attribute(model, torch.rand(2, 3, 2, 2), method=IntegratedGradients()).relevance.shape
        torch.Size([2, 3, 2, 2])
    """
    return method.attribute(check_model(model), images, target)


def laid_out(images: Tensor, memory_format: MemoryFormat) -> Tensor:
    """Return a batch [B, C, H, W] in an order of memory; ``"contiguous"`` leaves it as it is."""
    if memory_format == "contiguous":
        return images
    return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Lrp(Method):
    """Layer-wise relevance propagation; see :func:`lrpguard.lrp.relevance`.

    Args:
        composite: Which rule for which layer.
        cache: Keeps modified weights from batch to batch; None makes them anew.
        memory_format: Order of the batch in memory; the model's weights stay as they are.
    """

    composite: Composite = EPSILON
    cache: WeightCache | None = field(default=None, repr=False, compare=False)
    memory_format: MemoryFormat = "contiguous"

    def attribute(
        self, model: nn.Module, images: Tensor, target: Tensor | None = None
    ) -> Relevance:
        """Explain a batch by :func:`lrpguard.lrp.relevance`."""
        images = laid_out(images, self.memory_format)
        return relevance(model, images, target, composite=self.composite, cache=self.cache)

    def saved_bytes(self, model: nn.Module, images: Tensor) -> int:
        """Measure what one pass keeps for its backward."""
        return saved_bytes(model, images, composite=self.composite)


@dataclass(frozen=True)
class Gradient(Method):
    """Sensitivity: the derivative ``d f / d x`` of the explained logit, with its sign.

    It is in units of the logit per unit of input, and not conserved. Sensitivity maps of the
    literature take its absolute value or its maximum over channels.

    Source: Simonyan, Vedaldi, Zisserman 2014, section 3.
    """

    def attribute(
        self, model: nn.Module, images: Tensor, target: Tensor | None = None
    ) -> Relevance:
        """Differentiate the explained logit by the input."""
        result = input_gradient(model, images, target)
        return Relevance(result.logits, result.gradient)


@dataclass(frozen=True)
class GradientTimesInput(Method):
    """``x * d f / d x``: on ReLU networks it is LRP-0.

    Source: Shrikumar et al. 2017 (arXiv 1605.01713).
    """

    def attribute(
        self, model: nn.Module, images: Tensor, target: Tensor | None = None
    ) -> Relevance:
        """Differentiate, and multiply by what the network received."""
        result = input_gradient(model, images, target)
        return Relevance(result.logits, result.input * result.gradient)


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """Gradients averaged on the straight way from a baseline image, times the difference.

    ``(x - b) * (1/steps) * sum_k grad f(b + (k - 1/2) / steps * (x - b))``: the midpoint rule. With
    steps enough it is complete: it sums to ``f(x) - f(b)``.

    Args:
        steps: Points on the way, >= 1; each costs one forward and one backward pass.
        baseline: Pixel value of the uniform image where the way starts, in [0, 1]; 0 is black.

    Raises:
        ConfigurationError: A value is out of its range.

    Source: Sundararajan, Taly, Yan 2017 (arXiv 1703.01365), equation (3).
    """

    steps: int = 50
    baseline: float = 0.0

    def __post_init__(self) -> None:
        _check_count("steps", self.steps)
        if not 0 <= self.baseline <= 1:
            raise ConfigurationError(f"baseline is {self.baseline}; it is a pixel value in [0, 1].")

    def attribute(
        self, model: nn.Module, images: Tensor, target: Tensor | None = None
    ) -> Relevance:
        """Average the gradients on the way; the path is straight after a normalisation, too."""
        logits, target = predicted(model, images, target)
        start = torch.full_like(images, self.baseline)
        total = torch.zeros_like(images, dtype=torch.float64)
        for k in range(self.steps):
            point = torch.lerp(start, images, (k + 0.5) / self.steps)
            total += input_gradient(model, point, target).gradient
        way = network_input(model, images)[1] - network_input(model, start)[1]
        return Relevance(logits, way * (total / self.steps).to(way.dtype))


@dataclass(frozen=True)
class SmoothGrad(Method):
    """The gradient averaged over noisy copies of each image.

    The copies and the noise are those of :func:`lrpguard.explain`, which gives the variance and
    quantiles, too: ``explain(model, images, method=Gradient())``.

    Args:
        n: Noisy copies, >= 1; each costs one forward and one backward pass.
        sigma: Standard deviation of the noise on the [0, 1] pixel scale, > 0.
        seed: Public seed of the noise.

    Raises:
        ConfigurationError: A value is out of its range.

    Source: Smilkov et al. 2017 (arXiv 1706.03825).
    """

    n: int = 50
    sigma: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        _check_count("n", self.n)
        if not 0 < self.sigma < float("inf"):
            raise ConfigurationError(f"sigma is {self.sigma}; it must be finite and > 0.")
        key_bytes(self.seed)

    def attribute(
        self, model: nn.Module, images: Tensor, target: Tensor | None = None
    ) -> Relevance:
        """Average the gradient over the copies; the logits are those of the clean images."""
        logits, target = predicted(model, images, target)
        digests = [image_digest(image, key_bytes(self.seed)) for image in images]
        total = torch.zeros_like(images, dtype=torch.float64)
        for k in range(self.n):
            noise = torch.cat([gaussian_copies(d, k, 1, images.shape[1:]) for d in digests])
            copies = (images.float() + self.sigma * noise.to(images.device)).to(images.dtype)
            total += input_gradient(model, copies, target).gradient
        return Relevance(logits, (total / self.n).to(images.dtype))


def predicted(model: nn.Module, images: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the bare model's logits [B, K] and the explained class of each image [B]."""
    logits = plain_logits(model, images)
    return logits, logits.argmax(1) if target is None else target


def _check_count(name: str, value: int) -> None:
    if value < 1 or value != int(value):
        raise ConfigurationError(f"{name} is {value}; it must be a whole number >= 1.")
