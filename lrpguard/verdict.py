"""What the guard answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lrpguard.evidence import Evidence
from lrpguard.restoration import UNKNOWN, Restoration

Status = Literal["clean", "flagged", "restored", "unknown", "unguarded"]
"""Outcome of one request.

``clean``: not flagged. ``flagged``: flagged, no restoration wanted. ``restored``: flagged,
and another label was found. ``unknown``: flagged, and no other label was found.
``unguarded``: the guard failed and the policy is to fail open; the answer is the bare model's.
"""


@dataclass(frozen=True)
class Verdict:
    """The guard's answer for a batch.

    Attributes:
        label: The model's own prediction [B].
        logits: The model's own logits [B, K].
        p_value: Conformal p-value; small is suspicious; NaN where unguarded [B].
        score: Anomaly score; NaN where unguarded [B].
        flagged: Whether ``p_value <= alpha`` [B].
        restored_label: Label to use: the restored one where found, -1 where unknown, the
            model's own elsewhere [B].
        restored_confidence: Softmax probability of ``restored_label``; 0 where unknown [B].
        restored_logits: Logits behind ``restored_label``; the model's own where nothing was
            restored [B, K].
        copies: Noisy copies that it took; 0 where unguarded, int64 [B].
        status: Outcome of each request.
        relevance: Mean relevance map, where maps were asked for [B, H, W].
        relevance_variance: Variance map, where maps were asked for [B, H, W].
        changed_pixels: Pixels changed by the restoration, where maps were asked for [B, H, W].
        failure: Why the guard failed, where requests are unguarded.
    """

    label: Tensor
    logits: Tensor
    p_value: Tensor
    score: Tensor
    flagged: Tensor
    restored_label: Tensor
    restored_confidence: Tensor
    restored_logits: Tensor
    copies: Tensor
    status: tuple[Status, ...]
    relevance: Tensor | None = None
    relevance_variance: Tensor | None = None
    changed_pixels: Tensor | None = None
    failure: str | None = None

    def __len__(self) -> int:
        """Return the number of requests B."""
        return len(self.status)

    @staticmethod
    def concatenate(parts: list[Verdict]) -> Verdict:
        """Join the verdicts of several batches of equally sized requests, in order."""
        failures = [part.failure for part in parts if part.failure is not None]
        return Verdict(
            **{name: _joined([getattr(part, name) for part in parts]) for name in _TENSORS},
            status=tuple(status for part in parts for status in part.status),
            failure="; ".join(dict.fromkeys(failures)) or None,
        )

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one JSON-ready record a request, without logits and maps.

        A p-value, score or confidence that is no finite number (unguarded) is None.
        """
        return [
            {
                "label": int(self.label[i]),
                "confidence": _number(self.logits[i].double().softmax(0)[self.label[i]]),
                "p_value": _number(self.p_value[i]),
                "score": _number(self.score[i]),
                "flagged": bool(self.flagged[i]),
                "restored_label": int(self.restored_label[i]),
                "restored_confidence": _number(self.restored_confidence[i]),
                "copies": int(self.copies[i]),
                "status": status,
            }
            for i, status in enumerate(self.status)
        ]


def judged(evidence: Evidence, anomaly: Tensor, p_value: Tensor, flagged: Tensor) -> Verdict:
    """Return the verdict before any restoration."""
    device = evidence.logits.device
    own = evidence.logits.float().softmax(1).gather(1, evidence.label[:, None]).squeeze(1)
    status: list[Status] = ["flagged" if flag else "clean" for flag in flagged.tolist()]
    return Verdict(
        label=evidence.label,
        logits=evidence.logits,
        p_value=p_value.to(device),
        score=anomaly.to(device),
        flagged=flagged.to(device),
        restored_label=evidence.label,
        restored_confidence=own,
        restored_logits=evidence.logits,
        copies=torch.full_like(evidence.label, evidence.n),
        status=tuple(status),
    )


def with_restoration(verdict: Verdict, rows: Tensor, restoration: Restoration) -> Verdict:
    """Enter the restoration of the flagged rows into the verdict."""
    known = restoration.label != UNKNOWN
    status: list[Status] = list(verdict.status)
    for row, is_known in zip(rows.tolist(), known.tolist(), strict=True):
        status[row] = "restored" if is_known else "unknown"
    changed = verdict.changed_pixels
    return replace(
        verdict,
        restored_label=verdict.restored_label.index_copy(0, rows, restoration.label),
        restored_confidence=verdict.restored_confidence.index_copy(0, rows, restoration.confidence),
        restored_logits=verdict.restored_logits.index_copy(
            0, rows[known], restoration.logits[known]
        ),
        status=tuple(status),
        changed_pixels=None
        if changed is None
        else changed.index_copy(0, rows, restoration.changed_pixels),
    )


def unguarded(logits: Tensor, failure: str) -> Verdict:
    """Return the bare model's answer, marked."""
    batch = len(logits)
    unguarded: Status = "unguarded"
    label = logits.argmax(1)
    nothing = torch.full((batch,), torch.nan, dtype=torch.float64, device=logits.device)
    return Verdict(
        label=label,
        logits=logits,
        p_value=nothing,
        score=nothing,
        flagged=torch.zeros(batch, dtype=torch.bool, device=logits.device),
        restored_label=label,
        restored_confidence=logits.float().softmax(1).gather(1, label[:, None]).squeeze(1),
        restored_logits=logits,
        copies=torch.zeros_like(label),
        status=tuple(unguarded for _ in range(batch)),
        failure=failure,
    )


def with_empty_maps(verdict: Verdict, images: Tensor) -> Verdict:
    """Give an unguarded verdict maps of NaN, so that it joins the others of its batch."""
    nothing = torch.full_like(images[:, 0], torch.nan, dtype=torch.float32)
    return replace(
        verdict,
        relevance=nothing,
        relevance_variance=nothing,
        changed_pixels=torch.zeros_like(nothing, dtype=torch.bool),
    )


_TENSORS = tuple(f.name for f in fields(Verdict) if f.name not in ("status", "failure"))


def _joined(tensors: list[Tensor | None]) -> Any:
    """Join tensors; None where a part has none, such as the maps of an unguarded request."""
    whole = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(whole) if len(whole) == len(tensors) else None


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
