"""Noisy copies of an image, keyed by its content, and the vote they take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lrpguard.baselines.base import BATCH, UnfittedBaseline, check_positive, finite_logits
from lrpguard.errors import ConfigurationError
from lrpguard.noise import gaussian_copies, image_digest, key_bytes

DEFAULT_N = 24
"""Noisy copies that the baselines of noise take by default."""

DEFAULT_SIGMA = 0.02
"""Standard deviation of their noise. On ResNet-20 it keeps 95 % of the clean labels."""

Kind = Literal["gaussian", "uniform", "sign"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every kind of noise."""


@dataclass(frozen=True)
class Noise:
    """How an image is disturbed.

    Attributes:
        kind: ``"gaussian"``; ``"uniform"`` in [-size, size]; ``"sign"``, -size or size.
        size: Standard deviation, half width or amplitude, on the [0, 1] pixel scale, > 0.

    Raises:
        ConfigurationError: The kind is unknown, or the size not positive.
    """

    kind: Kind
    size: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"no noise is {self.kind!r}; there are {KINDS}.")
        check_positive(size=self.size)

    def of(self, normal: Tensor) -> Tensor:
        """Return this noise made of standard normal noise, of the same shape."""
        if self.kind == "gaussian":
            return self.size * normal
        if self.kind == "sign":
            return self.size * torch.where(normal < 0, -1.0, 1.0)
        return self.size * torch.erf(normal / math.sqrt(2))


def noisy_copies(
    image: Tensor, noise: Noise, *, n: int, seed: int, first: int = 0, batch: int = BATCH
) -> Iterator[Tensor]:
    """Yield ``n`` noisy copies of an image [C, H, W] in parts of ``batch``, not clipped.

    The noise follows from the image, the seed and the copy's number alone.

    Args:
        image: Pixels in [0, 1].
        noise: What is added.
        n: How many copies.
        seed: Seed of the noise.
        first: Number of the first copy; other numbers give other noise.
        batch: Most copies in a part.
    """
    digest = image_digest(image, key_bytes(seed))
    for start in range(0, n, batch):
        normal = gaussian_copies(digest, first + start, min(batch, n - start), image.shape)
        yield image + noise.of(normal).to(image)


def check_copies(n: int, *, least: int = 1) -> None:
    """Refuse a number of copies that is not a whole one of at least ``least``.

    Raises:
        ConfigurationError: It is smaller, or no whole number.
    """
    if n != int(n) or n < least:
        raise ConfigurationError(f"n is {n}; expected a whole number of copies >= {least}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyBaseline(UnfittedBaseline):
    """A baseline that scores copies with Gaussian noise.

    Attributes:
        n: Noisy copies of each image, at least ``least``.
        sigma: Standard deviation of the noise, on the [0, 1] pixel scale, > 0.
        seed: Seed of the noise.
    """

    least: ClassVar[int] = 1

    n: int = DEFAULT_N
    sigma: float = DEFAULT_SIGMA
    seed: int = 0

    def __post_init__(self) -> None:
        check_copies(self.n, least=self.least)
        check_positive(sigma=self.sigma)


@dataclass(frozen=True, kw_only=True, eq=False)
class Disagreement(NoisyBaseline):
    """Share of noisy copies whose predicted class is not the image's own, in [0, 1].

    It has ``n + 1`` values, so many images tie. See :class:`NoisyBaseline` for the options.
    Source: the abstention rule of Cohen, Rosenfeld, Kolter 2019, "Certified adversarial
    robustness via randomized smoothing", section 3.2.2, as a score.
    """

    name: ClassVar[str] = "disagreement"

    @property
    def passes(self) -> str:
        """The image and its copies."""
        return f"{self.n + 1} forward"

    def _score(self, model: nn.Module, state: None, images: Tensor) -> Tensor:
        labels = finite_logits(model, images).argmax(1)
        noise = Noise("gaussian", self.sigma)
        shares = []
        for image, label in zip(images, labels, strict=True):
            copies = noisy_copies(image, noise, n=self.n, seed=self.seed)
            votes = torch.cat([finite_logits(model, part).argmax(1) for part in copies])
            shares.append((votes != label).double().mean())
        return torch.stack(shares)
