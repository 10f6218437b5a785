"""Projected gradient descent, the attack of the paper, and rounding to 8 bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_eval, check_images

STEP_FACTOR = 2.5
"""Default of step_size * steps / eps: far enough to cross the ball and come back."""

_LEVELS = 255


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float | None = None,
    norm: Literal["linf"] = "linf",
    random_start: bool = True,
    seed: int = 0,
) -> Tensor:
    """Attack images by untargeted projected gradient ascent on the cross-entropy.

    Nothing of the model changes: parameters, their ``grad`` and ``requires_grad``, the mode.
    It works when called under ``no_grad`` or ``inference_mode``. The whole number of steps is
    taken, also after the label has changed, so the result is as far beyond the boundary as the
    steps bring it.

    The default step is ``2.5 * eps / steps``, as Madry et al. take it. Foolbox 3 takes
    ``eps / 30`` for 40 steps by default, with which 10 steps would cover a third of the ball.
    Foolbox 1 and 2, which the paper used, stop at the first image that changes the label, and by
    default search for the smallest eps that does; this attack does neither.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode.
        images: Clean images [B, C, H, W] in [0, 1], on the model's device.
        labels: Class that each image is led away from, integers [B].
        eps: Largest change of a pixel, in [0, 1] (5/255 in the paper).
        steps: Gradient steps, at least 1 (10 in the paper).
        step_size: Change of a pixel in one step; ``2.5 * eps / steps`` by default.
        norm: The ball's norm; only ``"linf"``.
        random_start: Start from uniform noise in the ball, instead of the image itself.
        seed: Seed of that noise. The noise depends on it and on the shape of ``images``.

    Returns:
        Adversarial images [B, C, H, W] in [0, 1], within eps of ``images``.

    Raises:
        InputError: The images are not what lrpguard takes.
        TrainingModeError: The model is in train mode, where it would change by being run.
        ConfigurationError: Another argument is out of its range.

    Source:
        Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks",
        section 2.1; Raulf et al. 2021, section 3.2 (i).
    """
    check_eval(model)
    step_size = STEP_FACTOR * eps / max(steps, 1) if step_size is None else step_size
    _check_settings(eps=eps, steps=steps, step_size=step_size, norm=norm)
    with torch.inference_mode(False), torch.enable_grad():
        clean = check_images(images).clone()
        targets = check_labels(labels, clean)
        low, high = (clean - eps).clamp(min=0), (clean + eps).clamp(max=1)
        adversarial = clean
        if random_start:
            adversarial = torch.clamp(clean + _uniform(clean, eps, seed), low, high)
        for _ in range(steps):
            gradient = _loss_gradient(model, adversarial, targets)
            adversarial = torch.clamp(adversarial + step_size * gradient.sign(), low, high)
        return adversarial


def quantize(images: Tensor) -> Tensor:
    """Round pixels to the 256 levels of an 8-bit file, which is what a server receives.

    Clean and adversarial images go through the same rounding, or a detector may tell them
    apart by it alone. Of 8-bit images attacked with an eps of whole levels (k/255), the result
    is still in the ball.

    Args:
        images: Pixels in [0, 1], any shape.

    Returns:
        Pixels k/255, k in 0 ... 255, of the same shape, in [0, 1].
    """
    return images.mul(_LEVELS).round().clamp(0, _LEVELS).div(_LEVELS)


def check_labels(labels: Tensor, images: Tensor) -> Tensor:
    """Return the labels as int64 [B] on the device of the images.

    Raises:
        ConfigurationError: They are not one integer an image.
    """
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ConfigurationError(
            f"labels are {labels.dtype} {list(labels.shape)}; expected one integer class an "
            f"image, [{len(images)}]."
        )
    return labels.detach().to(images.device, torch.int64, copy=True)


def _check_settings(*, eps: float, steps: int, step_size: float, norm: str) -> None:
    if norm != "linf":
        raise ConfigurationError(f"norm is {norm!r}; this attack knows 'linf' alone.")
    if not 0 <= eps <= 1:
        raise ConfigurationError(
            f"eps is {eps}; expected a change of pixels in [0, 1], e.g. 5/255."
        )
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; expected at least 1.")
    if not 0 <= step_size <= 1:
        raise ConfigurationError(f"step_size is {step_size}; expected a value in [0, 1].")


def _uniform(images: Tensor, eps: float, seed: int) -> Tensor:
    """Return noise in [-eps, eps], drawn on the CPU: the same for every device."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(images.shape, generator=generator).mul_(2 * eps).sub_(eps)
    return noise.to(images.device, images.dtype)


def _loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy at the images alone, [B, C, H, W]."""
    images = images.detach().requires_grad_()
    # The sum, not the mean: an image's gradient does not depend on the batch it is in.
    loss = functional.cross_entropy(model(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]
