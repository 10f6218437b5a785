"""What a guard looks at, with a gradient: the request, noisy copies of it, its views.

JPEG is passed as if it were not there (Athalye et al. 2018, BPDA); the other views have gradients
of their own. Noise is drawn afresh at each step where the key is unknown (the same authors'
expectation over transformations), and is the guard's own where it is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrpguard.noise import gaussian_copies, image_digest
from lrpguard.views import VIEWS, covered

LOOKED_AT = len(VIEWS) + 1
"""Views that the detector reads: the mild ones and the covered one."""

Noise = Callable[[Tensor], Tensor]
"""From images [B, C, H, W] to standard normal noise [n, B, C, H, W]."""


@dataclass(frozen=True)
class Looks:
    """Logits of all that is looked at, with a gradient.

    Attributes:
        own: Of the requests themselves [B, K].
        noisy: Of their noisy copies [n, B, K].
        views: Of their mild views, and of the covered one [V, B, K].
    """

    own: Tensor
    noisy: Tensor
    views: Tensor

    def mean(self) -> Tensor:
        """Return the mean over all of them, each look counting alike [B, K]."""
        return torch.cat([self.own[None], self.noisy, self.views]).mean(0)


def look(model: nn.Module, images: Tensor, noise: Noise, sigma: float) -> Looks:
    """Run a batch with its copies and views through the model, logits in float64.

    Args:
        model: From [B, C, H, W] in [0, 1] to logits [B, K].
        images: The requests [B, C, H, W].
        noise: Gives the noise of the copies.
        sigma: Standard deviation of the noise, on the [0, 1] pixel scale.
    """
    copies = images + sigma * noise(images)
    several = torch.cat([images, copies.flatten(0, 1), read_views(images).flatten(0, 1)])
    logits = model(several).double().unflatten(0, (-1, len(images)))
    own, noisy, views = logits.split([1, len(copies), LOOKED_AT])
    return Looks(own[0], noisy, views)


def fresh_noise(copies: int, seed: int) -> Noise:
    """Return noise that is drawn anew at each call."""
    generator = torch.Generator().manual_seed(seed)

    def draw(images: Tensor) -> Tensor:
        return torch.randn((copies, *images.shape), generator=generator).to(images)

    return draw


def keyed_noise(copies: int, key: bytes) -> Noise:
    """Return the noise that a guard with this key gives to images, as :func:`look` takes it."""

    def draw(images: Tensor) -> Tensor:
        seen = images.detach()
        digests = [image_digest(image, key) for image in seen]
        each = [gaussian_copies(digest, 0, copies, seen.shape[1:]) for digest in digests]
        return torch.stack(each, dim=1).to(images)

    return draw


def read_views(images: Tensor) -> Tensor:
    """Return the views that the detector reads of a batch, with a gradient [V, B, C, H, W]."""
    views = []
    for name, view in VIEWS.items():
        if name == "jpeg":  # straight through: rounding of coefficients has no gradient
            with torch.no_grad():
                stored = torch.stack([view(image) for image in images])
            views.append(images + (stored - images).detach())
        else:
            views.append(torch.stack([view(image) for image in images]))
    views.append(torch.stack([covered(image) for image in images]))
    return torch.stack(views)
