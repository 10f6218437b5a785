"""Logits of a clean image of another class: an attack that asks nothing of the detector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_eval, check_images

BATCH = 16
"""Donors run through the model together."""


def feature_matching(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    donors: Tensor,
    effort: Effort,
    *,
    trace: Trace | None = None,
) -> Tensor:
    """Give each image the logits of a clean image of another class, within an L-infinity ball.

    It asks nothing of the detector: what reads the logits alone sees a clean image. Led to are the
    logits of the donor that is nearest among those that the model takes for the image's best wrong
    class, with a margin not below the median donor's; of all donors of other classes than the
    image's where that class has none.

    Args:
        model: From images [B, C, H, W] in [0, 1] to logits [B, K], in eval mode.
        images: Clean images in [0, 1], [B, C, H, W], best of whole 8-bit levels.
        labels: Classes they are led away from, integers [B].
        donors: Clean images [D, C, H, W] in [0, 1], of at least two predicted classes.
        effort: How far and how long; there are no copies.
        trace: Where to note how the search went.

    Returns:
        Images of whole 8-bit levels [B, C, H, W].

    Raises:
        InputError: The images are not what lrpguard takes.
        TrainingModeError: The model is in train mode.
        ConfigurationError: No donor is of another class.

    Source:
        Sabour et al. 2016 (features); Tramèr et al. 2020, section 5.1 (logits, against Roth,
        Kilcher, Hofmann 2019).
    """
    check_eval(model)
    with torch.inference_mode(False), torch.no_grad():
        wanted = torch.cat([model(part) for part in check_images(donors).split(BATCH)])

    def objective(target: Tensor, classes: Tensor) -> Objective:
        def see(batch: Tensor, rows: Tensor) -> Sight:
            logits = model(batch)
            distance = (logits - target[rows]).square().mean(1)
            return Sight(distance, distance.detach(), logits.detach().argmax(1) != classes[rows])

        return see

    with torch.inference_mode(False), torch.enable_grad():
        clean = check_images(images).clone()
        classes = check_labels(labels, clean)
        length = chunk_length(clean.shape[1:], 1)
        attacked = []
        for part, of in zip(clean.split(length), classes.split(length), strict=True):
            with torch.no_grad():
                target = _nearest_donor(model(part), of, wanted)
            attacked.append(descend(objective(target, of), part, effort, weight=0, trace=trace))
        return torch.cat(attacked)


def _nearest_donor(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Return the logits that each image is led to [B, K]."""
    classes = wanted.argmax(1)
    led = margin(wanted, classes)
    others = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    best = (classes == others[:, None]) & (led >= led.median())
    allowed = torch.where(best.any(1, keepdim=True), best, classes != labels[:, None])
    if not bool(allowed.any(1).all()):
        raise ConfigurationError(
            "no donor is of another class than the image attacked; give donors of at least two."
        )
    distance = torch.cdist(logits, wanted).masked_fill(~allowed, torch.inf)
    return wanted[distance.argmin(1)]
