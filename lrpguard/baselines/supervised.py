"""The guard's readings, with a detector fitted with attacks: kept apart from the guard's own.

It answers what attack-free fitting costs. On attacks like those that it saw it is the better
detector, on others it may be the worse one; so it is tested on others (docs/baselines.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from lrpguard.attacks import choose
from lrpguard.attacks.pgd import quantize
from lrpguard.attacks.suite import kin
from lrpguard.baselines.base import ModelBaseline, finite_logits
from lrpguard.consistency import ConsistencyModel
from lrpguard.errors import CalibrationSizeError, ConfigurationError
from lrpguard.guard import Guard
from lrpguard.readings import Readings, read
from lrpguard.scores import SCORES
from lrpguard.smoothing import Smoothing
from lrpguard.tuning import OTHER_PASSES, choose_smoothing

BOUNDED = ("fgsm_4", "pgd_1_10", "pgd_2_10", "pgd_8_10", "pgd_l2_0.5")
MINIMAL = ("cw_0", "cw_5", "deepfool")
"""Attacks of the suite that follow the loss within a ball, and that seek the least change."""

BATCH = 16
"""Images attacked, and explained, together."""

LEAST_IMAGES = 20
"""Clean images that a fit needs: half for the consistency, half beside the attacked ones."""

L2 = 0.01
"""Weight of the squared norm of the regression's weights."""

QUANTILES = (0.05, 0.5, 0.95)
CONSTANT_SCALE = 0.01
"""Standard deviation assumed of a feature that never varied on clean images."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SupervisedState:
    """What was learnt.

    Attributes:
        guard: A guard of the model, not calibrated: it makes the evidence.
        consistency: Fitted to one half of the clean images.
        centre: Median of each feature on the other half [F].
        scale: Its spread there [F].
        weights: Of the standardised features, then of their absolute values [2 F].
    """

    guard: Guard
    consistency: ConsistencyModel
    centre: Tensor
    scale: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Supervised(ModelBaseline[SupervisedState]):
    """Logistic regression on the guard's readings, clean images against attacked ones.

    The readings are those of the guard's one pass: every score, the consistency of noise and
    denoising and that of covering, and the support, gap and shifts of the best candidate. Each is
    centred and scaled by clean images and passed through asinh; it enters with and without its
    sign, since strong and weak attacks move the same reading in opposite directions. Half of the
    fit images fit the consistency, as in ``combined``; the others are the clean examples, and are
    attacked, each by one of the attacks in turn, for the adversarial ones.

    Attributes:
        attacks: Attacks of the suite that it sees.
        n: Noisy copies; None chooses, as a guard does.
        sigma: Strength of the noise; None chooses.
        seed: Seed of attacks and noise.
    """

    name: ClassVar[str] = "supervised"
    attack_free: ClassVar[bool] = False

    attacks: tuple[str, ...] = BOUNDED + MINIMAL
    n: int | None = None
    sigma: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.attacks or not all(attack.adversarial for attack in choose(self.attacks)):
            raise ConfigurationError(
                f"attacks are {self.attacks}; name at least one of the suite, and no controls."
            )

    @property
    def saw(self) -> tuple[str, ...]:
        """Families of the attacks that it sees, with their kin."""
        return kin(attack.family for attack in choose(self.attacks))

    @property
    def passes(self) -> str:
        """Those of a guard."""
        return f"{OTHER_PASSES} forward and n forward, backward: the guard's own"

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> SupervisedState:
        if len(images) < LEAST_IMAGES:
            raise CalibrationSizeError(
                f"{self.name!r} was given {len(images)} images; it needs at least {LEAST_IMAGES}."
            )
        known, clean, right = images[0::2], images[1::2], labels[1::2]
        guard = Guard(model, smoothing=self._noise(model, known), restoration=None)
        found = _read(guard, known).candidates
        assert found is not None
        state = SupervisedState(
            guard, ConsistencyModel.fit(found), torch.empty(0), torch.empty(0), torch.empty(0)
        )
        negative = _features(_read(guard, clean), state.consistency)
        low, middle, high = negative.quantile(torch.tensor(QUANTILES, dtype=torch.float64), dim=0)
        scale = (high - low) / 3.29  # of a normal one, its standard deviation
        scale = torch.where(scale > 1e-9 * middle.abs(), scale, CONSTANT_SCALE)
        state = replace(state, centre=middle, scale=scale.clamp_min(1e-12))
        attacked = self._attacked(model, clean, right)
        positive = _features(_read(guard, attacked), state.consistency)
        inputs = torch.cat([_inputs(part, state) for part in (negative, positive)]).numpy()
        is_attack = np.r_[np.zeros(len(negative)), np.ones(len(positive))]
        return replace(state, weights=torch.from_numpy(logistic_weights(inputs, is_attack)))

    def _score(self, model: nn.Module, state: SupervisedState, images: Tensor) -> Tensor:
        inputs = _inputs(_features(_read(state.guard, images), state.consistency), state)
        # Request by request, not as a product of matrices, which rounds by the batch; the
        # intercept is left to the threshold.
        return (inputs * state.weights).sum(1)

    def _noise(self, model: nn.Module, images: Tensor) -> Smoothing:
        if self.n is not None and self.sigma is not None:
            return Smoothing(n=self.n, sigma=self.sigma, seed=self.seed)
        choice = choose_smoothing(model, images, n=self.n, sigma=self.sigma, seed=self.seed)
        return choice.smoothing

    def _attacked(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return what the attacks made of their shares of the images, where they fooled the model.

        Raises:
            CalibrationSizeError: None did.
        """
        suite, parts = choose(self.attacks), []
        for turn, attack in enumerate(suite):
            mine, right = images[turn :: len(suite)], labels[turn :: len(suite)]
            for part, classes in zip(mine.split(BATCH), right.split(BATCH), strict=True):
                before = finite_logits(model, part).argmax(1)
                moved = quantize(attack.run(model, part, classes, self.seed).detach())
                after = finite_logits(model, moved).argmax(1)
                parts.append(moved[(before == classes) & (after != classes)])
        attacked = torch.cat(parts)
        if not len(attacked):
            raise CalibrationSizeError(
                f"{self.name!r} is trained on attacks, and {', '.join(self.attacks)} fooled the "
                f"model on none of {len(images)} images. Are the labels those of the images?"
            )
        return attacked


@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedOnBounded(Supervised):
    """The same, trained on attacks within a ball alone; to be tested on the others."""

    name: ClassVar[str] = "supervised-bounded"
    attacks: tuple[str, ...] = BOUNDED


@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedOnMinimal(Supervised):
    """The same, trained on attacks that seek the least change alone; to be tested on the others."""

    name: ClassVar[str] = "supervised-minimal"
    attacks: tuple[str, ...] = MINIMAL


def logistic_weights(inputs: Array, is_attack: Array) -> Array:
    """Return the weights of an L2 logistic regression in which both classes weigh the same.

    Args:
        inputs: One row an example [m, F].
        is_attack: 1 for an attacked example, 0 for a clean one; both occur [m].

    Returns:
        The weights [F], without the intercept, which carries no penalty.
    """
    share = np.where(is_attack > 0, 0.5 / is_attack.sum(), 0.5 / (1 - is_attack).sum())
    sign = 2 * is_attack - 1

    def loss(parameters: Array) -> tuple[float, Array]:
        weights, intercept = parameters[:-1], parameters[-1]
        margin = sign * (inputs @ weights + intercept)
        value = float(share @ np.logaddexp(0, -margin)) + L2 / 2 * float(weights @ weights)
        slope = -share * sign / (1 + np.exp(np.minimum(margin, 500)))
        return value, np.r_[inputs.T @ slope + L2 * weights, slope.sum()]

    start = np.zeros(inputs.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(found.x[:-1], dtype=np.float64)


def _read(guard: Guard, images: Tensor) -> Readings:
    parts = [read(guard.evidence(part, views=True), tuple(SCORES)) for part in images.split(BATCH)]
    return Readings.from_rows(tuple(SCORES), [row for part in parts for row in part.to_rows()])


def _features(readings: Readings, consistency: ConsistencyModel) -> Tensor:
    """Return what the regression reads of each request, float64 [B, F]."""
    found = readings.candidates
    assert found is not None
    scores = consistency.scores(found)
    best = scores[..., 0].argmax(1, keepdim=True)
    support = consistency.support(found).gather(1, best)
    values = found.values.gather(1, best[..., None].expand(-1, 1, found.values.shape[2]))
    moved = torch.stack([consistency.suspicion(found), scores[..., 1].amax(1)], dim=1)
    return torch.cat([readings.scores, moved, support, values.squeeze(1)], dim=1)


def _inputs(features: Tensor, state: SupervisedState) -> Tensor:
    """Return the standardised features, then their absolute values [B, 2 F]."""
    standard = ((features - state.centre) / state.scale).asinh()
    return torch.cat([standard, standard.abs()], dim=1)
