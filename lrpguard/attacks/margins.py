"""What the attacks that seek a small change share: the margin, and gradients through rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from lrpguard.attacks.pgd import quantize

LEAST_MARGIN = 1e-3
"""Logits by which a changed label has to lead, so that rounding of sums cannot undo it."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the label's logit leads the best other one, [B]; negative is fooled.

    Args:
        logits: [B, K], K >= 2.
        labels: Class of each image [B].
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own - others.amax(1)


def rounded(images: Tensor) -> Tensor:
    """Return the images in 8 bits, with the gradient of the identity.

    An attack that seeks the smallest change has to see what the server will see: rounding
    afterwards would undo changes of less than half a level.

    Source: Bengio, Léonard, Courville 2013 (the straight-through estimator).
    """
    return images + (quantize(images) - images).detach()
