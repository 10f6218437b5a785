"""The hash chain of the audit trail: each line holds a hash over itself and the one before.

A line is one JSON object with sorted keys, whose ``hash`` is a keyed or plain BLAKE2b of the rest
of it; ``prev`` is the hash of the line before, and ``seq`` counts the lines. So a line that is
altered, removed, added or moved breaks the chain. What a plain chain cannot show is a trail that
was rewritten from some line to its end, or cut off at its end: keep the hash of its head elsewhere
(the service logs it), or give a secret key, which whoever rewrites it would need.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrpguard.errors import AuditError

GENESIS = "0" * 64
"""What stands as the hash before the first line."""

_FIRST_LOOK = 8192
"""Bytes read from the end of a file to find its last line; more where the line is longer."""

_NAME = re.compile(r"audit-(\d{8})\.jsonl")


@dataclass(frozen=True)
class Head:
    """The end of a chain.

    Attributes:
        seq: Lines so far.
        hash: Hash of the last one.
    """

    seq: int = 0
    hash: str = GENESIS


@dataclass(frozen=True)
class Verified:
    """What a whole chain holds.

    Attributes:
        head: Its end.
        files: Number of files.
        torn: Bytes of a last line that was cut off by a crash, of which no answer was sent.
    """

    head: Head
    files: int
    torn: int


def chain_key(secret: bytes | None) -> bytes:
    """Return the key of the chain, made from the guard's secret key; empty without one."""
    if secret is None:
        return b""
    return hashlib.blake2b(secret, digest_size=32, person=b"lrpguard-audit").digest()


def file_name(number: int) -> str:
    """Return the name of the file of that number, from 1."""
    return f"audit-{number:08d}.jsonl"


def trail_files(folder: Path) -> list[Path]:
    """Return the files of a trail, in order.

    Raises:
        AuditError: There is no such folder.
    """
    if not folder.is_dir():
        raise AuditError(f"there is no audit trail {folder}: no such folder.")
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def file_number(path: Path) -> int:
    """Return the number of a file of a trail."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise AuditError(f"{path} is no file of an audit trail.")
    return int(found[1])


def link(record: Mapping[str, Any], head: Head, key: bytes) -> tuple[bytes, Head]:
    """Return the line of a record, as it stands in the file, and the chain's new head.

    Args:
        record: JSON values only; NaN and infinity are refused.
        head: The chain's end so far.
        key: Key of the chain.
    """
    body = dict(record) | {"seq": head.seq + 1, "prev": head.hash}
    digest = _digest(body, key)
    return _text(body | {"hash": digest}).encode() + b"\n", Head(head.seq + 1, digest)


def records(folder: Path, *, key: bytes) -> Iterator[dict[str, Any]]:
    """Yield the records of a trail, each checked against the chain as it is read.

    Raises:
        AuditError: A line was altered, removed, added or moved; a file is missing; or there is
            none, as in a folder that is not a trail's.
    """
    head = Head()
    files = trail_files(folder)
    if not files:
        raise AuditError(
            f"{folder} holds no {file_name(1)}; expected the audit.folder of the settings, which "
            "holds it from the service's start on. Name that folder."
        )
    for expected, path in enumerate(files, start=1):
        if file_number(path) != expected:
            raise AuditError(
                f"{folder}: {file_name(expected)} is missing; after line {head.seq} comes "
                f"{path.name}."
            )
        for number, line in enumerate(_lines(path), start=1):
            if not line.endswith(b"\n"):
                if path == files[-1]:
                    return
                raise AuditError(f"{path}, line {number}: cut off, though files follow it.")
            record = _checked(line, head, key, f"{path}, line {number}")
            head = Head(record["seq"], record["hash"])
            yield record


def verify(folder: Path, *, key: bytes, known: str | None = None) -> Verified:
    """Check a whole trail.

    Args:
        folder: The trail.
        key: Key of the chain; see :func:`chain_key`.
        known: Hash of a line that is known to have been written.

    Raises:
        AuditError: There is no trail, its chain is broken, or ``known`` is no part of it: it was
            cut off before that line, or rewritten.
    """
    head, found = Head(), known is None
    for record in records(folder, key=key):
        head = Head(record["seq"], record["hash"])
        found = found or record["hash"] == known
    if not found:
        raise AuditError(
            f"{folder} has {head.seq} whole lines, and none of them has the hash {known}: the "
            "trail was cut off before it, or rewritten."
        )
    files = trail_files(folder)
    return Verified(head, len(files), _torn(files[-1]))


def last_head(path: Path, key: bytes) -> tuple[Head | None, int]:
    """Return the head at the end of one file, None where it has no whole line, and its torn bytes.

    Raises:
        AuditError: The last whole line is not one of a chain with this key.
    """
    ending = _ending(path)
    whole = ending[: ending.rfind(b"\n") + 1]
    torn = len(ending) - len(whole)
    if not whole:
        return None, torn
    line = whole[whole.rfind(b"\n", 0, -1) + 1 :]
    record = _parsed(line, f"{path}, last line")
    digest = record.pop("hash", None)
    if digest != _digest(record, key) or not isinstance(record.get("seq"), int):
        raise AuditError(
            f"{path}, last line: its hash does not fit. It was altered, or written with another "
            "key; begin a new folder, and keep this one as it is."
        )
    return Head(record["seq"], digest), torn


def _checked(line: bytes, head: Head, key: bytes, where: str) -> dict[str, Any]:
    record = _parsed(line, where)
    digest = record.pop("hash", None)
    if digest != _digest(record, key):
        raise AuditError(f"{where}: altered, or written with another key: its hash does not fit.")
    if record.get("prev") != head.hash or record.get("seq") != head.seq + 1:
        raise AuditError(
            f"{where}: it is line {record.get('seq')} of the chain, where line {head.seq + 1} is "
            "expected: lines were removed, added or moved before it."
        )
    return record | {"hash": digest}


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AuditError(f"{where}: no JSON ({error}): altered or damaged.") from error
    if not isinstance(record, dict) or _text(record).encode() + b"\n" != line:
        raise AuditError(f"{where}: not as lrpguard writes it: altered.")
    return record


def _digest(body: Mapping[str, Any], key: bytes) -> str:
    return hashlib.blake2b(_text(body).encode(), digest_size=32, key=key).hexdigest()


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _torn(path: Path) -> int:
    ending = _ending(path)
    return len(ending) - (ending.rfind(b"\n") + 1)


def _ending(path: Path) -> bytes:
    """Return the end of a file, with the last whole line in it; all of it where it has none."""
    length = _FIRST_LOOK
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            start = max(0, size - length)
            file.seek(start)
            ending = file.read(size - start)
            if start == 0 or ending.count(b"\n") >= 2:
                return ending
            length *= 8
