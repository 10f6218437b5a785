"""What became of one set of attempts, and the counts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrpguard.evaluation.judging import ALPHAS
from lrpguard.guard import Guard

Row = Mapping[str, Any]
Counts = tuple[int, int]
"""How many of how many."""


@dataclass(frozen=True)
class Judged:
    """What became of one set of attempts, one entry an attacked image.

    Attributes:
        fooled: Whether the model is wrong [n].
        p_value: The guard's p-value [n].
        flagged: Whether the guard flags it, at its own alpha [n].
        final: The guard's final label, -1 where unknown [n].
        labels: True classes [n].
    """

    fooled: Tensor
    p_value: Tensor
    flagged: Tensor
    final: Tensor
    labels: Tensor

    def passed(self, alpha: float) -> Tensor:
        """Return which attempts fool the model and are not flagged at alpha [n]."""
        return self.fooled & (self.p_value > alpha)


def judge(guard: Guard, images: Tensor, labels: Tensor) -> Judged:
    """Return the guard's judgement of images of whole levels."""
    verdict = guard(images)
    return Judged(
        verdict.label != labels, verdict.p_value, verdict.flagged, verdict.restored_label, labels
    )


def worst(found: Sequence[Judged]) -> Judged:
    """Return of each image the attempt that fools the model with the largest p-value.

    Where none fools it, that of the largest p-value.
    """
    p_value = torch.stack([judged.p_value for judged in found])
    fooled = torch.stack([judged.fooled for judged in found])
    flagged = torch.stack([judged.flagged for judged in found])
    final = torch.stack([judged.final for judged in found])
    best = (p_value + 2 * fooled.double()).argmax(0, keepdim=True)  # fooled first
    return Judged(
        fooled=fooled.gather(0, best)[0],
        p_value=p_value.gather(0, best)[0],
        flagged=flagged.gather(0, best)[0],
        final=final.gather(0, best)[0],
        labels=found[0].labels,
    )


def attack_counts(judged: Judged) -> dict[str, Counts]:
    """Return the counts of one set of attempts."""
    n, fooled = len(judged.fooled), judged.fooled
    hits = int(fooled.sum())
    right = judged.final == judged.labels
    counts = {"fooled": (hits, n), "restored": (int((right & fooled).sum()), hits)}
    for alpha in ALPHAS:
        passed = int(judged.passed(alpha).sum())
        counts[f"flagged_{alpha:.0%}"] = (hits - passed, hits)
        counts[f"sr_{alpha:.0%}"] = (passed, n)
    return counts


def rate(row: Row, name: str = "sr_5%") -> float:
    """Return a row's share; NaN of nothing."""
    hits, n = row[name]
    return float(hits) / float(n) if n else float("nan")
