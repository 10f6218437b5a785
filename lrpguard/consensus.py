"""Restoration by consensus: the class that noise and denoised views fall back to.

It costs no pass through the model beyond those that the detector has read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lrpguard.consistency import Candidates, ConsistencyModel
from lrpguard.detector import needs_fit
from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.restoration import UNKNOWN, Restoration

SUPPORT_WEIGHT = 0.5
"""Weight of a candidate's log-probability on the strong views, against one unit of consistency."""

VOTE_WEIGHT = 0.5
"""Weight of the log-ratio of candidate to label in the evidence for replacing the label."""

VOTE_LIMIT = 4.0
"""Largest log-ratio that counts: a strong attack keeps its label on every view."""

ANOMALY_LIMIT = 4.0
"""Largest half of an anomaly that counts, about what 1 in 50 clean images reach. More says that a
request is unlike clean data, which a noisy camera's is, too, and not that its label is wrong."""


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


def check_proposes(how: object, detector: str) -> None:
    """Refuse consensus with a detector that proposes no other label.

    Args:
        how: The way of restoration.
        detector: Name of the detector.

    Raises:
        ConfigurationError: There is no such detector, or it proposes none.
    """
    if isinstance(how, Consensus) and not needs_fit(detector):
        raise ConfigurationError(
            f"restoration is {how}, and the calibration is one of the {detector!r} detector, "
            "which proposes no other label. Calibrate with detector='combined', or restore by "
            "Whitening()."
        )


@dataclass(frozen=True)
class Proposal:
    """The class that each request is most likely of, if not of the predicted one.

    Attributes:
        label: That class [B].
        evidence: How strongly it is supported; compared with clean images alone, float64 [B].
        confidence: Its share of the softmax of label and candidates, mean over the noisy copies'
            mean and the mild views, in [0, 1], float64 [B].
    """

    label: Tensor
    evidence: Tensor
    confidence: Tensor


def propose(
    found: Candidates, model: ConsistencyModel, anomaly: Tensor, painted: Tensor
) -> Proposal:
    """Return the proposal for each request, flagged or not.

    Consistency is that of noise and denoised views or, where a place seems painted, of its
    covering if that is larger. The candidate z that maximises
    ``consistency_z + 0.5 log(support_z)`` is proposed. The evidence for it is
    ``consistency_z + 0.5 log(p_z / p_y) + anomaly / 2``, the logarithm held within 4, the last
    term at most 4: how clearly views and noise speak for z, and how unlike clean data the request
    is altogether (half a squared norm is a log-likelihood ratio).

    Args:
        found: Candidates of the requests.
        model: Fitted to clean images.
        anomaly: Anomaly scores of the combined detector [B].
        painted: Whether a place of the request is suspiciously rough, so that its covering
            counts, too, bool [B].
    """
    # Request by request: over a larger batch a mean may round differently.
    parts = [
        _propose_one(found.select(slice(i, i + 1)), model, anomaly[i : i + 1], bool(painted[i]))
        for i in range(len(found))
    ]
    return Proposal(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Proposal))
    )


def _propose_one(
    found: Candidates, model: ConsistencyModel, anomaly: Tensor, painted: bool
) -> Proposal:
    scores = model.scores(found)
    consistency = scores.amax(2) if painted else scores[..., 0]
    support = model.support(found)
    best = (consistency + SUPPORT_WEIGHT * support).argmax(1, keepdim=True)
    moved = found.moved
    own = torch.zeros_like(moved[:, :1])
    share = torch.cat([own, moved], dim=1).softmax(1).mean(2)  # label first [B, 1 + C]
    chosen = share[:, 1:].gather(1, best).squeeze(1)
    vote = (chosen.clamp_min(1e-12) / share[:, 0].clamp_min(1e-12)).log()
    return Proposal(
        label=found.classes.gather(1, best).squeeze(1),
        evidence=consistency.gather(1, best).squeeze(1)
        + VOTE_WEIGHT * vote.clamp(-VOTE_LIMIT, VOTE_LIMIT)
        + (anomaly / 2).clamp(max=ANOMALY_LIMIT),
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
