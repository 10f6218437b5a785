"""Reproduces the scores of an audit trail from the images, which are found by their hash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrpguard.errors import CalibrationMismatchError
from lrpguard.noise import image_digest
from lrpguard.serving.opening import Opened
from lrpguard.serving.selftest import key_id

_COMPARED = ("label", "flagged", "copies")


@dataclass(frozen=True)
class Replayed:
    """One line of a trail, judged again.

    Attributes:
        seq: Its place in the trail.
        request: Its request.
        row: Its image within the request.
        difference: Difference of the score.
        same: Whether score, p-value, label and flag are the same, the first two within tolerance.
    """

    seq: int
    request: str
    row: int
    difference: float
    same: bool


def by_hash(images: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return images [C, H, W] by the hash under which the trail knows them."""
    return {image_digest(image, b"").hex(): image for image in images}


def guarded_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the verdicts of a trail that a guard gave."""
    for record in records:
        if record.get("event") == "verdict" and record.get("score") is not None:
            yield record


def replay(
    records: Iterable[Mapping[str, Any]],
    images: Mapping[str, Tensor],
    opened: Opened,
    *,
    tolerance: float,
) -> Iterator[Replayed]:
    """Judge again the lines whose images are there.

    Args:
        records: Verdicts of a trail, whose chain is verified.
        images: Images by hash.
        opened: The guard.
        tolerance: Largest difference of a score that is the same.

    Raises:
        CalibrationMismatchError: A line is of another model, calibration or key, or of early
            stopping, which this guard has not.
    """
    for record in guarded_lines(records):
        image = images.get(record["image"])
        if image is None:
            continue
        _check_guard(record, opened)
        early = record.get("stopping", False)
        verdict = opened.guard(image[None], copies=None if early else record["copies"])
        now = verdict.to_dicts()[0]
        score, p_value = now["score"], now["p_value"]
        difference = float("inf") if score is None else abs(score - record["score"])
        same = difference <= tolerance and all(now[name] == record[name] for name in _COMPARED)
        if tolerance == 0:
            same = same and p_value == record["p_value"]
        yield Replayed(record["seq"], record["request"], record["row"], difference, same)


def _check_guard(record: Mapping[str, Any], opened: Opened) -> None:
    mine = {
        "fingerprint": opened.calibration.fingerprint,
        "calibration": opened.calibration_id,
        "key": key_id(opened.key),
    }
    for name, value in mine.items():
        if record[name] != value:
            raise CalibrationMismatchError(
                f"line {record['seq']} was judged with the {name} {record[name]}; this guard has "
                f"{value}. Give the settings that were in force then."
            )
    if record.get("stopping", False) and not opened.guard.stopping:
        raise CalibrationMismatchError(
            f"line {record['seq']} was judged with early stopping; set guard.stopping = true."
        )
