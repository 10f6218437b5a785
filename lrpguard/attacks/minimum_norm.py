"""Carlini and Wagner's L2 attack and its elastic-net form, with a search for the constant.

Both minimise ``distance + c * max(margin + confidence, 0)``; c is searched for each image, so
that the change is small where a small one does. The model sees each iterate in 8 bits
(:func:`lrpguard.attacks.margins.rounded`): what is returned fools it as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lrpguard.attacks.margins import LEAST_MARGIN, margin, rounded
from lrpguard.attacks.pgd import check_labels, quantize
from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_eval, check_images

_CONSTANT_GROWTH = 10.0
"""Factor of the constant while no image was found."""


def carlini_wagner(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    confidence: float = 0.0,
    steps: int = 50,
    searches: int = 4,
    learning_rate: float = 0.01,
    constant: float = 0.1,
) -> Tensor:
    """Seek the smallest change, in the Euclidean norm, that leads away from the label.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode.
        images: Clean images [B, C, H, W] in [0, 1], on the model's device.
        labels: Class that each image is led away from, integers [B].
        confidence: Logits by which another class has to lead, >= 0.
        steps: Steps of Adam for each constant, >= 1.
        searches: Constants tried for each image, >= 1.
        learning_rate: Adam's.
        constant: First constant.

    Returns:
        Images [B, C, H, W] of 8-bit levels: the nearest that reaches the confidence; where none
        does, the one of most negative margin.

    Raises:
        InputError: The images are not what lrpguard takes.
        TrainingModeError: The model is in train mode.
        ConfigurationError: Another argument is out of its range.

    Source:
        Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks",
        section VI; the search over c is that of section V-C. Pixels are held in [0, 1] by
        projection ("projected gradient descent", section V-B) in place of the hyperbolic tangent,
        whose gradient is next to nothing at pixels of 0 and 1.
    """

    def optimize(found: _Found, constants: Tensor) -> None:
        variable = found.clean.clone().requires_grad_()
        adam = torch.optim.Adam([variable], lr=learning_rate)
        for step in range(steps):
            adam.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            candidates = rounded(variable)
            lead = margin(model(candidates), found.labels)
            distance = (candidates - found.clean).square().flatten(1).sum(1)
            found.see(candidates, distance, lead)
            loss = (distance + constants * (lead + confidence).clamp(min=0)).sum()
            variable.grad = torch.autograd.grad(loss, variable)[0]
            adam.step()
            with torch.no_grad():
                variable.clamp_(0, 1)

    _check(steps=steps, searches=searches, confidence=confidence)
    return _search(model, images, labels, optimize, confidence, searches, constant)


def elastic_net(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    confidence: float = 0.0,
    beta: float = 0.01,
    steps: int = 50,
    searches: int = 4,
    learning_rate: float = 0.01,
    constant: float = 1.0,
) -> Tensor:
    """Seek the smallest change in ``L2 squared + beta L1``, which touches few pixels.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode.
        images: Clean images [B, C, H, W] in [0, 1], on the model's device.
        labels: Class that each image is led away from, integers [B].
        confidence: Logits by which another class has to lead, >= 0.
        beta: Weight of the L1 norm; changes of a pixel below it are undone.
        steps: Steps for each constant, >= 1.
        searches: Constants tried for each image, >= 1.
        learning_rate: First step size; it falls with the square root of what is left.
        constant: First constant.

    Returns:
        Images as those of :func:`carlini_wagner`.

    Raises:
        InputError: The images are not what lrpguard takes.
        TrainingModeError: The model is in train mode.
        ConfigurationError: Another argument is out of its range.

    Source:
        Chen et al. 2018, "EAD: elastic-net attacks to deep neural networks", algorithm 1. The
        best image is chosen among the extrapolated iterates, clipped to [0, 1], which saves a
        forward pass a step.
    """

    def optimize(found: _Found, constants: Tensor) -> None:
        clean = found.clean
        before = current = clean
        for step in range(steps):
            point = current.detach().clamp(0, 1).requires_grad_()
            candidates = rounded(point)
            lead = margin(model(candidates), found.labels)
            change = candidates - clean
            square = change.square().flatten(1).sum(1)
            found.see(candidates, square + beta * change.abs().flatten(1).sum(1), lead)
            loss = (square + constants * (lead + confidence).clamp(min=0)).sum()
            gradient = torch.autograd.grad(loss, point)[0]
            size = learning_rate * (1 - step / steps) ** 0.5
            shrunk = _shrink(point.detach() - size * gradient, clean, beta)
            current = shrunk + step / (step + 3) * (shrunk - before)
            before = shrunk

    _check(steps=steps, searches=searches, confidence=confidence)
    return _search(model, images, labels, optimize, confidence, searches, constant)


class _Found:
    """The best image seen of each, over all constants.

    Args:
        clean: Clean images [B, C, H, W].
        labels: Their classes [B].
        confidence: Margin to be reached, as a positive number.
    """

    def __init__(self, clean: Tensor, labels: Tensor, confidence: float) -> None:
        self.clean = clean
        self.labels = labels
        self.images = clean.clone()
        self._target = -max(confidence, LEAST_MARGIN)
        self._distance = clean.new_full((len(clean),), torch.inf)
        self._lead = clean.new_full((len(clean),), torch.inf)
        self.reached = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)

    def see(self, candidates: Tensor, distance: Tensor, lead: Tensor) -> None:
        """Keep those candidates that are nearer, or that come nearer to the margin."""
        distance, lead = distance.detach(), lead.detach()
        reaches = lead <= self._target
        never = ~torch.isfinite(self._distance)
        better = torch.where(reaches, distance < self._distance, never & (lead < self._lead))
        self._distance = torch.where(better & reaches, distance, self._distance)
        self._lead = torch.where(better, lead, self._lead)
        self.images = torch.where(
            better.view(-1, 1, 1, 1), quantize(candidates.detach()), self.images
        )
        self.reached |= reaches


def _search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimize: Callable[[_Found, Tensor], None],
    confidence: float,
    searches: int,
    constant: float,
) -> Tensor:
    """Run an optimisation for several constants, halving the interval of each image's."""
    check_eval(model)
    with torch.inference_mode(False), torch.enable_grad():
        clean = check_images(images).clone()
        found = _Found(clean, check_labels(labels, clean), confidence)
        constants = clean.new_full((len(clean),), constant)
        low, high = torch.zeros_like(constants), torch.full_like(constants, torch.inf)
        for _ in range(searches):
            found.reached.zero_()
            optimize(found, constants)
            high = torch.where(found.reached, torch.minimum(high, constants), high)
            low = torch.where(found.reached, low, torch.maximum(low, constants))
            bounded = torch.isfinite(high)
            middle = torch.where(low > 0, (low * high).sqrt(), high / _CONSTANT_GROWTH)
            constants = torch.where(bounded, middle, low * _CONSTANT_GROWTH)
        return found.images


def _shrink(images: Tensor, clean: Tensor, threshold: float) -> Tensor:
    """Move each pixel towards the clean one by ``threshold``, not beyond; clip to [0, 1]."""
    change = images - clean
    return (clean + change.sign() * (change.abs() - threshold).clamp(min=0)).clamp(0, 1)


def _check(*, steps: int, searches: int, confidence: float) -> None:
    if steps < 1 or searches < 1:
        raise ConfigurationError(
            f"steps is {steps} and searches is {searches}; expected at least 1 of each."
        )
    if confidence < 0:
        raise ConfigurationError(f"confidence is {confidence}; expected logits >= 0.")
