"""Each score a pure function of the evidence; one registry.

To add one: write the function, add its line to ``SCORES``, test it on a hand-computed value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.filters import gaussian

ROUGHNESS_SIGMA = 1.0
"""Blur, in pixels, that tells the rough part of a relevance map from the smooth one."""


@dataclass(frozen=True)
class Score:
    """A named score.

    Attributes:
        name: Name in the registry.
        function: From evidence to one float64 a request [B].
    """

    name: str
    function: Callable[[Evidence], Tensor]


def relevance_variance(evidence: Evidence) -> Tensor:
    """Mean over the pixels of the relevance's variance over the copies [B].

    The paper's score, in units of the logit squared. Source: Raulf et al. 2021, section 3.2.
    """
    return evidence.relevance_variance.double().mean((1, 2))


def relative_variance(evidence: Evidence) -> Tensor:
    """Logarithm of the paper's score over the squared clean logit it explains [B].

    How much the relevance varies for each unit of what it explains; the scale of the
    logits cancels.
    """
    logit = evidence.explained_logit.double()
    return torch.log(_positive(relevance_variance(evidence))) - torch.log(_positive(logit**2))


def relevance_spread(evidence: Evidence) -> Tensor:
    """Logarithm of the spread of the copies' summed relevance over the clean logit's size [B]."""
    spread = evidence.relevance_total.double().std(1)
    return torch.log(_positive(spread)) - torch.log(_positive(evidence.explained_logit.abs()))


def label_disagreement(evidence: Evidence) -> Tensor:
    """Share of the copies whose predicted class is not the explained one, in [0, 1] [B]."""
    votes = evidence.noisy_logits.argmax(2)
    return (votes != evidence.label[:, None]).double().mean(1)


def max_logit(evidence: Evidence) -> Tensor:
    """Largest clean logit [B]."""
    return evidence.logits.double().amax(1)


def log_odds_shift(evidence: Evidence) -> Tensor:
    """Largest mean gain of another class on the explained one when noise is added [B].

    For each other class z the mean over the copies of ``(f_z - f_y)(x + noise) - (f_z - f_y)(x)``;
    the largest of these. An adversarial input tends to fall back towards its true class.
    Source: Roth, Kilcher, Hofmann 2019, equation (6), without their class-wise scaling.
    """
    clean = _odds_against(evidence.logits.double(), evidence.label)
    noisy = _odds_against(evidence.noisy_logits.double().mean(1), evidence.label)
    shift = (noisy - clean).scatter(1, evidence.label[:, None], -torch.inf)
    return shift.amax(1)


def margin(evidence: Evidence) -> Tensor:
    """Clean logit of the explained class less the largest other one [B].

    An attack of least change stops just beyond the boundary, where few clean images lie.
    """
    logits = evidence.logits.double()
    others = logits.scatter(1, evidence.label[:, None], -torch.inf)
    return evidence.explained_logit.double() - others.amax(1)


def chroma_noise(evidence: Evidence) -> Tensor:
    """Noise floor of the image's colours, see :func:`lrpguard.pixels.chroma_noise` [B]."""
    return evidence.chroma_noise.double()


def line_noise(evidence: Evidence) -> Tensor:
    """Noise floor along one axis, see :func:`lrpguard.pixels.line_noise` [B]."""
    return evidence.line_noise.double()


def place_roughness(evidence: Evidence) -> Tensor:
    """Roughness of the roughest place, see :func:`lrpguard.pixels.place_roughness` [B]."""
    return evidence.place_roughness.double()


def relevance_roughness(evidence: Evidence) -> Tensor:
    """Logarithm of the share of the mean relevance map that a blur takes away [B].

    The norm of the map less its Gaussian blur (1 pixel), over the norm of the map. On clean
    images relevance follows edges; on perturbed ones it is more of a speckle.
    """
    maps = evidence.relevance_mean.float()
    rough = (maps - gaussian(maps, ROUGHNESS_SIGMA)).double().flatten(1).norm(dim=1)
    whole = maps.double().flatten(1).norm(dim=1)
    return torch.log(_positive(rough)) - torch.log(_positive(whole))


def _odds_against(logits: Tensor, label: Tensor) -> Tensor:
    """Return ``f_z - f_y`` for the label y and every class z [B, K]."""
    return logits - logits.gather(1, label[:, None])


def _positive(values: Tensor) -> Tensor:
    """Keep values off zero, where their logarithm would be infinite."""
    return values.double().clamp_min(1e-30)


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        score.name: score
        for score in (
            Score("relevance_variance", relevance_variance),
            Score("relative_variance", relative_variance),
            Score("relevance_spread", relevance_spread),
            Score("label_disagreement", label_disagreement),
            Score("max_logit", max_logit),
            Score("log_odds_shift", log_odds_shift),
            Score("margin", margin),
            Score("chroma_noise", chroma_noise),
            Score("line_noise", line_noise),
            Score("place_roughness", place_roughness),
            Score("relevance_roughness", relevance_roughness),
        )
    }
)
"""Every score, by name."""


def score_matrix(evidence: Evidence, names: Sequence[str]) -> Tensor:
    """Return the named scores of each request, float64 on the CPU [B, len(names)].

    Raises:
        ConfigurationError: A name is not in the registry.
    """
    unknown = [name for name in names if name not in SCORES]
    if unknown:
        raise ConfigurationError(f"no score is named {unknown}; there are {sorted(SCORES)}.")
    # Request by request: a reduction over a larger batch may round differently.
    requests = [evidence.select(slice(i, i + 1)) for i in range(len(evidence))]
    rows = [torch.cat([SCORES[name].function(one) for name in names]) for one in requests]
    return torch.stack(rows).cpu()
