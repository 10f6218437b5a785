"""The scores of a calibration run, kept as they are made, so that a run can be resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lrpguard.errors import CalibrationMismatchError
from lrpguard.rowlog import RowLog


class ScoreLog:
    """Scores by image digest, in a :class:`~lrpguard.rowlog.RowLog`.

    Args:
        path: The file; None keeps the scores in memory only.
        header: What the scores depend on, JSON values only.

    Raises:
        CalibrationMismatchError: The file belongs to another run, or is something else.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self._log = RowLog(path, header, mismatch=CalibrationMismatchError)
        self.scores: dict[str, list[float]] = {
            digest: [float(score) for score in row["scores"]]
            for digest, row in self._log.rows.items()
        }

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
        self._log.close()

    def add(self, scores: Mapping[str, list[float]]) -> None:
        """Keep the scores of new images, by digest, and write them out."""
        self.scores.update(scores)
        for digest, values in scores.items():
            # JSON has no NaN and no infinity; either is refused when the run is evaluated.
            row = [score if math.isfinite(score) else str(score) for score in values]
            self._log.add(digest, {"scores": row})
