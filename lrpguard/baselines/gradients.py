"""Baselines that read a gradient: GradNorm, the input gradient, its variance under noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lrpguard.baselines.base import UnfittedBaseline, finite_logits
from lrpguard.baselines.copies import Noise, NoisyBaseline, noisy_copies
from lrpguard.baselines.features import affine_call
from lrpguard.errors import UnsupportedModelError
from lrpguard.lrp.engine import check_logits, graph_mode
from lrpguard.lrp.gradient import input_gradient
from lrpguard.moments import RunningMoments

GRAPH_BATCH = 8
"""Images in one pass that keeps its graph: a SqueezeNet's takes 20 MiB an image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GradNorm(UnfittedBaseline):
    """Logarithm of the L1 norm of a gradient at the head's weights, negated.

    The gradient is that of the divergence from the uniform distribution to the softmax. A small
    one is anomalous. Source: Huang, Geng, Li 2021, "On the importance of gradients for detecting
    distributional shifts in the wild", equations (2) and (4), without the logarithm.
    """

    name: ClassVar[str] = "gradnorm"

    @property
    def passes(self) -> str:
        """One forward, and the backward of the last layer alone."""
        return "1 forward, backward through the head only"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        return torch.cat([self._norms(model, part) for part in images.split(GRAPH_BATCH)])

    def _norms(self, model: nn.Module, images: Tensor) -> Tensor:
        classes = finite_logits(model, images[:1]).shape[1]
        with graph_mode(), _Head(classes) as head:
            logits = check_logits(model(images.clone()), len(images))
            if head.weight is None:
                raise UnsupportedModelError(
                    f"no nn.Linear or convolution of the model has {classes} outputs, one a "
                    "class, so there is no last layer whose gradient could be taken."
                )
            divergence = -functional.log_softmax(logits.double(), 1).mean(1)
            norms = [
                torch.autograd.grad(one, head.weight, retain_graph=True)[0].double().abs().sum()
                for one in divergence
            ]
        return -_log(torch.stack(norms))


class _Head(TorchFunctionMode):
    """Cuts the graph at the input of the head, and gives it weights that take a gradient."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.weight: Tensor | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = affine_call(func, args, kwargs)
        if call is None or len(call.weight) != self.classes:
            return func(*args, **(kwargs or {}))
        self.weight = call.weight.detach().clone().requires_grad_()
        return func(call.given.detach(), self.weight, *call.rest, **call.options)


@dataclass(frozen=True, kw_only=True, eq=False)
class InputGradient(UnfittedBaseline):
    """Logarithm of the L2 norm of the loss's gradient at the pixels.

    The loss is the cross-entropy against the predicted class: the norm is large where a small
    change moves the prediction. Source: Lust, Condurache 2020, "GraN: an efficient
    gradient-norm based detector for adversarial and misclassified examples", who take the
    norm at the weights of each layer and train a classifier on them.
    """

    name: ClassVar[str] = "input-gradient"

    @property
    def passes(self) -> str:
        """One forward and one backward."""
        return "1 forward, 1 backward"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        norms = []
        for part in images.split(GRAPH_BATCH):
            with graph_mode():
                leaf = part.detach().clone().requires_grad_()
                logits = check_logits(model(leaf.clone()), len(part))
                top = logits.argmax(1, keepdim=True)
                # The sum over the other classes alone does not round to 0 as 1 - p does.
                others = logits.double().scatter(1, top, -torch.inf).logsumexp(1)
                loss = functional.softplus(others - logits.double().gather(1, top)[:, 0])
                gradient = torch.autograd.grad(loss.sum(), leaf)[0]
            norms.append(gradient.double().flatten(1).norm(dim=1))
        return _log(torch.cat(norms))


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothGradVariance(NoisyBaseline):
    """Logarithm of the pixels' mean variance of the gradient over noisy copies.

    The gradient is that of the predicted class's logit at the network's input, after a known
    normalisation, where LRP takes its relevance too. Source: Smilkov et al. 2017, "SmoothGrad:
    removing noise by adding noise"; Raulf et al. 2021, section 3.2, for the variance as a score.

    See :class:`NoisyBaseline` for the options; ``n`` is at least 2.
    """

    name: ClassVar[str] = "smoothgrad-variance"
    least: ClassVar[int] = 2

    @property
    def passes(self) -> str:
        """The image forward, its copies forward and backward."""
        return f"{self.n + 1} forward, {self.n} backward"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        labels = finite_logits(model, images).argmax(1)
        pairs = zip(images, labels, strict=True)
        return _log(torch.stack([self._variance(model, image, label) for image, label in pairs]))

    def _variance(self, model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
        moments = RunningMoments()
        noise = Noise("gaussian", self.sigma)
        for part in noisy_copies(image, noise, n=self.n, seed=self.seed, batch=GRAPH_BATCH):
            moments.update(input_gradient(model, part, label.expand(len(part))).gradient)
        return moments.variance.mean()


def _log(values: Tensor) -> Tensor:
    """Return logarithms, finite where a gradient has vanished."""
    return values.double().clamp_min(1e-300).log()
