"""The scores of a calibration run, kept as they are made, so that a run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lrpguard.errors import CalibrationMismatchError


class ScoreLog:
    """Scores by image digest, mirrored line by line in a JSONL file.

    The first line says which run the scores belong to; a last line cut off by an
    interruption is dropped.

    Args:
        path: The file; None keeps the scores in memory only.
        header: What the scores depend on, JSON values only.

    Raises:
        CalibrationMismatchError: The file belongs to another run.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.scores: dict[str, list[float]] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        good = self._resume(path, header) if path.exists() else 0
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(good)
        if good == 0:
            self._write({"run": dict(header)})

    def __enter__(self) -> ScoreLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the scores stay."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, scores: Mapping[str, list[float]]) -> None:
        """Keep the scores of new images, by digest, and write them out."""
        for digest, values in scores.items():
            self.scores[digest] = values
            self._write({"image": digest, "scores": values})
        if self._file is not None:
            self._file.flush()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")

    def _resume(self, path: Path, header: Mapping[str, Any]) -> int:
        """Read the whole lines of the file; return how many bytes they take."""
        content = path.read_bytes()
        good = 0
        for line in content.splitlines(keepends=True):
            record = _whole_record(line)
            if record is None:
                break
            if good == 0 and record.get("run") != dict(header):
                raise CalibrationMismatchError(
                    f"{path} holds the scores of another run (model, noise or image size differ), "
                    "or something else; remove it, or name another file, to begin anew."
                )
            if "image" in record:
                self.scores[record["image"]] = record["scores"]
            good += len(line)
        begun = json.dumps({"run": dict(header)}).encode()
        if good == 0 and not begun.startswith(content):  # else the very first line was cut off
            raise CalibrationMismatchError(
                f"{path} is not a checkpoint of lrpguard, and is left as it is; name another file."
            )
        return good


def _whole_record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
