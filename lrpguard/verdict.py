"""What the guard answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.figures import Panel, request_figure
from lrpguard.notebook import html_table, request_row
from lrpguard.restoration import UNKNOWN, Restoration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        restored_confidence: How far ``restored_label`` is to be trusted, in [0, 1]: the model's
            softmax probability where nothing was restored, that of the whitened image with
            :class:`lrpguard.Whitening`, and with :class:`lrpguard.Consensus` the label's share
            among the candidates, mean over copies and mild views; 0 where unknown [B].
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

    def plot(
        self,
        row: int = 0,
        *,
        image: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Figure:
        """Draw the maps of one request, and the pixels that its restoration changed.

        Args:
            row: Which request, from 0; negative ones count from the end.
            image: Its pixels [C, H, W] in [0, 1], to stand beside the maps.
            class_names: Name of each class, for the title.

        Raises:
            MissingDependencyError: matplotlib is not installed (the ``plots`` extra).
            ConfigurationError: There is no such request, the verdict holds no maps, the request
                is unguarded, or the image has another shape.
        """
        row = request_row(row, len(self))
        if self.relevance is None or self.relevance_variance is None:
            raise ConfigurationError(
                "the verdict holds no maps; ask for them: guard(images, maps=True)."
            )
        if self.status[row] == "unguarded":
            raise ConfigurationError(
                f"request {row} is unguarded, so there are no maps of it: {self.failure}"
            )
        changed = None if self.changed_pixels is None else self.changed_pixels[row]
        others = []
        if changed is not None and bool(changed.any()):
            white = changed.float()[None].cpu().numpy()
            others = [Panel(white, title="changed pixels", caption=f"{int(changed.sum())} white")]
        return request_figure(
            self.relevance[row].cpu().numpy(),
            self.relevance_variance[row].cpu().numpy(),
            image=None if image is None else image.detach().cpu().float().numpy(),
            others=others,
            title=self._title(row, class_names),
        )

    def _title(self, row: int, names: Sequence[str] | None) -> str:
        """Return class, logit, p-value and outcome of a request, in two lines."""

        def named(label: int) -> str:
            return str(label) if names is None else f"{label} {names[label]}"

        label, restored = int(self.label[row]), int(self.restored_label[row])
        status = self.status[row]
        outcome = f"{status}: class {named(restored)}" if status == "restored" else status
        return (
            f"class {named(label)}, logit {float(self.logits[row, label]):.2f}\n"
            f"p-value {float(self.p_value[row]):.3g}, {outcome}"
        )

    def _repr_html_(self) -> str:
        """Show the verdicts in a notebook, as a table."""
        rows = [
            [
                str(i),
                str(record["label"]),
                _text(record["confidence"]),
                _text(record["p_value"]),
                record["status"],
                "unknown" if record["restored_label"] == UNKNOWN else str(record["restored_label"]),
                _text(record["restored_confidence"]),
            ]
            for i, record in enumerate(self.to_dicts())
        ]
        heads = ("request", "class", "confidence", "p-value", "status", "answer", "its confidence")
        flagged = int(self.flagged.sum())
        failure = "" if self.failure is None else f"; the guard failed: {self.failure}"
        return html_table(heads, rows, caption=f"{flagged} of {len(self)} flagged{failure}")


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


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
