"""Restoration the paper's way: whiten the pixels whose relevance varies most.

Source: Raulf et al. 2021, section 3.2, step (iv).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.noise import gaussian_copies, image_digest
from lrpguard.smoothing import Smoothing, clean_logits, smooth

PAPER_PIXELS = 1000
"""Pixels the paper whitens at a time, on images of 224 x 224: 2 % of them."""

UNKNOWN = -1
"""Restored label where no label was accepted."""

WHITE = 1.0


@dataclass(frozen=True)
class Whitening:
    """How many pixels turn white in a round, which, and for how many rounds.

    Args:
        fraction: Share of the image's pixels in each round, in (0, 1].
        pixels: Absolute count in each round, in place of the fraction; the paper's is 1000.
        max_rounds: Rounds after which the label is given up as unknown.
        ranking: ``"variance"`` takes the pixels of highest relevance variance; ``"random"``
            is the control that takes any.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    fraction: float = 0.02
    pixels: int | None = None
    max_rounds: int = 10
    ranking: Literal["variance", "random"] = "variance"

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigurationError(f"fraction is {self.fraction}; it must lie in (0, 1].")
        if self.pixels is not None and self.pixels < 1:
            raise ConfigurationError(f"pixels is {self.pixels}; whiten at least 1 a round.")
        if self.max_rounds < 1:
            raise ConfigurationError(f"max_rounds is {self.max_rounds}; allow at least 1.")
        if self.ranking not in ("variance", "random"):
            raise ConfigurationError(
                f"ranking is {self.ranking!r}; there are 'variance' and 'random'."
            )

    def count(self, height: int, width: int) -> int:
        """Return the pixels whitened in one round of an H x W image, at least 1."""
        wanted = self.pixels if self.pixels is not None else round(self.fraction * height * width)
        return min(max(wanted, 1), height * width)


@dataclass(frozen=True)
class Restoration:
    """What became of flagged requests.

    Attributes:
        label: Restored label, ``UNKNOWN`` where none was accepted [B].
        logits: Logits behind it: of the changed image, where pixels were changed [B, K].
        confidence: Probability given to the restored label, 0 where unknown, in [0, 1] [B].
        changed_pixels: Pixels that were turned white, bool [B, H, W].
        rounds: Rounds of whitening taken [B].
    """

    label: Tensor
    logits: Tensor
    confidence: Tensor
    changed_pixels: Tensor
    rounds: Tensor


def whiten(
    model: nn.Module,
    images: Tensor,
    evidence: Evidence,
    *,
    whitening: Whitening,
    smoothing: Smoothing,
    key: bytes,
    chunk: int,
) -> Restoration:
    """Whiten the most varying pixels, explain anew, repeat until the label changes.

    All images are worked on together; those whose label has changed drop out. Pixels
    already white from an earlier round are not counted again.

    Args:
        model: Checked module.
        images: Checked images on the model's device [B, C, H, W].
        evidence: Their evidence.
        whitening: How many pixels, which, how long.
        smoothing: How the changed image is explained again.
        key: Noise key.
        chunk: Largest number of copies in one pass.

    Returns:
        Restoration of each image.
    """
    height, width = images.shape[2:]
    current = images.clone()
    logits = evidence.logits.clone()
    changed = torch.zeros(len(images), height * width, dtype=torch.bool, device=images.device)
    rounds = torch.zeros(len(images), dtype=torch.long, device=images.device)
    active = torch.arange(len(images), device=images.device)
    ranks = _ranks(images, evidence, whitening, key)
    for number in range(1, whitening.max_rounds + 1):
        if len(active) == 0:
            break
        ranks = ranks.masked_fill(changed[active], -torch.inf)
        top = ranks.topk(whitening.count(height, width), dim=1).indices
        changed[active] = changed[active].scatter(1, top, True)
        current[active] = current[active].masked_fill(
            changed[active].view(-1, 1, height, width), WHITE
        )
        logits[active] = clean_logits(model, current[active])
        rounds[active] = number
        finite = torch.isfinite(logits[active]).all(1)  # a model that breaks restores nothing
        stays = finite & (logits[active].argmax(1) == evidence.label[active])
        active, ranks = active[stays], ranks[stays]
        if bool(changed.all(1)[active].all()):
            break
        if len(active) and whitening.ranking == "variance" and number < whitening.max_rounds:
            again = smooth(
                model,
                current[active],
                logits[active],
                evidence.label[active],
                smoothing=smoothing,
                key=key,
                chunk=chunk,
            )
            ranks = again.relevance_variance.flatten(1)
    return _restoration(logits, evidence.label, changed.view(-1, height, width), rounds)


def _ranks(images: Tensor, evidence: Evidence, whitening: Whitening, key: bytes) -> Tensor:
    """Return what the first round's pixels are ranked by [B, H * W]."""
    if whitening.ranking == "variance":
        return evidence.relevance_variance.flatten(1)
    # The control's order must follow from the request alone, too; a key of
    # its own keeps it apart from the noise of the copies.
    digests = [image_digest(image, b"control" + key[:57]) for image in images]
    streams = [gaussian_copies(digest, 0, 1, images.shape[2:]) for digest in digests]
    return torch.cat(streams).flatten(1).to(images.device)


def _restoration(logits: Tensor, label: Tensor, changed: Tensor, rounds: Tensor) -> Restoration:
    final = logits.argmax(1)
    known = (final != label) & torch.isfinite(logits).all(1)
    confidence = logits.double().softmax(1).gather(1, final[:, None]).squeeze(1).float()
    return Restoration(
        label=torch.where(known, final, UNKNOWN),
        logits=logits,
        confidence=torch.where(known, confidence, 0.0),
        changed_pixels=changed,
        rounds=rounds,
    )
