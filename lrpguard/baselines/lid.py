"""Local intrinsic dimensionality of the activations, one-class and trained on PGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrpguard.attacks.pgd import pgd, quantize
from lrpguard.baselines.base import BATCH, ModelBaseline, check_positive, finite_logits
from lrpguard.baselines.features import activations
from lrpguard.baselines.gaussian import Gaussians, one_gaussian, sklearn
from lrpguard.errors import CalibrationSizeError, ConfigurationError, UnsupportedModelError
from lrpguard.noise import gaussian_copies, image_digest, key_bytes

DEFAULT_K = 20
"""Neighbours; the paper takes 10 to 90 of a batch of 100."""

TINY = 1e-12
"""Distance that equal activations are taken to have."""


def lid(distances: Tensor, *, k: int) -> Tensor:
    """Return the maximum-likelihood estimate of the local intrinsic dimensionality [m].

    ``-1 / mean(log(r_i / r_k))`` over the k nearest distances ``r_1 <= ... <= r_k``.

    Args:
        distances: From each of m points to the n of the reference [m, n], n >= k.
        k: How many neighbours, >= 2.

    Source: Amsaleg et al. 2015, "Estimating local intrinsic dimensionality"; Ma et al. 2018,
    equation (4).
    """
    nearest = distances.topk(k, dim=1, largest=False, sorted=True).values.clamp_min(TINY)
    mean_log = (nearest / nearest[:, -1:]).log().mean(1)
    return -1 / mean_log.clamp_max(-TINY)  # k equal distances: the logarithms are 0


@dataclass(frozen=True)
class Reference:
    """Activations of clean images.

    Attributes:
        layers: One matrix [n, C] a layer, float64 on the CPU.
    """

    layers: tuple[Tensor, ...]

    @staticmethod
    def of(model: nn.Module, images: Tensor) -> Reference:
        """Run clean images [n, C, H, W] through the model, and keep what its layers were given."""
        return Reference(_layers(model, images))

    def log_lids(self, layers: tuple[Tensor, ...], *, k: int, without_own: bool = False) -> Tensor:
        """Return logarithms of the LID of each image at each layer [m, L].

        Args:
            layers: Activations of m images, a matrix [m, C] a layer.
            k: Neighbours.
            without_own: Leave image i of the reference out for image i: the same image, or the
                one it was made from. A request's own source is not in the reference either.
        """
        columns = []
        for known, seen in zip(self.layers, layers, strict=True):
            distances = torch.stack([(known - row).norm(dim=1) for row in seen])
            if without_own:
                distances.fill_diagonal_(torch.inf)
            columns.append(lid(distances, k=k).log())
        return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class _OneClassState:
    reference: Reference
    gaussian: Gaussians


@dataclass(frozen=True, kw_only=True, eq=False)
class LidOneClass(ModelBaseline[_OneClassState]):
    """Squared Mahalanobis distance of an image's log-LIDs, layer by layer, from clean ones.

    Ma et al.'s features (see :class:`Lid`) without its attacks: one Gaussian with a
    Ledoit-Wolf covariance takes the place of the logistic regression.

    Attributes:
        k: Neighbours in the reference, >= 2 and below the number of fit images.
    """

    name: ClassVar[str] = "lid-oneclass"

    k: int = DEFAULT_K

    def __post_init__(self) -> None:
        _check_k(self.k)

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> _OneClassState:
        _check_size(self.name, len(images), self.k)
        reference = Reference.of(model, images)
        clean = reference.log_lids(reference.layers, k=self.k, without_own=True)
        return _OneClassState(reference, one_gaussian(clean))

    def _score(self, model: nn.Module, state: _OneClassState, images: Tensor) -> Tensor:
        seen = state.reference.log_lids(_layers(model, images), k=self.k)
        return state.gaussian.distances(seen)[:, 0]


@dataclass(frozen=True)
class _LidState:
    reference: Reference
    mean: Tensor
    std: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Lid(ModelBaseline[_LidState]):
    """Logistic regression on the log-LID of each layer: fitted with PGD attacks.

    The positives are PGD examples of the fit images that fooled the model; the negatives are those
    images, clean and with Gaussian noise of the same L2 norm. Source: Ma et al. 2018,
    "Characterizing adversarial subspaces using local intrinsic dimensionality", Algorithm 1. There
    the neighbours come from the minibatch of the image; here from the fit images, so that
    a score does not depend on the batch. Activations are averaged over space.

    Attributes:
        k: Neighbours in the reference, >= 2 and below the number of fit images.
        eps: PGD's largest change of a pixel, in [0, 1].
        steps: PGD's steps, >= 1.
        seed: Seed of PGD's start and of the noise.
    """

    name: ClassVar[str] = "lid"
    attack_free: ClassVar[bool] = False

    k: int = DEFAULT_K
    eps: float = 8 / 255
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _check_k(self.k)
        check_positive(eps=self.eps, steps=self.steps)

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> _LidState:
        _check_size(self.name, len(images), self.k)
        pairs = attacked_pairs(
            model, images, labels, eps=self.eps, steps=self.steps, seed=self.seed, name=self.name
        )
        reference = Reference.of(model, pairs.clean)
        _check_size(self.name, len(pairs.clean), self.k)
        groups = [
            reference.log_lids(_layers(model, group), k=self.k, without_own=True)
            for group in (pairs.clean, pairs.noisy, pairs.adversarial)
        ]
        points = torch.cat(groups)
        is_attack = torch.zeros(len(points), dtype=torch.long)
        is_attack[-len(groups[2]) :] = 1
        mean, std = points.mean(0), points.std(0).clamp_min(TINY)
        regression: Any = sklearn("linear_model").LogisticRegression(max_iter=1000)
        regression.fit(((points - mean) / std).numpy(), is_attack.numpy())
        weights = torch.from_numpy(regression.coef_[0])
        return _LidState(reference, mean, std, weights)

    def _score(self, model: nn.Module, state: _LidState, images: Tensor) -> Tensor:
        seen = state.reference.log_lids(_layers(model, images), k=self.k)
        # The intercept is left to the threshold.
        return (((seen - state.mean) / state.std) * state.weights).sum(1)


@dataclass(frozen=True)
class AttackedPairs:
    """Images three ways, in the same order [n, C, H, W].

    Attributes:
        clean: As they were.
        noisy: With Gaussian noise as large, in the L2 norm, as the attack.
        adversarial: Attacked by PGD, and misclassified.
    """

    clean: Tensor
    noisy: Tensor
    adversarial: Tensor


def attacked_pairs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    seed: int,
    name: str,
) -> AttackedPairs:
    """Attack the images that the model gets right, and keep those it then gets wrong.

    Args:
        model: From images in [0, 1] to logits.
        images: Clean images [n, C, H, W].
        labels: Their true classes [n].
        eps: PGD's largest change of a pixel.
        steps: PGD's steps.
        seed: Seed of PGD and of the noise.
        name: Who asks, for the error.

    Raises:
        CalibrationSizeError: No attack succeeded.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    for batch, classes in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        attacked = quantize(pgd(model, batch, classes, eps=eps, steps=steps, seed=seed))
        right = finite_logits(model, batch).argmax(1) == classes
        fooled = right & (finite_logits(model, attacked).argmax(1) != classes)
        parts.append((batch[fooled], attacked[fooled]))
    clean, adversarial = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(clean):
        raise CalibrationSizeError(
            f"{name!r} is trained on PGD examples, and PGD at eps {eps:.4g} fooled the model on "
            f"none of the {len(images)} images. Are the labels those of the images?"
        )
    key = key_bytes(seed)
    noise = torch.cat([gaussian_copies(image_digest(i, key), 0, 1, i.shape) for i in clean])
    noise = noise.to(clean)
    scale = (adversarial - clean).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    noisy = (clean + scale[:, None, None, None] * noise).clamp(0, 1)
    return AttackedPairs(clean, quantize(noisy), adversarial)


def _layers(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Return activations of many images, a matrix [n, C] a layer, float64 on the CPU."""
    parts = [activations(model, part).layers for part in images.split(BATCH)]
    if not parts[0]:
        raise UnsupportedModelError(
            "the model has a single linear layer or convolution, so there are no activations "
            "between layers to read. Pick a baseline that reads logits alone, such as 'energy'."
        )
    return tuple(torch.cat(layer).double().cpu() for layer in zip(*parts, strict=True))


def _check_k(k: int) -> None:
    if k < 2 or k != int(k):
        raise ConfigurationError(f"k is {k}; expected a whole number of neighbours >= 2.")


def _check_size(name: str, images: int, k: int) -> None:
    if images <= k:
        raise CalibrationSizeError(
            f"{name!r} has {images} usable fit images and takes the k = {k} nearest others of "
            "each; give more than k images, or a smaller k."
        )
