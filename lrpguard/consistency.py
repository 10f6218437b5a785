"""Do noise, denoising or covering move the prediction more than clean images'?

An adversarial perturbation is small and finely tuned: noise and denoising take part of it away,
and the logits fall back towards the class that the image shows. A patch is neither, but in one
place, and covering it does the same. How far the logits may move on clean images depends on the
predicted class, on the class they move to, and on how far that class was behind; the model here
learns all three from clean images alone.

Source: the log-odds under noise are those of Roth, Kilcher, Hofmann, ICML 2019, equations (6)-(9).
Ours beyond theirs: denoised views beside the noisy copies, the dependence on the gap, statistics
of a pair shrunk towards those of all pairs, and the correlation between the views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.views import VIEWS

CANDIDATES = 9
"""Other classes that are looked at: all of them where there are ten."""

SUPPORT_FLOOR = 1e-4
"""Probability added before the logarithm: less than this is no support at all."""

TRUST_POWER = 4
TRUST_FLOOR = 0.01
"""Views count by this power of the share of clean images whose label they keep, and 1 %."""

RANK_WEIGHT = 1.0
RANK_SOFTNESS = 0.1
"""A candidate counts less by this many times the logarithm of its rank by the gap. The rank is
soft: gaps closer than a tenth of a clean gap's deviation are about equal."""

PRIOR_IMAGES = 10.0
"""Images' worth of weight that all pairs together have in the statistics of one pair."""


@dataclass(frozen=True)
class Candidates:
    """The classes that each request might be of instead, and what speaks for them.

    Attributes:
        label: Predicted class [B].
        classes: The candidates, the C other classes of largest mean probability under noise and
            views [B, C].
        values: Of each candidate z against the label y: ``f_z - f_y`` on the request itself (the
            gap), then how much each view raises it (the shifts): mean of the noisy copies
            first, mild view after mild view, the covered view last; float64 [B, C, 1 + J].
        support: Log-probability of each candidate on each strong view, the label left out,
            float64 [B, C, S].
        kept: 1 where a strong view keeps the label, else 0, float64 [B, S].
    """

    label: Tensor
    classes: Tensor
    values: Tensor
    support: Tensor
    kept: Tensor

    def __len__(self) -> int:
        """Return the number of requests B."""
        return len(self.label)

    @property
    def moved(self) -> Tensor:
        """What ``f_z - f_y`` has become under noise and on each view, float64 [B, C, J]."""
        return self.values[..., :1] + self.values[..., 1:]

    def select(self, rows: Tensor | slice) -> Candidates:
        """Return the candidates of some of the requests."""
        return Candidates(*(getattr(self, field.name)[rows] for field in fields(self)))


def candidates(evidence: Evidence) -> Candidates:
    """Return the candidates of each request, on the CPU.

    Raises:
        ConfigurationError: The changed views were not run.
    """
    if evidence.view_logits is None:
        raise ConfigurationError(
            "the changed views were not run, and candidates are read off them; smooth with "
            "views=True."
        )
    label = evidence.label.cpu()
    clean = evidence.logits.double().cpu()
    noisy = evidence.noisy_logits.double().cpu().mean(1, keepdim=True)
    moved = torch.cat([noisy, evidence.view_logits.double().cpu()], dim=1)
    mild, strong = moved[:, : 2 + len(VIEWS)], moved[:, 2 + len(VIEWS) :]  # covered with mild
    others = moved.scatter(2, label.view(-1, 1, 1).expand(-1, moved.shape[1], 1), -torch.inf)
    probability = others.softmax(2)
    count = min(CANDIDATES, clean.shape[1] - 1)
    classes = probability.mean(1).topk(count, dim=1).indices
    gap = _against(clean, label).gather(1, classes)
    shifts = [_against(view - clean, label).gather(1, classes) for view in mild.unbind(1)]
    supports = [view.gather(1, classes) for view in probability[:, -strong.shape[1] :].unbind(1)]
    return Candidates(
        label=label,
        classes=classes,
        values=torch.stack([gap, *shifts], dim=2),
        support=(torch.stack(supports, dim=2) + SUPPORT_FLOOR).log(),
        kept=(strong.argmax(2) == label[:, None]).double(),
    )


def _against(logits: Tensor, label: Tensor) -> Tensor:
    """Return ``f_z - f_y`` for the label y and every class z [B, K]."""
    return logits - logits.gather(1, label[:, None])


@dataclass(frozen=True)
class ConsistencyModel:
    """How clean images move, for each pair of predicted class and candidate.

    The statistics of a pair seen on few images are shrunk towards those of all pairs, so that
    the model works with ten classes and with a thousand.

    Attributes:
        pairs: Pairs seen, ``y * 2**32 + z``, ascending [P].
        mean: Mean of the values of each pair [P, 1 + J].
        scale: Root mean squared deviation from it [P, 1 + J].
        base_mean: Mean over all pairs [1 + J].
        base_scale: Scale over all pairs [1 + J].
        weights: Weights of the standardised gap and shifts in two scores [2, 1 + J]: one takes
            noise and mild views, the other the covered view; the shifts count by how far each is
            to be trusted, the gap corrects for what it alone explains.
        trust: Weight of each strong view in the support, their sum is 1 [S].
        rank_weight: Times the logarithm of a candidate's rank it counts less in
            :meth:`suspicion` [1].
    """

    pairs: Tensor
    mean: Tensor
    scale: Tensor
    base_mean: Tensor
    base_scale: Tensor
    weights: Tensor
    trust: Tensor
    rank_weight: Tensor

    @staticmethod
    def fit(found: Candidates, rank_weight: float = RANK_WEIGHT) -> ConsistencyModel:
        """Fit to the candidates of n clean images; the weight of the ranks is not fitted."""
        values = found.values.flatten(0, 1)
        keys = _keys(found).flatten()
        pairs, index = keys.unique(return_inverse=True)
        count = torch.bincount(index).double()[:, None] + PRIOR_IMAGES
        base_mean = values.mean(0)
        mean = (_sums(values, index) + PRIOR_IMAGES * base_mean) / count
        deviation = values - mean[index]
        base_square = (deviation**2).mean(0)
        square = (_sums(deviation**2, index) + PRIOR_IMAGES * base_square) / count
        scale = square.sqrt().clamp_min(1e-9)
        standard = deviation / scale[index]
        covariance = standard.T @ standard / len(standard)
        everywhere = _trust(_mild_kept(found))
        covering = torch.zeros_like(everywhere)
        everywhere[-1], covering[-1] = 0, 1
        return ConsistencyModel(
            pairs=pairs,
            mean=mean,
            scale=scale,
            base_mean=base_mean,
            base_scale=base_square.sqrt().clamp_min(1e-9),
            weights=torch.stack([_weights(covariance, everywhere), _weights(covariance, covering)]),
            trust=_trust(found.kept),
            rank_weight=torch.tensor([rank_weight], dtype=torch.float64),
        )

    def scores(self, found: Candidates) -> Tensor:
        """Return how much more than clean images' each candidate gains, float64 [B, C, 2].

        First by noise and denoising, then by covering; each about standard normal for one
        candidate of a clean image.
        """
        # Request by request: over a larger batch a sum may round differently.
        return torch.cat(
            [self._scores_of_one(found.select(slice(i, i + 1))) for i in range(len(found))]
        )

    def _scores_of_one(self, found: Candidates) -> Tensor:
        keys = _keys(found)
        place = torch.searchsorted(self.pairs, keys).clamp_max(len(self.pairs) - 1)
        seen = (self.pairs[place] == keys)[..., None]
        mean = torch.where(seen, self.mean[place], self.base_mean)
        scale = torch.where(seen, self.scale[place], self.base_scale)
        standard = (found.values - mean) / scale
        return torch.stack([(standard * weights).sum(2) for weights in self.weights], dim=2)

    def suspicion(self, found: Candidates) -> Tensor:
        """Return how much more than clean images' noise and denoising move each request [B].

        That is the largest of its candidates' first scores, each less ``rank_weight`` times the
        logarithm of the candidate's rank by the gap. An attack that stops beyond the boundary has
        left its class the runner-up; the many classes far behind would only add to what clean
        images show by chance.
        """
        # Request by request, as the scores.
        return torch.cat(
            [self._suspicion_of_one(found.select(slice(i, i + 1))) for i in range(len(found))]
        )

    def _suspicion_of_one(self, found: Candidates) -> Tensor:
        gap = found.values[..., 0]
        ahead = (gap[:, None, :] - gap[:, :, None]) / (RANK_SOFTNESS * self.base_scale[0])
        rank = 0.5 + ahead.sigmoid().sum(2)  # a half is the candidate itself
        return (self._scores_of_one(found)[..., 0] - self.rank_weight * rank.log()).amax(1)

    def support(self, found: Candidates) -> Tensor:
        """Return the trusted mean of the candidates' log-probabilities on the strong views [B, C].

        How far a view is to be trusted depends on model and images: a blur that photographs
        bear ruins small pictures, and a mirrored digit is none.
        """
        return (found.support * self.trust).sum(2)

    def state(self) -> dict[str, Tensor]:
        """Return what was fitted, for the calibration file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> ConsistencyModel:
        """Return the model whose :meth:`state` is given.

        Raises:
            KeyError: A part of the state is missing.
        """
        return ConsistencyModel(**{f.name: state[f.name] for f in fields(ConsistencyModel)})


def _keys(found: Candidates) -> Tensor:
    """Return the number of each pair of label and candidate [B, C]."""
    return found.label[:, None] * 2**32 + found.classes


def _sums(values: Tensor, index: Tensor) -> Tensor:
    """Sum the rows of each group [P, 1 + J]."""
    return values.new_zeros(int(index.max()) + 1, values.shape[1]).index_add_(0, index, values)


def _mild_kept(found: Candidates) -> Tensor:
    """Return 1 where noise, a mild view or covering keeps the label, else 0, float64 [B, J].

    As far as the candidates know, which are the classes that the views speak for most.
    """
    return (found.moved.amax(1) < 0).double()


def _trust(kept: Tensor) -> Tensor:
    """Return the weight of each view, their sum is 1 [V], from which labels it keeps [B, V]."""
    power = (kept.mean(0) + TRUST_FLOOR) ** TRUST_POWER
    return power / power.sum()


def _weights(covariance: Tensor, taken: Tensor) -> Tensor:
    """Return weights of gap and shifts that give a score of unit variance.

    Each shift is taken less its regression on the gap, since a class far behind moves less; the
    remainders are summed, each times its weight in ``taken`` [J].
    """
    slope = covariance[1:, 0] / covariance[0, 0].clamp_min(1e-12)
    weights = torch.cat([-(slope * taken).sum()[None], taken])
    variance = (weights @ covariance @ weights).clamp_min(1e-12)
    return weights / variance.sqrt()
