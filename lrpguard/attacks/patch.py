"""A patch: a small square of an image that the attacker may paint at will."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrpguard.attacks.pgd import check_labels, loss_gradient
from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_eval, check_images

PATCH_AREA = 25 / 1024
"""Share of the image that the patch covers by default: 5 x 5 of 32 x 32."""


def patch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    area: float = PATCH_AREA,
    step_size: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """Paint a square into each image, for that image alone, that leads away from the label.

    The square lies where the gradient of the cross-entropy at the clean image has the largest
    sum of absolute values. Its pixels start at random and follow the sign of the gradient, in
    [0, 1], for the whole number of steps.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode.
        images: Clean images [B, C, H, W] in [0, 1], on the model's device.
        labels: Class that each image is led away from, integers [B].
        steps: Gradient steps, >= 1.
        area: Share of the image that the patch may cover, in (0, 1].
        step_size: Change of a pixel in one step.
        seed: Seed of the start, which depends on it and on the shape of ``images``.

    Raises:
        InputError: The images are not what lrpguard takes.
        TrainingModeError: The model is in train mode.
        ConfigurationError: Another argument is out of its range.

    Source:
        After Brown et al. 2017, "Adversarial patch", and Karmon, Zoran, Goldberg 2018, "LaVAN",
        whose patches belong to one image and place.
    """
    check_eval(model)
    if steps < 1 or not 0 < area <= 1:
        raise ConfigurationError(
            f"steps is {steps} and area is {area}; expected at least 1 step, and a share in (0, 1]."
        )
    with torch.inference_mode(False), torch.enable_grad():
        clean = check_images(images).clone()
        classes = check_labels(labels, clean)
        inside = _squares(loss_gradient(model, clean, classes), patch_side(clean, area))
        start = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed))
        painted = torch.where(inside, start.to(clean), clean)
        for _ in range(steps):
            gradient = loss_gradient(model, painted, classes)
            moved = (painted + step_size * gradient.sign()).clamp(0, 1)
            painted = torch.where(inside, moved, clean)
        return painted


def patch_side(images: Tensor, area: float) -> int:
    """Return the side of the square in pixels, at least 1."""
    height, width = images.shape[2:]
    return max(1, min(height, width, math.isqrt(round(area * height * width))))


def _squares(gradient: Tensor, side: int) -> Tensor:
    """Return where the square of the largest gradient lies, bool [B, 1, H, W]."""
    weight = gradient.abs().sum(1, keepdim=True)
    sums = nn.functional.avg_pool2d(weight, side, stride=1)
    height, width = gradient.shape[2:]
    best = sums.flatten(1).argmax(1)
    columns = sums.shape[3]
    top, left = (best // columns).view(-1, 1, 1, 1), (best % columns).view(-1, 1, 1, 1)
    rows = torch.arange(height, device=gradient.device).view(1, 1, -1, 1)
    cells = torch.arange(width, device=gradient.device).view(1, 1, 1, -1)
    return (rows >= top) & (rows < top + side) & (cells >= left) & (cells < left + side)
