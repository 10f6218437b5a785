"""Projected gradient descent, the attack of the paper, and rounding to 8 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_eval, check_images

STEP_FACTOR = 2.5
"""Default of step_size * steps / eps: far enough to cross the ball and come back."""

Norm = Literal["linf", "l2"]
"""Norms whose balls the attack knows."""

_LEVELS = 255


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float | None = None,
    norm: Norm = "linf",
    targeted: bool = False,
    random_start: bool = True,
    seed: int = 0,
) -> Tensor:
    """Attack images by projected gradient ascent on the cross-entropy.

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
        eps: Radius of the ball. In ``"linf"`` the largest change of a pixel, in [0, 1] (5/255 in
            the paper); in ``"l2"`` the length of the change of the whole image.
        steps: Gradient steps, at least 1 (10 in the paper).
        step_size: Length of one step in that norm; ``2.5 * eps / steps`` by default.
        norm: The ball's norm. In ``"l2"`` a step goes along the gradient, not its sign.
        targeted: Lead each image towards its label instead.
        random_start: Start from noise in the ball, instead of the image itself: uniform in
            ``"linf"``, of random direction and length in ``"l2"``.
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
        classes = check_labels(labels, clean)
        ball = _Ball(clean, eps, norm)
        adversarial = ball.project(clean + ball.noise(seed)) if random_start else clean
        step = -step_size if targeted else step_size
        for _ in range(steps):
            gradient = loss_gradient(model, adversarial, classes)
            adversarial = ball.project(adversarial + step * ball.direction(gradient))
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
    if norm not in get_args(Norm):
        raise ConfigurationError(f"norm is {norm!r}; this attack knows {get_args(Norm)}.")
    if not 0 <= eps <= (1 if norm == "linf" else math.inf):
        raise ConfigurationError(
            f"eps is {eps}; expected a change of pixels in [0, 1], e.g. 5/255, or in l2 a length."
        )
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; expected at least 1.")
    if not 0 <= step_size <= (1 if norm == "linf" else math.inf):
        raise ConfigurationError(f"step_size is {step_size}; expected a value in [0, 1].")


@dataclass(frozen=True)
class _Ball:
    """The images that an attack may reach: around each clean one, in [0, 1].

    Attributes:
        clean: The centres [B, C, H, W].
        eps: Radius.
        norm: Which norm.
    """

    clean: Tensor
    eps: float
    norm: Norm

    def noise(self, seed: int) -> Tensor:
        """Return a start within the ball, drawn on the CPU: the same for every device."""
        generator = torch.Generator().manual_seed(seed)
        shape = self.clean.shape
        if self.norm == "linf":
            noise = torch.rand(shape, generator=generator).mul_(2 * self.eps).sub_(self.eps)
        else:
            noise = self.direction(torch.randn(shape, generator=generator))
            noise *= self.eps * torch.rand(len(noise), 1, 1, 1, generator=generator)
        return noise.to(self.clean.device, self.clean.dtype)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the steepest change of length 1 in this norm."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / lengths(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)

    def project(self, images: Tensor) -> Tensor:
        """Return the images brought back into the ball and into [0, 1]."""
        if self.norm == "linf":
            low, high = (self.clean - self.eps).clamp(min=0), (self.clean + self.eps).clamp(max=1)
            return torch.clamp(images, low, high)
        change = images - self.clean
        tiny = torch.finfo(change.dtype).tiny
        return (
            self.clean + change * (self.eps / lengths(change).clamp(min=tiny)).clamp(max=1)
        ).clamp(0, 1)


def lengths(changes: Tensor) -> Tensor:
    """Return the Euclidean length of each change [B, C, H, W], as [B, 1, 1, 1]."""
    norms: Tensor = torch.linalg.vector_norm(changes, dim=(1, 2, 3), keepdim=True)
    return norms


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy at the images alone, [B, C, H, W]."""
    images = images.detach().requires_grad_()
    # The sum, not the mean: an image's gradient does not depend on the batch it is in.
    loss = functional.cross_entropy(model(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]
