"""Random small networks: the law, gradient times input, and an oracle written another way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lrpguard.lrp import conservation, relevance
from tests.nets import CLASSES, epsilon, gradient_times_input, images
from tests.random_nets import AFFINE, FUZZ, SIZE, Add, Cat, Merged, networks


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Say whether two tensors agree relative to the larger; both may be zero."""
    scale = max(float(ours.norm()), float(theirs.norm()), 1e-30)
    return float((ours - theirs).norm()) <= tolerance * scale


Back = Callable[[Tensor], Tensor]


def propagate(layer: nn.Module, x: Tensor, stabilizer: float) -> tuple[Tensor, Back]:
    """Run a layer; return its output and how relevance goes back through it.

    Relevance is passed as ``R``, each operator on its own: ``R_in = x * J^T (R_out / y)``, with
    ``y + epsilon sign(y)`` below an affine operator's, and 0 / 0 = 0.
    """
    if isinstance(layer, nn.Sequential):
        backs: list[Back] = []
        parts = [part for part in layer if not isinstance(part, nn.Dropout2d)]
        while parts:
            part = parts.pop(0)
            while isinstance(part, AFFINE) and parts and isinstance(parts[0], nn.BatchNorm2d):
                part = Merged(part, parts.pop(0))
            x, back = propagate(part, x, stabilizer)
            backs.append(back)
        return x, lambda r: _through(backs, r)
    if isinstance(layer, Add):
        out, back = propagate(layer.branch, x, stabilizer)
        total = out + x
        return total, lambda r: back(_share(out, total, r)) + _share(x, total, r)
    if isinstance(layer, Cat):
        out, back = propagate(layer.branch, x, stabilizer)
        empty = torch.zeros_like(x[:, :2])
        return torch.cat(
            [out[:, :2], x[:, 2:]], 1
        ), lambda r: back(torch.cat([r[:, :2], empty], 1)) + torch.cat([empty, r[:, 2:]], 1)
    epsilon_here = stabilizer if isinstance(layer, AFFINE) else 0.0
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf.clone())

    def through(r: Tensor) -> Tensor:
        z = y.detach()
        denominator = z + epsilon_here * torch.where(z >= 0, 1.0, -1.0).double()
        quotient = torch.where(z == 0, 0.0, r / denominator)
        (c,) = torch.autograd.grad(y, leaf, quotient)
        return x * c

    return y.detach(), through


def _share(part: Tensor, total: Tensor, r: Tensor) -> Tensor:
    return torch.where(total == 0, 0.0, part / total * r)


def _through(backs: Sequence[Back], r: Tensor) -> Tensor:
    for back in reversed(backs):
        r = back(r)
    return r


@FUZZ
@given(networks(), st.sampled_from([0.0, 1e-9, 1e-3, 0.1]))
def test_relevance_is_conserved(model: nn.Module, stabilizer: float) -> None:
    books = conservation(model, images(2, SIZE), composite=epsilon(stabilizer))
    assert books.residual <= 1e-10
    event("some relevance reaches the input" if books.input else "none reaches the input")


@FUZZ
@given(networks())
def test_lrp_zero_is_gradient_times_input(model: nn.Module) -> None:
    x = images(2, SIZE)
    ours = relevance(model, x, composite=epsilon(0))
    assert close(ours.relevance, gradient_times_input(model, x), 1e-12)
    with torch.no_grad():
        assert torch.equal(ours.logits, model(x))


@FUZZ
@given(networks(), st.sampled_from([1e-3, 0.1]))
def test_a_stabilizer_equals_the_oracle(model: nn.Module, stabilizer: float) -> None:
    x = images(2, SIZE)
    assert isinstance(model, nn.Sequential)
    ours = relevance(model, x, composite=epsilon(stabilizer))
    logits, back = propagate(model, x, stabilizer)
    start = F.one_hot(logits.argmax(1), CLASSES) * logits
    assert close(ours.relevance, back(start), 1e-8)
