"""The Odds are Odd: how the log-odds move when noise is added, against clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrpguard.baselines.base import BATCH, ModelBaseline, check_scores, finite_logits
from lrpguard.baselines.copies import KINDS, Noise, check_copies, noisy_copies
from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_images
from lrpguard.smoothing import to_model

DEFAULT_N = 8
"""Copies for each noise. The paper's code takes 256."""

DEFAULT_NOISES = tuple(Noise(kind, size) for size in (0.01, 0.02, 0.03) for kind in KINDS)
"""Kinds and sizes of the paper's code for CIFAR-10 (``noise_eps``)."""

LEAST_VARIANCE = 1e-12
"""Variance of a shift that never varied."""


@dataclass(frozen=True)
class ShiftStatistics:
    """Clean mean and standard deviation of the log-odds shift, for J noises.

    Attributes:
        mean: For predicted class y and other class z [J, K (y), K (z)].
        std: The same, positive.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Odds(ModelBaseline[ShiftStatistics]):
    """Largest z-score of a log-odds shift under noise, over the classes not predicted.

    With predicted class y, another class z and ``f_yz = f_z - f_y``, the shift is the mean over
    the noise of ``f_yz(x + noise) - f_yz(x)``. It is standardised by its mean and standard
    deviation over clean images predicted y, averaged over the noises, and the largest over z is
    the score. An adversarial image falls back towards its true class.

    At many classes most pairs (y, z) have no clean image. The statistics of a pair are therefore
    drawn to those of z whatever y, and these to those of all pairs; see :func:`pair_statistics`.

    Source: Roth, Kilcher, Hofmann 2019, "The odds are odd: a statistical test for detecting
    adversarial examples", equations (5) to (8). Several noises are averaged, and the noisy images
    clipped to [0, 1], as in its code. The paper corrects a flagged label by a classifier of shifts
    trained on attacks; :meth:`restore` takes the largest z-score, which needs none.

    Attributes:
        noises: Kinds and sizes of the noise, at least one.
        n: Copies for each of them, >= 1.
        prior: Weight of the coarser statistics in each step, in images, >= 0; 0 is the paper's
            (each class then needs two clean images that are predicted it).
        seed: Seed of the noise.
    """

    name: ClassVar[str] = "odds"

    noises: tuple[Noise, ...] = DEFAULT_NOISES
    n: int = DEFAULT_N
    prior: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_copies(self.n)
        if not self.noises:
            raise ConfigurationError("noises is empty; give at least one: Noise('sign', 0.02).")
        if not 0 <= self.prior < float("inf"):
            raise ConfigurationError(f"prior is {self.prior}; it must be finite and >= 0.")

    @property
    def passes(self) -> str:
        """The image and its copies."""
        return f"{1 + self.n * len(self.noises)} forward"

    def restore(self, images: Tensor) -> Tensor:
        """Return the class that each image falls back to under noise: int64 on the CPU [B].

        It is never the predicted one, so it is an answer only where the anomaly is flagged.

        Args:
            images: Pixels in [0, 1], [B, C, H, W].

        Raises:
            NotCalibratedError: The baseline has not been fitted.
            InputError: The images are not what lrpguard takes.
        """
        return self.anomaly_and_label(images)[1]

    def anomaly_and_label(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`anomaly` and :meth:`restore` of the same passes, [B] and [B]."""
        fitted = self._need_fit()
        images = to_model(check_images(images), fitted.model)
        parts = [self._z_scores(fitted.model, fitted.state, part) for part in images.split(BATCH)]
        scores = torch.cat(parts)
        return check_scores(scores.amax(1), self.name), scores.argmax(1).cpu()

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> ShiftStatistics:
        parts = [self._shifts(model, part) for part in images.split(BATCH)]
        shifts, predicted = (torch.cat(column) for column in zip(*parts, strict=True))
        return pair_statistics(shifts, predicted, prior=self.prior)

    def _score(self, model: nn.Module, state: ShiftStatistics, images: Tensor) -> Tensor:
        return self._z_scores(model, state, images).amax(1)

    def _z_scores(self, model: nn.Module, state: ShiftStatistics, images: Tensor) -> Tensor:
        """Return the z-score of each class, averaged over the noises [B, K]; -inf for y."""
        shifts, predicted = self._shifts(model, images)
        rows = [
            ((shift - state.mean[:, y]) / state.std[:, y]).mean(0)
            for shift, y in zip(shifts, predicted.tolist(), strict=True)
        ]
        return torch.stack(rows).scatter(1, predicted[:, None], -torch.inf)

    def _shifts(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-odds shifts [B, J, K], float64 on the CPU, and predicted classes [B]."""
        logits = finite_logits(model, images).double().cpu()
        predicted = logits.argmax(1)
        noisy = torch.stack([self._noisy_means(model, image) for image in images])
        moved = noisy - logits[:, None]
        own = predicted[:, None, None].expand(-1, moved.shape[1], 1)
        return moved - moved.gather(2, own), predicted

    def _noisy_means(self, model: nn.Module, image: Tensor) -> Tensor:
        """Return the copies' mean logits for each noise, float64 on the CPU [J, K]."""
        means = []
        for j, noise in enumerate(self.noises):
            copies = noisy_copies(image, noise, n=self.n, seed=self.seed, first=j * self.n)
            logits = [finite_logits(model, part.clamp(0, 1)).double().cpu() for part in copies]
            means.append(torch.cat(logits).mean(0))
        return torch.stack(means)


def pair_statistics(shifts: Tensor, predicted: Tensor, *, prior: float) -> ShiftStatistics:
    """Return shrunk statistics of the shift of each pair of classes.

    From coarse to fine: all pairs, then each other class z, then each pair (y, z). Mean and
    variance of each step are those of its images and of ``prior`` more that lie like the step
    before: with many images of a class the paper's own, with none those of z.

    Args:
        shifts: Log-odds shifts of clean images, 0 for the predicted class [n, J, K].
        predicted: Predicted classes [n].
        prior: Weight of the step before, in images.

    Raises:
        ConfigurationError: ``prior`` is 0 and a class is predicted for fewer than two images.
    """
    classes = shifts.shape[2]
    hot = nn.functional.one_hot(predicted, classes).to(shifts)
    counts = hot.sum(0)
    if prior == 0 and int(counts.min()) < 2:
        raise ConfigurationError(
            f"prior is 0, and class {int(counts.argmin())} is predicted for "
            f"{int(counts.min())} of the {len(predicted)} fit images; the paper's statistics "
            "need at least two. Give more images, or a prior > 0."
        )
    others = (1 - hot)[:, None]  # [n, 1, K]: 1 where z is not the predicted class
    everyone = others.sum((0, 2))
    mean = (others * shifts).sum((0, 2)) / everyone
    variance = (others * (shifts - mean[:, None]).square()).sum((0, 2)) / everyone
    of_z = others.sum(0) + prior
    mean_z = ((others * shifts).sum(0) + prior * mean[:, None]) / of_z
    squares_z = (others * (shifts - mean_z).square()).sum(0)
    variance_z = (squares_z + prior * variance[:, None]) / of_z
    of_pair = (counts + prior)[:, None]
    mean_pair = (torch.einsum("ny,njz->jyz", hot, shifts) + prior * mean_z[:, None]) / of_pair
    variance_pair = torch.empty_like(mean_pair)
    for y in range(classes):
        own = shifts[predicted == y]
        squares = (own - mean_pair[:, y]).square().sum(0)
        variance_pair[:, y] = (squares + prior * variance_z) / of_pair[y]
    return ShiftStatistics(mean_pair, variance_pair.clamp_min(LEAST_VARIANCE).sqrt())
