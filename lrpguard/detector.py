"""From a request's readings to one anomaly score; fitted on clean data alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from scipy.special import ndtri
from torch import Tensor

from lrpguard.consistency import RANK_WEIGHT, Candidates, ConsistencyModel
from lrpguard.errors import CalibrationSizeError, ConfigurationError
from lrpguard.readings import Readings
from lrpguard.scores import SCORES

Array = npt.NDArray[np.float64]

FIT_IMAGES_PER_SCORE = 8
"""Clean images that the combined detector needs for each of its scores."""

CONSTANT_SCALE = 0.01
"""Standard deviation assumed of a score that never varied on clean images."""

SHRINKAGE = 0.1
"""Weight of the diagonal in the combined detector's covariance."""

FOLDS = 5
"""Parts in turn left out of the consistency model's fit, to see it on images it does not know."""

PLACE = "place_roughness"
PAINTED_LEVEL = 2.0
"""Score, as a normal quantile, from which a place counts as painted: 2 % of clean images'."""

SIDES: Mapping[str, float] = MappingProxyType(
    {
        "margin": -1.0,
        "chroma_noise": 1.0,
        "line_noise": 1.0,
        PLACE: 1.0,
        "relevance_roughness": 1.0,
    }
)
"""Scores that a combined detector may take beside the consistency, and which end is suspicious."""

COMBINED_SCORES = ("margin", "chroma_noise", "line_noise", PLACE)
"""Those that it takes. The relevance's roughness made it worse (docs/ablation.md)."""


class Detector(Protocol):
    """One anomaly score from the readings; larger is more anomalous."""

    @property
    def name(self) -> str:
        """Name in calibration files: ``"paper"`` or ``"combined"``."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """Scores it takes."""

    @property
    def takes_views(self) -> bool:
        """Whether it needs the candidates, and so the changed views."""

    def anomaly(self, readings: Readings) -> Tensor:
        """Return the anomaly score of each request, float64 [B]."""

    def state(self) -> dict[str, Tensor]:
        """Return what was fitted, for the calibration file."""


@dataclass(frozen=True)
class PaperDetector:
    """The paper's: the mean pixel-wise variance of the relevance, large is anomalous.

    Source: Raulf et al. 2021, section 3.2.
    """

    name: str = "paper"
    score_names: tuple[str, ...] = ("relevance_variance",)
    takes_views: bool = False

    def anomaly(self, readings: Readings) -> Tensor:
        """Return the one score [B]."""
        return readings.column("relevance_variance")

    def state(self) -> dict[str, Tensor]:
        """Nothing is fitted."""
        return {}


@dataclass(frozen=True)
class CombinedDetector:
    """How far a request lies from clean data, towards the suspicious end of its scores.

    The first score is the consistency: how much more than on clean images noise and denoising
    speak for another class. Each score is mapped to a standard normal one by its empirical
    distribution on clean data, linearly continued beyond its range, and turned so that large is
    suspicious. The anomaly is the likelihood-ratio statistic against a shift of the mean into
    the positive orthant: the squared Mahalanobis norm of the nearest point of that cone.

    Attributes:
        consistency: Fitted model of the candidates.
        score_names: The other scores.
        reference: Scores of the clean fit images, consistency first, each column sorted [n, S].
        root: Upper triangular R with ``R^T R`` the inverse covariance of the mapped scores [S, S].

    Source: Kudo 1963, Perlman 1969 (one-sided multivariate tests).
    """

    consistency: ConsistencyModel
    score_names: tuple[str, ...]
    reference: Tensor
    root: Tensor
    name: str = "combined"
    takes_views: bool = True

    @staticmethod
    def images_needed(score_names: tuple[str, ...] = COMBINED_SCORES) -> int:
        """Return how many clean images a fit needs."""
        return FIT_IMAGES_PER_SCORE * (1 + len(score_names))

    @staticmethod
    def fit(
        readings: Readings,
        score_names: tuple[str, ...] = COMBINED_SCORES,
        rank_weight: float = RANK_WEIGHT,
    ) -> CombinedDetector:
        """Fit to the readings of n clean images.

        Args:
            readings: Scores and candidates, at least those of ``score_names``.
            score_names: Scores beside the consistency, of ``SIDES``.
            rank_weight: See :class:`ConsistencyModel`; 0 is for the ablation.

        Raises:
            CalibrationSizeError: Fewer than ``FIT_IMAGES_PER_SCORE`` images a score.
        """
        needed = CombinedDetector.images_needed(score_names)
        if len(readings) < needed:
            raise CalibrationSizeError(
                f"{len(readings)} clean images to fit the combined detector; it needs at least "
                f"{needed}, beside those that calibrate its threshold. Give more clean images, "
                "or use detector='paper', which fits nothing."
            )
        found = _candidates(readings)
        unseen = _unseen_consistency(found, rank_weight)
        scores = torch.stack([unseen, *_turned(readings, score_names)], dim=1)
        reference = scores.sort(dim=0).values
        mapped = _to_normal(scores, reference)
        covariance = torch.atleast_2d(mapped.T.cov())
        constant = (covariance.diagonal() < 1e-6).double()  # a score that never varied
        covariance = covariance + torch.diag(constant)
        diagonal = torch.diag(covariance.diagonal())
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal
        root = torch.linalg.cholesky(torch.linalg.inv(covariance)).T.contiguous()
        model = ConsistencyModel.fit(found, rank_weight)
        return CombinedDetector(model, score_names, reference, root)

    def anomaly(self, readings: Readings) -> Tensor:
        """Return the anomaly score of each request, >= 0, float64 [B]."""
        consistency = self.consistency.suspicion(_candidates(readings))
        scores = torch.stack([consistency, *_turned(readings, self.score_names)], dim=1)
        mapped = _to_normal(scores, self.reference)
        return torch.tensor([_towards_cone(row, self.root) for row in mapped], dtype=torch.float64)

    def painted(self, readings: Readings) -> Tensor:
        """Say which requests have a place that is rougher than clean images' roughest, bool [B].

        False for all where the detector does not take ``place_roughness``.
        """
        if PLACE not in self.score_names:
            return torch.zeros(len(readings), dtype=torch.bool)
        column = self.reference[:, [1 + self.score_names.index(PLACE)]]
        turned = torch.stack(_turned(readings, (PLACE,)), dim=1)
        return _to_normal(turned, column)[:, 0] >= PAINTED_LEVEL

    def state(self) -> dict[str, Tensor]:
        """Return the consistency model, the reference scores and the covariance's root."""
        model = {f"consistency.{name}": part for name, part in self.consistency.state().items()}
        return {"reference": self.reference, "root": self.root, **model}


def needs_fit(name: str) -> bool:
    """Say whether a detector learns from clean data before it is calibrated.

    Raises:
        ConfigurationError: There is no such detector.
    """
    if name not in ("paper", "combined"):
        raise ConfigurationError(f"no detector is named {name!r}; there are 'combined', 'paper'.")
    return name == "combined"


def fit_detector(name: str, readings: Readings) -> Detector:
    """Return the named detector, fitted to the readings of clean images.

    Args:
        name: ``"paper"`` or ``"combined"``.
        readings: Readings of the clean images set aside for the fit.

    Raises:
        ConfigurationError: There is no such detector.
        CalibrationSizeError: Too few images.
    """
    return CombinedDetector.fit(readings) if needs_fit(name) else PaperDetector()


def load_detector(name: str, score_names: tuple[str, ...], state: Mapping[str, Tensor]) -> Detector:
    """Return the detector whose :meth:`Detector.state` is given.

    Raises:
        ConfigurationError: There is no such detector, or a score is unknown.
        KeyError: A part of the state is missing.
    """
    known = SIDES if needs_fit(name) else SCORES
    unknown = [score for score in score_names if score not in known]
    if unknown:
        raise ConfigurationError(f"no score is named {unknown}; there are {sorted(known)}.")
    if not needs_fit(name):
        return PaperDetector()
    prefix = "consistency."
    model = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return CombinedDetector(
        ConsistencyModel.from_state(model), score_names, state["reference"], state["root"]
    )


def _candidates(readings: Readings) -> Candidates:
    if readings.candidates is None:
        raise ConfigurationError(
            "the combined detector needs the changed views, and they were not run; smooth with "
            "views=True."
        )
    return readings.candidates


def _turned(readings: Readings, names: tuple[str, ...]) -> list[Tensor]:
    """Return the named scores, each turned so that large is suspicious [B]."""
    return [SIDES[name] * readings.column(name) for name in names]


def _unseen_consistency(found: Candidates, rank_weight: float) -> Tensor:
    """Return the consistency of clean images under models that have not seen them [n].

    A model knows the images that it was fitted on too well, most of all with many classes.
    """
    part = torch.arange(len(found)) % FOLDS
    scores = torch.empty(len(found), dtype=torch.float64)
    for fold in range(FOLDS):
        model = ConsistencyModel.fit(found.select(part != fold), rank_weight)
        scores[part == fold] = model.suspicion(found.select(part == fold))
    return scores


def _towards_cone(mapped: Tensor, root: Tensor) -> float:
    """Return the squared norm of the point of the positive orthant nearest to the scores.

    NaN where a score is not finite.
    """
    if not bool(torch.isfinite(mapped).all()):
        return math.nan
    # Not torch's product, whose rounding depends on where in memory a tensor lies.
    axes = root.numpy()
    nearest, _ = nnls(axes, (axes * mapped.numpy()).sum(1))
    point = (axes * nearest).sum(1)  # its norm not by Pythagoras, which would cancel
    return float((point * point).sum())


def _to_normal(scores: Tensor, reference: Tensor) -> Tensor:
    """Map each score [B, S] to the normal quantile of its rank among the reference [n, S].

    Linear between the reference's values, so that rounding of a score moves it by rounding,
    and linear beyond them.
    """
    columns = [
        _column_to_normal(column.numpy(), known.numpy())
        for column, known in zip(scores.double().T, reference.T, strict=True)
    ]
    return torch.from_numpy(np.stack(columns, axis=1))


def _column_to_normal(values: Array, known: Array) -> Array:
    n = len(known)
    knots = np.unique(known)
    rank = (np.searchsorted(known, knots) + np.searchsorted(known, knots, side="right")) / 2
    normal: Array = np.interp(values, knots, ndtri((rank + 0.5) / (n + 1)))
    low, middle, high = known[int(0.05 * (n - 1))], known[n // 2], known[int(0.95 * (n - 1))]
    spread = float(known.std())
    varies = spread > 1e-9 * float(np.abs(known).max())  # else it is one value, and rounding
    fallback = spread if varies else CONSTANT_SCALE
    normal += np.maximum(values - known[-1], 0) / _scale(high - middle, fallback)
    normal -= np.maximum(known[0] - values, 0) / _scale(middle - low, fallback)
    return normal


def _scale(distance: float, fallback: float) -> float:
    """Turn the distance from the median to a 5 % quantile into a standard deviation."""
    return distance / 1.645 if distance > 1e-3 * fallback else fallback  # mostly one value
