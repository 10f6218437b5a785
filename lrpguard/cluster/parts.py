"""A folder of Parquet files, one a part of the images, written so that a run can be resumed."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrpguard.errors import ConfigurationError

if TYPE_CHECKING:
    import pyarrow

JOB_FILE = "_job.json"
"""What the parts depend on. Readers of Parquet folders pass over names that begin with ``_``."""

_COUNTS = b"lrpguard.counts"
_UNFINISHED = ".part-*.tmp"


@dataclass(frozen=True)
class PartFolder:
    """Where the parts of one job are.

    A part appears under its name when it is whole and on the disk, or not at all. Writing it
    again, as where a worker was taken for dead, puts the same content in its place.

    Attributes:
        path: The folder; on a cluster, one that every node sees.
    """

    path: Path

    def begin(self, job: Mapping[str, Any]) -> None:
        """Make the folder for a job, or take up the one that it was interrupted in.

        Args:
            job: What the parts depend on, JSON values only.

        Raises:
            ConfigurationError: The folder holds the parts of another job, or other files.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / JOB_FILE
        if file.exists():
            self._check(file, job)
        elif any(self.path.iterdir()):
            raise ConfigurationError(
                f"{self.path} holds files, but not those of a job ({JOB_FILE}). Name a new folder."
            )
        else:
            self._put(file, lambda part: part.write_text(json.dumps(job, indent=1) + "\n"))

    def counts(self, part: int) -> Counter[str] | None:
        """Return how many images of a part have which status; None where it is not done."""
        import pyarrow.parquet as parquet

        try:
            metadata = parquet.read_metadata(self._file(part)).metadata
        except (OSError, ValueError):  # not there, or cut off by a disk that broke
            return None
        return None if _COUNTS not in metadata else Counter(json.loads(metadata[_COUNTS]))

    def write(self, part: int, records: Sequence[Mapping[str, Any]]) -> Counter[str]:
        """Write a part, whole or not at all.

        Args:
            part: Its number.
            records: As :meth:`lrpguard.checking.Checker.records` yields them.

        Returns:
            How many of them have which status.
        """
        import pyarrow
        import pyarrow.parquet as parquet

        counts = Counter(record["status"] for record in records)
        schema = _schema().with_metadata({_COUNTS: json.dumps(counts).encode()})
        table = pyarrow.Table.from_pylist(list(records), schema=schema)
        self._put(self._file(part), lambda file: parquet.write_table(table, file))
        return counts

    def tidy(self) -> None:
        """Remove what workers that died left unfinished; only when no worker runs."""
        for file in self.path.glob(_UNFINISHED):
            file.unlink(missing_ok=True)

    def _file(self, part: int) -> Path:
        return self.path / f"part-{part:06d}.parquet"

    def _put(self, file: Path, write: Any) -> None:
        unfinished = self.path / f".part-{uuid.uuid4().hex}.tmp"
        write(unfinished)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(file)

    def _check(self, file: Path, job: Mapping[str, Any]) -> None:
        try:
            found = json.loads(file.read_text())
        except ValueError:
            found = {}
        differing = sorted(
            name for name in found.keys() | job.keys() if found.get(name) != job.get(name)
        )
        if differing:
            raise ConfigurationError(
                f"{self.path} holds the parts of another job: {', '.join(differing)} differ"
                f"{'s' if len(differing) == 1 else ''}. Name a new folder, or run that job's "
                "command again to go on with it."
            )


def _schema() -> pyarrow.Schema:
    import pyarrow

    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    return pyarrow.schema(
        {
            "index": whole,
            "name": text,
            "true_label": whole,
            "label": whole,
            "class": text,
            "confidence": number,
            "p_value": number,
            "score": number,
            "flagged": pyarrow.bool_(),
            "restored_label": whole,
            "restored_class": text,
            "restored_confidence": number,
            "status": text,
            "copies": whole,
            "error": text,
        }
    )
