"""Attacks by the gradient of the guard: pass it, raise a false alarm, mislead its restoration.

The attacker knows the model and the guard with all that its calibration holds, and may know its
key (white box) or not (grey box).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrpguard.attacks.adaptive.descent import (
    Effort,
    Manner,
    Objective,
    Sight,
    Trace,
    check_manner,
    chunk_length,
    descend,
)
from lrpguard.attacks.adaptive.looks import LOOKED_AT, Noise, fresh_noise, keyed_noise, look
from lrpguard.attacks.adaptive.surrogate import Surrogate
from lrpguard.attacks.margins import margin
from lrpguard.attacks.pgd import check_labels
from lrpguard.guard import Guard
from lrpguard.inputs import check_eval, check_images

CONFIDENCE = 1.0
"""Logits by which the wanted class has to lead before the model counts as won over."""

ALARM = 2.0
"""Roots of the threshold that a false alarm is driven to: beyond it there is nothing to gain."""


def guard_aware_pgd(
    guard: Guard,
    images: Tensor,
    labels: Tensor,
    effort: Effort,
    *,
    manner: Manner = "joint",
    weight: float = 1.0,
    key: bytes | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Fool the model and pass the guard.

    One wrong class is sought on all that the guard looks at, that of the largest mean logit. The
    model's loss is by how many logits it lacks a lead on the request itself; the guard's by how
    much the anomaly's root exceeds a median clean image's, as the detector would see the request
    if it were taken for that class.

    Args:
        guard: The guard, calibrated with the ``combined`` detector. Its key is not looked at.
        images: Clean images in [0, 1], [B, C, H, W], best of whole 8-bit levels.
        labels: Classes they are led away from, integers [B].
        effort: How far and how long. The result of an image depends on its place in the batch.
        manner: ``"joint"``, ``"selective"`` or ``"orthogonal"``.
        weight: Weight of the guard's loss where that is ``joint``; 0 attacks the model alone.
        key: The guard's secret key, or its seed's, where the attacker has it: each iterate then
            gets the very noise that the guard will give it. None draws noise afresh.
        trace: Where to note how the search went.

    Returns:
        Images of whole 8-bit levels [B, C, H, W].

    Raises:
        InputError: The images are not what lrpguard takes.
        TrainingModeError: The model is in train mode.
        NotCalibratedError: The guard has no calibration.
        ConfigurationError: Another argument is out of its range, or the detector is another.

    Source:
        Carlini and Wagner 2017, "Adversarial examples are not easily detected"; Tramèr et al. 2020,
        "On adaptive attacks to adversarial example defenses"; Athalye et al. 2018 (BPDA, EOT).
    """
    check_manner(manner, weight)
    surrogate = Surrogate.of(guard)
    blind = manner == "joint" and weight == 0

    def objective(noise: Noise, classes: Tensor) -> Objective:
        def see(batch: Tensor, rows: Tensor) -> Sight:
            of = classes[rows]
            if blind:
                own = guard.model(batch).double()
                model, won = misled(own, of, best_wrong(own, of))
                return Sight(model, torch.zeros_like(model), won)
            looks = look(guard.model, batch, noise, guard.smoothing.sigma)
            wrong = best_wrong(looks.mean(), of)
            model, won = misled(looks.own, of, wrong)
            found = surrogate.anomaly(batch, looks, wrong)
            return Sight(model, surrogate.excess(found).to(model.device), won)

        return see

    return in_chunks(
        guard, images, labels, effort, objective, manner=manner, weight=weight, key=key, trace=trace
    )


def false_alarm(
    guard: Guard, images: Tensor, labels: Tensor, effort: Effort, *, trace: Trace | None = None
) -> Tensor:
    """Make the guard flag an image that the model still gets right: harm to the service.

    Args:
        guard: As for :func:`guard_aware_pgd`.
        images: Clean images in [0, 1], [B, C, H, W].
        labels: Classes that the model shall still say, integers [B].
        effort: How far and how long.
        trace: Where to note how the search went.

    Returns:
        Images of whole 8-bit levels [B, C, H, W].

    Raises:
        LrpGuardError: As for :func:`guard_aware_pgd`.
    """
    surrogate = Surrogate.of(guard)
    wanted = ALARM * surrogate.threshold**0.5

    def objective(noise: Noise, classes: Tensor) -> Objective:
        def see(batch: Tensor, rows: Tensor) -> Sight:
            of = classes[rows]
            looks = look(guard.model, batch, noise, guard.smoothing.sigma)
            lead = margin(looks.own, of)
            found = surrogate.anomaly(batch, looks, of)
            missing = (wanted - found.clamp(min=1e-6).sqrt()).clamp(min=0)
            return Sight((CONFIDENCE - lead).clamp(min=0), missing.to(lead.device), lead > 0)

        return see

    return in_chunks(guard, images, labels, effort, objective, trace=trace)


def mislead_restoration(
    guard: Guard, images: Tensor, labels: Tensor, effort: Effort, *, trace: Trace | None = None
) -> Tensor:
    """Turn the restoration against an image that the model gets right.

    The request itself keeps its class, and all noisy copies and denoised views are led to one
    wrong class: flagged it shall be, and "restored" to that.

    Args:
        guard: As for :func:`guard_aware_pgd`.
        images: Clean images in [0, 1], [B, C, H, W].
        labels: Their classes, integers [B].
        effort: How far and how long.
        trace: Where to note how the search went.

    Returns:
        Images of whole 8-bit levels [B, C, H, W].

    Raises:
        LrpGuardError: As for :func:`guard_aware_pgd`.
    """
    Surrogate.of(guard)  # refuses a guard that restores in another way

    def objective(noise: Noise, classes: Tensor) -> Objective:
        def see(batch: Tensor, rows: Tensor) -> Sight:
            of = classes[rows]
            looks = look(guard.model, batch, noise, guard.smoothing.sigma)
            beside = torch.cat([looks.noisy.mean(0, keepdim=True), looks.views])
            wrong = best_wrong(beside.mean(0), of)
            lead = margin(looks.own, of)
            short = torch.stack(
                [(CONFIDENCE - margin(view, wrong)).clamp(min=0) for view in beside]
            )
            return Sight((CONFIDENCE - lead).clamp(min=0), short.mean(0), lead > 0)

        return see

    return in_chunks(guard, images, labels, effort, objective, trace=trace)


def best_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the class of the largest logit but the label [B]."""
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)


def misled(own: Tensor, labels: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the wrong class lacks of its lead, >= 0, and whether the label is lost [B]."""
    missing = (CONFIDENCE - margin(own, wrong)).clamp(min=0)
    return missing, own.detach().argmax(1) != labels


def in_chunks(
    guard: Guard,
    images: Tensor,
    labels: Tensor,
    effort: Effort,
    objective: Callable[[Noise, Tensor], Objective],
    *,
    manner: Manner = "joint",
    weight: float = 1.0,
    key: bytes | None = None,
    trace: Trace | None = None,
    beside: int = LOOKED_AT,
) -> Tensor:
    """Attack chunk after chunk, whatever the caller's grad mode.

    Args:
        guard: Whom the images are to meet.
        images: Clean images in [0, 1], [B, C, H, W].
        labels: Classes of the objective [B].
        effort: How far and how long.
        objective: From noise and a chunk's classes to what is sought of it.
        manner: How the two losses are weighed against one another.
        weight: Weight of the guard's loss where that is ``joint``.
        key: The guard's key where it is known; every copy is the guard's own then.
        trace: Where to note how the search went.
        beside: What is looked at of an image beside itself and its copies, for the chunks' size.
    """
    check_eval(guard.model)
    copies = effort.copies if key is None else guard.smoothing.n
    noise = fresh_noise(copies, effort.seed) if key is None else keyed_noise(copies, key)
    with torch.inference_mode(False), torch.enable_grad():
        clean = check_images(images).clone()
        classes = check_labels(labels, clean)
        length = chunk_length(clean.shape[1:], 1 + copies + beside)
        return torch.cat(
            [
                descend(
                    objective(noise, of), part, effort, manner=manner, weight=weight, trace=trace
                )
                for part, of in zip(clean.split(length), classes.split(length), strict=True)
            ]
        )
