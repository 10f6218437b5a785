"""Rows of a run as arrays, with what is counted of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lrpguard.errors import EvaluationError

GUARD = "guard"
"""What our own detector is called beside the baselines."""

Row = Mapping[str, Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Clean:
    """The untouched test images.

    Attributes:
        digests: Which images, N of them.
        labels: True classes [N].
        predicted: The model's classes [N].
        final: Classes after the guard, -1 where unknown [N].
        p_values: p-values of each detector [N].
        scores: Anomaly scores of each detector [N].
        restored: Classes that other restorations give when told, -1 where none, by name [N].
    """

    digests: tuple[str, ...]
    labels: Ints
    predicted: Ints
    final: Ints
    p_values: Mapping[str, Floats]
    scores: Mapping[str, Floats]
    restored: Mapping[str, Ints] = field(default_factory=dict)

    @property
    def correct(self) -> Bools:
        """Which images the model has right [N]."""
        return np.asarray(self.predicted == self.labels)


@dataclass(frozen=True, eq=False)
class Attacked:
    """The same images after an attack, or a control.

    Attributes:
        name: Its name.
        positions: Position of each of the M images among the clean ones [M].
        labels: True classes [M].
        predicted: The model's classes [M].
        final: Classes after the guard, -1 where unknown [M].
        p_values: p-values of each detector [M].
        scores: Anomaly scores of each detector [M].
        restored: Classes that other restorations give when told, -1 where none, by name [M].
    """

    name: str
    positions: Ints
    labels: Ints
    predicted: Ints
    final: Ints
    p_values: Mapping[str, Floats]
    scores: Mapping[str, Floats]
    restored: Mapping[str, Ints] = field(default_factory=dict)

    @property
    def fooled(self) -> Bools:
        """Which images the model has wrong; of an attack, all of them were right before [M]."""
        return np.asarray(self.predicted != self.labels)


def read_clean(rows: Sequence[Row]) -> Clean:
    """Return the rows of the untouched test images as arrays.

    Raises:
        EvaluationError: There is none, or an image has two.
    """
    digests = tuple(str(row["digest"]) for row in rows)
    if not rows or len(set(digests)) < len(digests):
        raise EvaluationError(
            f"{len(rows)} rows of clean images stand for {len(set(digests))}; expected one each, "
            "and at least one."
        )
    return Clean(digests, *_columns(rows))


def read_attacked(name: str, rows: Sequence[Row], clean: Clean, *, adversarial: bool) -> Attacked:
    """Return the rows of an attack as arrays.

    Args:
        name: Name of the attack.
        rows: Its rows.
        clean: The untouched images, all of them.
        adversarial: Whether it is an attack, which belongs on images that were right before.

    Raises:
        EvaluationError: A row belongs to no clean image, to one that was wrong before, or has
            another class.
    """
    place = {digest: i for i, digest in enumerate(clean.digests)}
    strange = [row["digest"] for row in rows if row["digest"] not in place]
    if strange:
        raise EvaluationError(f"{name}: the clean image of {strange[0]} was not judged.")
    positions = np.array([place[row["digest"]] for row in rows], dtype=np.int64)
    found = Attacked(name, positions, *_columns(rows))
    if not np.array_equal(found.labels, clean.labels[positions]):
        raise EvaluationError(f"{name}: an image has another class than its clean version.")
    if adversarial and not clean.correct[positions].all():
        raise EvaluationError(
            f"{name}: {int((~clean.correct[positions]).sum())} images were misclassified before "
            "the attack; they would count as its success. Attack the others alone."
        )
    return found


def _columns(
    rows: Sequence[Row],
) -> tuple[Ints, Ints, Ints, dict[str, Floats], dict[str, Floats], dict[str, Ints]]:
    def integers(field: str) -> Ints:
        return np.array([row[field] for row in rows], dtype=np.int64)

    def floats(field: str) -> dict[str, Floats]:
        names = rows[0]["baselines"] if rows else ()
        own = {GUARD: np.array([row[field] for row in rows], dtype=np.float64)}
        return own | {
            name: np.array([row["baselines"][name][field] for row in rows], dtype=np.float64)
            for name in names
        }

    return (
        integers("label"),
        integers("model_label"),
        integers("restored_label"),
        floats("p_value"),
        floats("score"),
        {
            name: np.array([row["restorations"][name] for row in rows], dtype=np.int64)
            for name in (rows[0].get("restorations", ()) if rows else ())
        },
    )
