"""What a guard answers: the verdict, flagged requests restored in the way that it is set to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lrpguard.consensus import Consensus, check_proposes, propose, restored
from lrpguard.detector import CombinedDetector
from lrpguard.errors import ConfigurationError
from lrpguard.judging import Judged
from lrpguard.restoration import Restoration, Whitening, whiten
from lrpguard.verdict import Verdict, judged, with_restoration

Restoring = Consensus | Whitening | Literal["auto"] | None
"""How flagged requests are restored; ``"auto"`` goes with the detector, None restores none."""


def check_restoring(how: object) -> None:
    """Refuse what is no way of restoration.

    Raises:
        ConfigurationError: It is none of ``Restoring``.
    """
    if how not in ("auto", None) and not isinstance(how, Consensus | Whitening):
        raise ConfigurationError(
            f"restoration is {how!r}; there are 'auto', Consensus(), Whitening() and None."
        )


def answer(
    model: nn.Module,
    images: Tensor,
    found: Judged,
    *,
    maps: bool,
    how: Restoring,
    key: bytes,
    chunk: Callable[[Tensor], int],
) -> Verdict:
    """Return the verdict on judged requests, with the flagged ones restored.

    Args:
        model: Checked module.
        images: Checked images of the batch, on the model's device [B, C, H, W].
        found: What was found of them.
        maps: Whether the verdict shall hold maps.
        how: How flagged requests are restored.
        key: Noise key.
        chunk: Largest number of copies of such images in one pass.

    Raises:
        ConfigurationError: The detector proposes no other label, which consensus needs.
    """
    evidence = found.evidence
    verdict = judged(evidence, found.anomaly, found.p_value, found.flagged)
    if maps:
        verdict = replace(
            verdict,
            relevance=evidence.relevance_mean,
            relevance_variance=evidence.relevance_variance,
            changed_pixels=torch.zeros_like(evidence.relevance_mean, dtype=torch.bool),
        )
    rows = verdict.flagged.nonzero().flatten()
    if how is None or len(rows) == 0:
        return verdict
    if how == "auto":
        learnt = isinstance(found.at.detector, CombinedDetector)
        how = Consensus() if learnt else Whitening()
    if isinstance(how, Consensus):
        return with_restoration(verdict, rows, _by_consensus(found, rows, how))
    restoration = whiten(
        model,
        images[rows],
        evidence.select(rows),
        whitening=how,
        smoothing=found.at.smoothing,
        key=key,
        chunk=chunk(images),
    )
    return with_restoration(verdict, rows, restoration)


def _by_consensus(found: Judged, rows: Tensor, how: Consensus) -> Restoration:
    detector = found.at.detector
    check_proposes(how, detector.name)
    assert isinstance(detector, CombinedDetector)
    readings = found.readings.select(rows.cpu())
    assert readings.candidates is not None
    anomaly, painted = found.anomaly[rows.cpu()], detector.painted(readings)
    proposal = propose(readings.candidates, detector.consistency, anomaly, painted)
    accepted = found.replacement(proposal.evidence) <= how.harm
    return restored(proposal, accepted, found.evidence.select(rows))
