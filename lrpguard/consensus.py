"""Restoration by consensus: the class that noise and denoised views fall back to.

It costs no pass through the model beyond those that the detector has read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrpguard.consistency import Candidates, ConsistencyModel
from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.restoration import UNKNOWN, Restoration

LEAD_WEIGHT = 0.3
"""Weight of a candidate's lead in logits, against one standard deviation of its consistency."""

VOTE_WEIGHT = 0.5
"""Weight of the log-ratio of candidate to label in the evidence for replacing the label."""

VOTE_LIMIT = 4.0
"""Largest log-ratio that counts: a strong attack keeps its label on every view."""


@dataclass(frozen=True)
class Consensus:
    """Replace the label of a flagged request by that of the consensus, on calibrated evidence.

    Args:
        harm: Largest share of clean requests whose label may be replaced, in (0, 1). A flagged
            request with less evidence than that is answered ``unknown``.

    Raises:
        ConfigurationError: ``harm`` is out of its range.
    """

    harm: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.harm < 1:
            raise ConfigurationError(f"harm is {self.harm}; it must lie in (0, 1), e.g. 0.01.")


@dataclass(frozen=True)
class Proposal:
    """The class that each request is most likely of, if not of the predicted one.

    Attributes:
        label: That class [B].
        evidence: How strongly it is supported; compared with clean images alone, float64 [B].
        confidence: Its share of the softmax of label and candidates, mean over the noisy copies'
            mean and the views, in [0, 1], float64 [B].
    """

    label: Tensor
    evidence: Tensor
    confidence: Tensor


def propose(found: Candidates, model: ConsistencyModel) -> Proposal:
    """Return the proposal for each request, flagged or not.

    The candidate z that maximises ``consistency_z + 0.3 (lead of z)`` is proposed, where the lead
    is its mean logit less the largest mean logit of all, 0 at most. The evidence for it is
    ``consistency_z + 0.5 log(p_z / p_y)``, the logarithm held within 4.

    Args:
        found: Candidates of the requests.
        model: Fitted to clean images.
    """
    consistency = model.scores(found)
    moved = found.values[..., :1] + found.values[..., 1:]  # f_z - f_y on each view [B, C, J]
    odds = moved.mean(2)
    lead = odds - odds.amax(1, keepdim=True).clamp_min(0)
    best = (consistency + LEAD_WEIGHT * lead).argmax(1, keepdim=True)
    own = torch.zeros_like(moved[:, :1])
    share = torch.cat([own, moved], dim=1).softmax(1).mean(2)  # label first [B, 1 + C]
    chosen = share[:, 1:].gather(1, best).squeeze(1)
    vote = (chosen.clamp_min(1e-12) / share[:, 0].clamp_min(1e-12)).log()
    return Proposal(
        label=found.classes.gather(1, best).squeeze(1),
        evidence=consistency.gather(1, best).squeeze(1)
        + VOTE_WEIGHT * vote.clamp(-VOTE_LIMIT, VOTE_LIMIT),
        confidence=chosen,
    )


def restored(proposal: Proposal, accepted: Tensor, evidence: Evidence) -> Restoration:
    """Return the restoration of requests whose proposals are accepted or not.

    The logits are the model's own, those of label and restored class exchanged.

    Args:
        proposal: What is proposed for each.
        accepted: Whether the evidence suffices [B].
        evidence: Of the same requests.
    """
    device = evidence.logits.device
    known, label = accepted.to(device), proposal.label.to(device)
    pair = torch.stack([evidence.label, label], dim=1)
    logits = evidence.logits.scatter(1, pair, evidence.logits.gather(1, pair.flip(1)))
    return Restoration(
        label=torch.where(known, label, UNKNOWN),
        logits=logits,
        confidence=torch.where(known, proposal.confidence.float().to(device), 0.0),
        changed_pixels=torch.zeros_like(evidence.relevance_mean, dtype=torch.bool),
        rounds=torch.zeros_like(label),
    )
