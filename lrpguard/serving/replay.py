"""Reproduces the scores of an audit trail from the images, which are found by their hash."""

from __future__ import annotations

from collections import Counter
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


@dataclass(frozen=True)
class Divided:
    """The verdicts of a trail, by whether this guard gave them.

    Attributes:
        mine: Those that it gave.
        others: Number of the others, by what is another's and which it is, e.g.
            ``("calibration", "4669...")``.
    """

    mine: tuple[Mapping[str, Any], ...]
    others: Mapping[tuple[str, str | None], int]


def by_hash(images: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return images [C, H, W] by the hash under which the trail knows them."""
    return {image_digest(image, b"").hex(): image for image in images}


def guarded_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the verdicts of a trail that a guard gave."""
    for record in records:
        if record.get("event") == "verdict" and record.get("score") is not None:
            yield record


def divided(records: Iterable[Mapping[str, Any]], opened: Opened) -> Divided:
    """Tell the lines of a guard from those of others: a trail goes on over a recalibration.

    Args:
        records: Verdicts of a trail, whose chain is verified.
        opened: The guard.

    Raises:
        CalibrationMismatchError: No line is of this model, calibration and key.
    """
    guard = {
        "fingerprint": opened.calibration.fingerprint,
        "calibration": opened.calibration_id,
        "key": key_id(opened.key),
    }
    mine: list[Mapping[str, Any]] = []
    others: Counter[tuple[str, str | None]] = Counter()
    for record in guarded_lines(records):
        other = next((name for name, value in guard.items() if record[name] != value), None)
        if other is None:
            mine.append(record)
        else:
            others[other, record[other]] += 1
    if others and not mine:
        name, value = next(iter(others))
        raise CalibrationMismatchError(
            f"none of the {others.total()} verdicts is this guard's: the first was judged with the "
            f"{name} {value}; this guard has {guard[name]}. Give the settings that were in force "
            "then."
        )
    return Divided(tuple(mine), others)


def replay(
    records: Iterable[Mapping[str, Any]],
    images: Mapping[str, Tensor],
    opened: Opened,
    *,
    tolerance: float,
) -> Iterator[Replayed]:
    """Judge again the lines of this guard whose images are there.

    Args:
        records: Verdicts of a trail, whose chain is verified.
        images: Images by hash.
        opened: The guard.
        tolerance: Largest difference of a score that is the same.

    Raises:
        CalibrationMismatchError: No line is of this model, calibration and key; or one is of early
            stopping, which this guard has not.
    """
    for record in divided(records, opened).mine:
        image = images.get(record["image"])
        if image is None:
            continue
        _check_stopping(record, opened)
        early = record.get("stopping", False)
        verdict = opened.guard(image[None], copies=None if early else record["copies"])
        now = verdict.to_dicts()[0]
        score, p_value = now["score"], now["p_value"]
        difference = float("inf") if score is None else abs(score - record["score"])
        same = difference <= tolerance and all(now[name] == record[name] for name in _COMPARED)
        if tolerance == 0:
            same = same and p_value == record["p_value"]
        yield Replayed(record["seq"], record["request"], record["row"], difference, same)


def _check_stopping(record: Mapping[str, Any], opened: Opened) -> None:
    if record.get("stopping", False) and not opened.guard.stopping:
        raise CalibrationMismatchError(
            f"line {record['seq']} was judged with early stopping; set guard.stopping = true."
        )
