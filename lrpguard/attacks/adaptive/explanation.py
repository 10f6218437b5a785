"""An attack on what is shown: the model's answer stays, and the heat map is another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lrpguard.attacks.adaptive.descent import (
    Effort,
    Objective,
    Sight,
    Trace,
    chunk_length,
    descend,
)
from lrpguard.attacks.margins import margin
from lrpguard.attacks.pgd import check_labels
from lrpguard.errors import InputShapeError
from lrpguard.inputs import NormalizedModel, check_eval, check_images

SOFTNESS = 10.0
"""Beta of the softplus that stands for ReLU, whose second derivative is nothing."""

COST = 6
"""Passes that a gradient of a gradient counts for, where images are put together in chunks."""

_RELU = {functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class SoftRelu(TorchFunctionMode):
    """Let every ReLU be a softplus, on this thread, as long as the mode is on."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _RELU:
            return functional.softplus(args[0] if args else (kwargs or {})["input"], beta=SOFTNESS)
        return func(*args, **(kwargs or {}))


def mislead_explanation(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    maps: Tensor,
    effort: Effort,
    *,
    trace: Trace | None = None,
) -> Tensor:
    """Give each image another's heat map, and leave the model its answer.

    The map attacked is gradient times input of the network with softplus in place of ReLU, which
    LRP with small stabilizers is close to on a ReLU network.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode.
        images: Clean images in [0, 1], [B, C, H, W].
        labels: Classes that the model shall still say, integers [B].
        maps: Wanted heat maps [B, H, W]; their scale does not matter.
        effort: How far and how long; there are no copies.
        trace: Where to note how the search went.

    Returns:
        Images of whole 8-bit levels [B, C, H, W].

    Raises:
        InputError: The images are not what lrpguard takes, or there is not one map for each.
        TrainingModeError: The model is in train mode.

    Source:
        Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame".
    """
    check_eval(model)
    clean = check_images(images).clone()
    if maps.shape != (len(clean), *clean.shape[2:]):
        raise InputShapeError(
            f"maps are {list(maps.shape)}; expected one an image, {[len(clean), *clean.shape[2:]]}."
        )

    def objective(wanted: Tensor, classes: Tensor) -> Objective:
        def see(batch: Tensor, rows: Tensor) -> Sight:
            lead = margin(model(batch), classes[rows])
            far = 1 - likeness(soft_map(model, batch, classes[rows]), wanted[rows])
            return Sight((1 - lead).clamp(min=0), far, lead.detach() > 0)

        return see

    with torch.inference_mode(False), torch.enable_grad():
        clean, wanted = clean.clone(), maps.detach().clone().to(clean)
        classes = check_labels(labels, clean)
        length = chunk_length(clean.shape[1:], COST)
        parts = zip(*(each.split(length) for each in (clean, classes, wanted)), strict=True)
        return torch.cat(
            [
                descend(objective(shown, of), part, effort, weight=10.0, trace=trace)
                for part, of, shown in parts
            ]
        )


def soft_map(
    model: nn.Module, images: Tensor, labels: Tensor, softened: SoftRelu | None = None
) -> Tensor:
    """Return gradient times input of the softened network, with a gradient [B, H, W].

    At the network's input, after a known normalisation, as LRP's maps are.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K].
        images: The images.
        labels: Explained classes [B].
        softened: The mode under which the network runs, a fresh :class:`SoftRelu` by default.
    """
    pixels = images if images.requires_grad else images.detach().requires_grad_()
    with SoftRelu() if softened is None else softened:
        logits = model(pixels)
    explained = logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(explained, pixels, create_graph=True)
    mean = model.mean if isinstance(model, NormalizedModel) else 0.0
    return (gradient * (pixels - mean)).sum(1)


def likeness(ones: Tensor, others: Tensor) -> Tensor:
    """Return the cosine of each map with another [B], both [B, H, W]."""
    return functional.cosine_similarity(ones.flatten(1), others.flatten(1), dim=1)
