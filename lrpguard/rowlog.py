"""Result rows in a JSONL file, written as they come, so that a run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lrpguard.errors import ConfigurationError, LrpGuardError


class RowLog:
    """Rows by key, mirrored line by line in a JSONL file.

    The first line says which run the rows belong to. A last line that an interruption cut off
    is dropped.

    Args:
        path: The file; its folder is made. None keeps the rows in memory only.
        header: What the rows depend on, JSON values only.
        mismatch: Error to raise where the file holds something else.

    Raises:
        ConfigurationError: The file holds the rows of another run, or is no such file; it is
            left as it is.
    """

    def __init__(
        self,
        path: Path | None,
        header: Mapping[str, Any],
        *,
        mismatch: type[LrpGuardError] = ConfigurationError,
    ) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        good = self._resume(path, header, mismatch) if path.exists() else 0
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(good)
        if good == 0:
            self._write({"run": dict(header)})

    def __enter__(self) -> RowLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the rows stay."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a row of JSON values under its key, and write it out."""
        self.rows[key] = dict(row)
        self._write({"key": key, **row})

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()

    def _resume(self, path: Path, header: Mapping[str, Any], mismatch: type[LrpGuardError]) -> int:
        """Read the whole lines of the file; return how many bytes they take."""
        content = path.read_bytes()
        first = json.dumps({"run": dict(header)}).encode()
        good = 0
        for line in content.splitlines(keepends=True):
            record = _whole_record(line)
            if record is None:
                break
            if good == 0 and record.get("run") != json.loads(first)["run"]:
                raise mismatch(
                    f"{path} holds the rows of another run (model, settings or version differ), or "
                    "something else. Remove it, or name another file, to begin anew."
                )
            if good > 0:
                self.rows[record.pop("key")] = record
            good += len(line)
        if good == 0 and not first.startswith(content):  # else the very first line was cut off
            raise mismatch(f"{path} is no file of rows, and is left as it is. Name another file.")
        return good


def _whole_record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
