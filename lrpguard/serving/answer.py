"""What the service answers: the outcome of each image, after the policy on flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lrpguard.restoration import UNKNOWN
from lrpguard.serving.config import OnFlag
from lrpguard.serving.refusal import RefusedError
from lrpguard.verdict import Status, Verdict

Unguarded = Literal["overload", "deadline", "guard_failure", "shadow"]
"""Why an answer is the bare model's."""


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of one image, float32 or bool, [H, W] each, on the CPU."""

    relevance: Tensor
    relevance_variance: Tensor
    changed_pixels: Tensor


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        label: The label to use; None where the policy withholds one.
        logits: The logits behind it.
        model_label: The model's own prediction.
        flagged: Whether the guard flagged the image.
        p_value: Conformal p-value; None where unguarded.
        score: Anomaly score; None where unguarded.
        restored_label: The restored label, the model's own where not flagged, None where unknown.
        restored_logits: Logits behind it.
        status: The guard's word.
        copies: Noisy copies that were made; 0 where unguarded; None where it is withheld.
        stopping: Whether early stopping chose their number, and so the image's content.
        reason: Why it is unguarded, None where it is guarded.
        maps: Maps, where asked for.
    """

    label: int | None
    logits: tuple[float, ...]
    model_label: int
    flagged: bool
    p_value: float | None
    score: float | None
    restored_label: int | None
    restored_logits: tuple[float, ...]
    status: Status
    copies: int | None
    stopping: bool = False
    reason: Unguarded | None = None
    maps: Maps | None = None

    @property
    def unguarded(self) -> bool:
        """Whether no guard has judged this answer."""
        return self.status == "unguarded"


def judged(verdict: Verdict, *, stopping: bool = False) -> tuple[Outcome, ...]:
    """Return the outcomes of a verdict.

    Args:
        verdict: The verdict.
        stopping: Whether it was made with early stopping.

    Raises:
        RefusedError: The model has no finite logits, so that there is nothing to answer.
    """
    check_finite(verdict.logits)
    logits, restored = verdict.logits.tolist(), verdict.restored_logits.tolist()
    return tuple(
        Outcome(
            label=int(verdict.label[i]),
            logits=tuple(logits[i]),
            model_label=int(verdict.label[i]),
            flagged=bool(verdict.flagged[i]),
            p_value=_finite(verdict.p_value[i]),
            score=_finite(verdict.score[i]),
            restored_label=_known(int(verdict.restored_label[i])),
            restored_logits=tuple(restored[i]),
            status=status,
            copies=int(verdict.copies[i]),
            stopping=stopping and status != "unguarded",
            reason="guard_failure" if status == "unguarded" else None,
            maps=_maps(verdict, i),
        )
        for i, status in enumerate(verdict.status)
    )


def bare(logits: Tensor, reason: Unguarded) -> tuple[Outcome, ...]:
    """Return the bare model's answer [B, K], marked unguarded.

    Raises:
        RefusedError: The model has no finite logits.
    """
    check_finite(logits)
    return tuple(
        Outcome(
            label=int(row.argmax()),
            logits=tuple(row.tolist()),
            model_label=int(row.argmax()),
            flagged=False,
            p_value=None,
            score=None,
            restored_label=int(row.argmax()),
            restored_logits=tuple(row.tolist()),
            status="unguarded",
            copies=0,
            reason=reason,
        )
        for row in logits
    )


def apply_policy(outcomes: tuple[Outcome, ...], on_flag: OnFlag) -> tuple[Outcome, ...]:
    """Return the outcomes as the policy on flags lets them out.

    ``annotate`` lets the model's answer stand. ``restore`` puts the restored label and logits in
    its place, and no label where none was found.

    Raises:
        RefusedError: Under ``reject``, where an image is flagged.
    """
    flagged = [i for i, outcome in enumerate(outcomes) if outcome.flagged]
    if flagged and on_flag == "reject":
        raise RefusedError(
            422, "flagged", f"the guard flagged image(s) {flagged[:8]} of this request as unusual."
        )
    if not flagged or on_flag == "annotate":
        return outcomes
    return tuple(
        replace(o, label=o.restored_label, logits=o.restored_logits) if o.flagged else o
        for o in outcomes
    )


def withhold_copies(outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
    """Return the outcomes without the numbers of copies that tell how clear a case was."""
    return tuple(replace(o, copies=None) if o.stopping else o for o in outcomes)


def check_finite(logits: Tensor) -> None:
    """Refuse logits that are NaN or infinite: they are no prediction.

    Raises:
        RefusedError: They are.
    """
    if not bool(torch.isfinite(logits).all()):
        raise RefusedError(500, "model_output", "the model returned NaN or infinite logits.")


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _known(label: int) -> int | None:
    return None if label == UNKNOWN else label


def _maps(verdict: Verdict, row: int) -> Maps | None:
    relevance, variance = verdict.relevance, verdict.relevance_variance
    changed = verdict.changed_pixels
    if relevance is None or variance is None or changed is None:
        return None
    if not bool(torch.isfinite(relevance[row]).all()):  # unguarded
        return None
    return Maps(relevance[row].float().cpu(), variance[row].float().cpu(), changed[row].cpu())
