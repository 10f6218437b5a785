"""DeepFool, for whole batches, and among the likely classes alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrpguard.attacks.margins import LEAST_MARGIN, margin
from lrpguard.attacks.pgd import check_labels, quantize
from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_eval, check_images

OVERSHOOT = 0.02
"""Share by which the change goes beyond the boundary of the linearised model."""


def deepfool(
    model: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 50, candidates: int = 10
) -> Tensor:
    """Cross the nearest boundary of the linearised model, again and again, until it is crossed.

    The model is linearised at, and judged by, the image in 8 bits. An image that is misled takes
    no more part.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode.
        images: Clean images [B, C, H, W] in [0, 1], on the model's device.
        labels: Class that each image is led away from, integers [B].
        steps: Most linearisations, >= 1.
        candidates: How many classes, those of highest logits at the clean image and the label
            among them, are considered; at least 2.

    Returns:
        Images [B, C, H, W] of 8-bit levels; an image that was never misled as far as it came.

    Raises:
        InputError: The images are not what lrpguard takes.
        TrainingModeError: The model is in train mode.
        ConfigurationError: Another argument is out of its range.

    Source:
        Moosavi-Dezfooli, Fawzi, Frossard 2016, "DeepFool", algorithm 2.
    """
    check_eval(model)
    if steps < 1 or candidates < 2:
        raise ConfigurationError(
            f"steps is {steps} and candidates is {candidates}; expected at least 1 and 2."
        )
    with torch.inference_mode(False), torch.enable_grad():
        clean = check_images(images).clone()
        classes = check_labels(labels, clean)
        change = torch.zeros_like(clean)
        result = quantize(clean)
        active = torch.arange(len(clean), device=clean.device)
        others: Tensor | None = None
        for _ in range(steps + 1):
            point = result[active].requires_grad_()
            logits = model(point)
            others = _others(logits, classes, candidates) if others is None else others
            kept = margin(logits.detach(), classes[active]) > -LEAST_MARGIN
            active = active[kept]
            if len(active) == 0:
                break
            step = _nearest(logits, point, classes, others, active, kept)
            change[active] += step
            moved = clean[active] + (1 + OVERSHOOT) * change[active]
            result[active] = quantize(moved.clamp(0, 1))
        return result


def _others(logits: Tensor, labels: Tensor, candidates: int) -> Tensor:
    """Return the likeliest classes but the label, [B, candidates - 1] or all of them."""
    count = min(candidates, logits.shape[1]) - 1
    return logits.detach().scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices


def _nearest(
    logits: Tensor, point: Tensor, labels: Tensor, others: Tensor, active: Tensor, kept: Tensor
) -> Tensor:
    """Return the smallest change that crosses a boundary of the linearised model.

    Args:
        logits: Logits of ``point``, with their graph.
        point: The images that were active before this pass.
        labels: Classes of all images.
        others: Considered classes of all images.
        active: Which of all images are active now.
        kept: Which of ``point`` are active now.
    """
    rows = kept.nonzero().flatten()
    own = logits[rows, labels[active]]
    count = others.shape[1]
    shortest = torch.full_like(own.detach(), torch.inf)
    best = torch.zeros_like(point[kept])
    for k in range(count):
        gap = logits[rows, others[active, k]] - own
        gradient = torch.autograd.grad(gap.sum(), point, retain_graph=k + 1 < count)[0][kept]
        square = gradient.flatten(1).square().sum(1).clamp(min=torch.finfo(gap.dtype).tiny)
        missing = gap.detach().abs() + LEAST_MARGIN
        distance = missing / square.sqrt()
        step = (missing / square).view(-1, 1, 1, 1) * gradient
        nearer = distance < shortest
        best = torch.where(nearer.view(-1, 1, 1, 1), step, best)
        shortest = torch.where(nearer, distance, shortest)
    return best
