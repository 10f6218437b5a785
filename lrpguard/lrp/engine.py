"""Relevance of a batch: one forward and one input-gradient backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lrpguard.errors import InputShapeError, ModelOutputError
from lrpguard.inputs import NormalizedModel, stem_channels
from lrpguard.lrp.composites import EPSILON, ZERO, Composite
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.mode import LrpMode
from lrpguard.lrp.trace import Entry, Trace, carries, put_trace
from lrpguard.lrp.weights import WeightCache


@dataclass(frozen=True)
class Relevance:
    """Relevance of a batch at the input of the network.

    Attributes:
        logits: Pre-softmax outputs [B, K].
        relevance: Relevance of each input value, in units of the explained logit [B, C, H, W].
    """

    logits: Tensor
    relevance: Tensor


@dataclass(frozen=True)
class Conservation:
    """Where the explained logit went: ``logit = input + bias + stabilizer + residual``.

    Attributes:
        logit: Explained logit, summed over the batch.
        input: Relevance that reached the input.
        bias: Relevance absorbed by biases and constants.
        stabilizer: Relevance absorbed by the rule's epsilon.
    """

    logit: float
    input: float
    bias: float
    stabilizer: float

    @property
    def residual(self) -> float:
        """What the law does not account for, relative to the largest of its terms."""
        terms = (self.logit, self.input, self.bias, self.stabilizer)
        lost = self.logit - self.input - self.bias - self.stabilizer
        return abs(lost) / max(*(abs(t) for t in terms), 1e-300)


def relevance(
    model: nn.Module,
    images: Tensor,
    target: Tensor | None = None,
    *,
    composite: Composite = EPSILON,
    cache: WeightCache | None = None,
) -> Relevance:
    """Explain a batch by layer-wise relevance propagation.

    Relevance starts from the pre-softmax logit of the explained class. It is taken at the
    input of the network: for a :class:`~lrpguard.inputs.NormalizedModel` after the
    normalisation.

    Args:
        model: Eager module in eval mode, from [B, C, H, W] to logits [B, K].
        images: Pixels in [0, 1] (noise may carry them beyond), on the model's device, [B, C, H, W].
        target: Explained class of each image [B]; None explains the predicted one.
        composite: Which rule for which layer.
        cache: Keeps modified weights from call to call; None makes them anew.

    Returns:
        Logits and relevance, detached.

    Raises:
        UnsupportedOperatorError: An operator on the path has no rule.
        ModelOutputError: The output is not a floating-point tensor [B, K].

    Source: Bach et al. 2015; the modified-gradient form is derived in docs/method.md.
    """
    return relevance_under(
        partial(LrpMode, composite=composite, cache=cache), model, images, target
    )


def relevance_under(
    mode: Callable[[nn.Module], LrpMode], model: nn.Module, images: Tensor, target: Tensor | None
) -> Relevance:
    """Explain a batch under a mode of the caller's; see :func:`relevance`.

    Args:
        mode: Makes the mode of one pass, from the network that will run.
        model: As for :func:`relevance`.
        images: As for :func:`relevance`.
        target: As for :func:`relevance`.
    """
    network, x = network_input(model, images)
    with graph_mode():
        run = _forward(model, network, x, mode(network))
        start = start_gradient(run.logits, target)
        gradients = torch.autograd.grad(run.logits, run.leaves, start, allow_unused=True)
    return Relevance(run.logits.detach(), run.at_input(gradients))


def conservation(
    model: nn.Module,
    images: Tensor,
    target: Tensor | None = None,
    *,
    composite: Composite = EPSILON,
) -> Conservation:
    """Keep the books of one explanation: the exact conservation law of LRP.

    Args:
        model: As for :func:`relevance`; in float64 the residual is at rounding level.
        images: As for :func:`relevance`.
        target: As for :func:`relevance`.
        composite: As for :func:`relevance`.

    Returns:
        The terms of the law, summed over the batch.

    Raises:
        UnsupportedOperatorError: An operator on the path has no rule.
        ModelOutputError: The output is not a floating-point tensor [B, K].
    """
    network, x = network_input(model, images)
    ledger = Ledger()
    with graph_mode():
        run = _forward(model, network, x, LrpMode(network, composite, ledger))
        start = start_gradient(run.logits, target)
        leaves = [*run.leaves, *ledger.biases]
        gradients = torch.autograd.grad(run.logits, leaves, start, allow_unused=True)
    return Conservation(
        logit=float((run.logits.detach() * start).sum()),
        input=float(run.at_input(gradients[:2]).sum()),
        bias=ledger.bias_relevance(gradients[2:]),
        stabilizer=ledger.stabilizer_relevance(),
    )


def saved_bytes(
    model: nn.Module, images: Tensor, *, composite: Composite = EPSILON, lean: bool | None = None
) -> int:
    """Measure what one pass keeps for its backward.

    Args:
        model: As for :func:`relevance`.
        images: As for :func:`relevance`; one image is enough.
        composite: As for :func:`relevance`.
        lean: Whether bits are kept in place of activations; None as :func:`relevance` does.

    Returns:
        Bytes of the activations held between forward and backward, for the whole batch.

    Raises:
        UnsupportedOperatorError: An operator on the path has no rule.
        ModelOutputError: The output is not a floating-point tensor [B, K].
    """
    network, x = network_input(model, images)
    with held_for_backward(model) as storages, graph_mode():
        _forward(model, network, x, LrpMode(network, composite, lean=lean))
    return sum(storages.values()) + x.nbytes


@contextmanager
def held_for_backward(model: nn.Module) -> Iterator[dict[int, int]]:
    """Yield a record of what is saved for the backward inside: bytes by address of storage."""
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield storages


def plain_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the bare model's logits [B, K], run eagerly, without gradients or autocast.

    Args:
        model: As for :func:`relevance`.
        images: As for :func:`relevance`.

    Raises:
        ModelOutputError: The output is not a floating-point tensor [B, K].
        InputShapeError: The images have other channels than the model takes.
    """
    network, x = network_input(model, images)
    with graph_mode(), torch.no_grad(), channels_named(network, x):
        return check_logits(eager_call(network)(x.clone()), len(x))


def eager_call(network: nn.Module) -> Callable[[Tensor], object]:
    """Return the module's eager call, hooks included; a compiled one would bypass the mode."""
    call: Callable[[Tensor], object] = network._call_impl
    return network if network._compiled_call_impl is None else call


def network_input(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """Split off a known normalisation: return the network and the input it receives."""
    if isinstance(model, NormalizedModel):
        with torch.no_grad():
            return model.model, model.normalize(images)
    return model, images


@contextmanager
def graph_mode() -> Iterator[None]:
    """Build a graph whatever the caller's grad, inference and autocast modes are."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@dataclass(frozen=True)
class _Run:
    """One forward pass: the logits and the leaves whose gradients are relevance."""

    logits: Tensor
    input: Tensor
    direct: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [self.input, self.direct]

    def at_input(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return the relevance of the input [B, C, H, W] from the gradients of the leaves."""
        c, direct = gradients
        relevance = torch.zeros_like(self.input) if c is None else self.input.detach() * c
        return relevance if direct is None else relevance + direct


def _forward(model: nn.Module, network: nn.Module, x: Tensor, mode: LrpMode) -> _Run:
    """Run the network under the mode and check its logits."""
    if mode.selection.composite.counts_from_the_end and mode.selection.total is None:
        counting = LrpMode(network, ZERO)
        _forward(model, network, x[:1], counting)
        mode.selection.total = counting.selection.seen
    leaf = x.detach().clone().requires_grad_()
    direct = torch.zeros_like(leaf).requires_grad_()
    low, high = _pixel_bounds(model, leaf)
    entry = leaf.clone()  # a model may work on its input in place; a leaf forbids that
    put_trace(entry, Trace(raw=True, entry=Entry(direct, low, high)))
    mode.begin(entry)
    with mode, channels_named(network, x):
        logits = check_logits(eager_call(network)(entry), len(x))
    logits = mode.end(logits)
    if not carries(logits):
        raise ModelOutputError(
            "the logits do not depend on the input in a differentiable way, so there is no "
            "relevance to propagate. Does the model end in a sigmoid or softmax? lrpguard takes "
            "the logits before it."
        )
    return _Run(logits, leaf, direct)


def _pixel_bounds(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest pixel at the network's input, each [1, C, 1, 1]."""
    low = x.detach().new_zeros(1, x.shape[1], 1, 1)
    if isinstance(model, NormalizedModel):
        return model.normalize(low), model.normalize(low + 1)
    return low, low + 1


@contextmanager
def channels_named(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Turn a model's complaint about channels into an InputShapeError.

    Args:
        model: The model that runs inside.
        images: What it is given [B, C, H, W].

    Raises:
        InputShapeError: The model's first convolution takes another number of channels.
    """
    try:
        yield
    except RuntimeError as error:
        expected = stem_channels(model)
        if expected in (None, images.shape[1]) or "channels" not in str(error):
            raise
        raise InputShapeError(
            f"images have {images.shape[1]} channel(s), shape {list(images.shape)}; the model's "
            f"first convolution takes {expected}. Convert the images, e.g. to "
            f"{'RGB' if expected == 3 else f'{expected} channel(s)'}."
        ) from error


def check_logits(logits: object, batch: int) -> Tensor:
    """Return the model's output if it is logits [B, K].

    Raises:
        ModelOutputError: Not a floating-point tensor [B, K] with K >= 2.
    """
    if not isinstance(logits, Tensor):
        raise ModelOutputError(
            f"the model returned a {type(logits).__name__}; lrpguard takes logits [B, K] as one "
            "tensor. Wrap the model so that it returns its logits alone."
        )
    shape = list(logits.shape)
    if logits.ndim != 2 or shape[0] != batch or shape[1] < 2 or not logits.is_floating_point():
        raise ModelOutputError(
            f"the model returned {logits.dtype} of shape {shape} for {batch} image(s); lrpguard "
            f"takes floating-point logits [{batch}, K] with K >= 2."
        )
    return logits


def start_gradient(logits: Tensor, target: Tensor | None) -> Tensor:
    """Return the gradient that starts at the explained logits: one-hot rows [B, K]."""
    target = logits.argmax(1) if target is None else target.to(logits.device)
    if target.shape != (len(logits),):
        raise InputShapeError(
            f"target has shape {list(target.shape)}; give one class an image [{len(logits)}]."
        )
    return torch.zeros_like(logits).scatter_(1, target.view(-1, 1), 1.0).detach()
