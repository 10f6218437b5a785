"""What a path holds: a calibration, an evaluation, a red-team card or an audit trail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrpguard.calibration import Calibration
from lrpguard.errors import AuditError, LoadingError
from lrpguard.evaluation.cards import read_card
from lrpguard.evaluation.judging import CLEAN
from lrpguard.evaluation.outcomes import Attacked, Clean, read_attacked, read_clean
from lrpguard.serving.chain import Verified, records, trail_files, verify

Card = Mapping[str, Any]

CARD, ROWS = "card.json", "rows.jsonl"


@dataclass(frozen=True, eq=False)
class CalibrationRun:
    """A calibration file.

    Attributes:
        name: Name of the file.
        calibration: What it holds.
    """

    name: str
    calibration: Calibration


@dataclass(frozen=True, eq=False)
class Judged:
    """The rows of an evaluation.

    Attributes:
        clean: The untouched test images.
        attacks: What attacks made of them.
        indices: Position of each clean image in the data.
    """

    clean: Clean
    attacks: tuple[Attacked, ...]
    indices: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """An evaluation.

    Attributes:
        card: Its card.
        judged: Its rows; None where the card stands alone.
    """

    card: Card
    judged: Judged | None


@dataclass(frozen=True, eq=False)
class RedTeamRun:
    """Attacks that know the guard.

    Attributes:
        card: Their card.
    """

    card: Card


@dataclass(frozen=True, eq=False)
class AuditRun:
    """An audit trail, whole.

    Attributes:
        name: Name of the folder.
        chain: What its chain holds.
        keyed: Whether it was checked with a key.
        records: Its lines.
    """

    name: str
    chain: Verified
    keyed: bool
    records: tuple[dict[str, Any], ...]


Run = CalibrationRun | EvaluationRun | RedTeamRun | AuditRun


def read_run(path: Path, *, key: bytes = b"") -> Run:
    """Read what there is to report on.

    Args:
        path: A calibration file, a card, or the folder of an evaluation or of an audit trail.
        key: Key of the trail's chain; see :func:`lrpguard.serving.chain.chain_key`.

    Raises:
        CalibrationFileError: The calibration is damaged.
        AuditError: The chain is broken, or the trail empty.
        EvaluationError: The rows contradict one another.
        LoadingError: It is none of these, or not whole.
    """
    if path.is_dir():
        if (path / CARD).is_file():
            return _card(path / CARD)
        if trail_files(path):
            return _audit(path, key)
        raise LoadingError(
            f"{path} holds neither {CARD} nor audit-00000001.jsonl; expected the folder of "
            "'lrpguard evaluate --out', which writes its card at the end, or of an audit trail."
        )
    if not path.is_file():
        raise LoadingError(f"there is no file or folder {path}.")
    if path.suffix == ".safetensors":
        return CalibrationRun(path.name, Calibration.load(path))
    if path.suffix == ".json":
        return _card(path)
    raise LoadingError(
        f"{path} is not understood; expected a calibration (.safetensors), a card (.json), or the "
        "folder of an evaluation or of an audit trail."
    )


def _card(path: Path) -> Run:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadingError(f"the card {path} cannot be read ({error}).") from error
    if isinstance(card, dict) and card.get("kind") == "evaluation":
        card = read_card(path)
        rows = path.with_name(ROWS)
        own = path.name == CARD and rows.is_file()
        return EvaluationRun(card, _judged(rows, card) if own else None)
    if isinstance(card, dict) and _is_red_team(card):
        return RedTeamRun(card)
    raise LoadingError(
        f"{path} is no card of an evaluation or of a red team; its kind is "
        f"{card.get('kind') if isinstance(card, dict) else None!r}."
    )


def _is_red_team(card: Card) -> bool:
    rows = card.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return False
    return card.get("kind") == "red_team" or (bool(rows) and all("knows" in row for row in rows))


def attack_key(entry: Mapping[str, Any]) -> str:
    """Return what the rows of an attack begin with, from its entry in the card's suite."""
    about = ("title", "family", "adversarial")
    parameters = {name: value for name, value in entry.items() if name not in about}
    text = json.dumps(parameters, sort_keys=True)
    return f"{entry['name']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _judged(path: Path, card: Card) -> Judged:
    """Read the rows that the card counts; those of other attacks may stand beside them."""
    by_key = _rows_by_key(path, card)
    clean_rows = by_key.get(CLEAN, [])
    clean = read_clean(clean_rows)
    attacks = []
    for entry in card["suite"]:
        if entry["adversarial"]:
            rows = by_key.get(attack_key(entry), [])
            expected = card["results"]["attacks"][entry["name"]]["attempts"]
            if len(rows) != expected:
                raise LoadingError(
                    f"{path} has {len(rows)} rows of {entry['name']}; its card counts {expected}. "
                    "Run the card's command again, which makes what is missing."
                )
            attacks.append(read_attacked(entry["name"], rows, clean, adversarial=True))
    return Judged(clean, tuple(attacks), tuple(int(row["index"]) for row in clean_rows))


def _rows_by_key(path: Path, card: Card) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            if number == 1:
                if row["run"]["test"] != card["splits"]["test"]["digest"]:
                    raise LoadingError(f"{path} holds rows of other images than its card.")
                continue
            attack, _, digest = row["key"].rpartition("/")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LoadingError(
                f"{path}, line {number}, is no row of an evaluation ({error}). Run the card's "
                "command again."
            ) from error
        found.setdefault(attack, {})[digest] = row
    return {attack: list(rows.values()) for attack, rows in found.items()}


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadingError(f"the rows {path} cannot be read ({error}).") from error


def _audit(path: Path, key: bytes) -> AuditRun:
    chain = verify(path, key=key)
    lines = tuple(records(path, key=key))
    if not lines:
        raise AuditError(f"{path} has no whole line yet; there is nothing to report on.")
    return AuditRun(path.resolve().name, chain, bool(key), lines)
