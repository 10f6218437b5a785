"""A new calibration from audited traffic, which a person has looked at.

The trail holds scores, so no image is needed. What it cannot know is which traffic was clean. To
leave out what was flagged would cut off the upper end of clean scores, and the next calibration
would flag more and more; to take all in would let an attacker move the threshold. So a person
looks at what was flagged, and names what was not clean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lrpguard.calibration import Calibration
from lrpguard.errors import CalibrationMismatchError, CalibrationSizeError, ConfigurationError
from lrpguard.serving.drift import judge_window
from lrpguard.serving.replay import guarded_lines
from lrpguard.version import __version__

SCHEMA = 1
LEVEL = 0.001
"""Level at which a proposal calls its traffic unlike the calibration."""


@dataclass(frozen=True)
class Candidate:
    """One distinct image of the traffic.

    Attributes:
        name: ``request/row``, by which a person may exclude it.
        image: Its hash.
        score: Anomaly score.
        flagged: Whether it was flagged.
    """

    name: str
    image: str
    score: float
    flagged: bool


@dataclass(frozen=True)
class Proposal:
    """What is proposed, before anyone has looked at it.

    Attributes:
        calibration: Digest of the calibration in use.
        candidates: The traffic, oldest first.
        window: Tests of it against the calibration.
        threshold: That in use.
        proposed_threshold: That of all candidates.
        created: ISO date and time, UTC.
    """

    calibration: str
    candidates: tuple[Candidate, ...]
    window: dict[str, Any]
    threshold: float
    proposed_threshold: float
    created: str

    @property
    def digest(self) -> str:
        """Digest of all of it, 64 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        record = {"schema": SCHEMA, "digest": self.digest, **asdict(self)}
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Proposal:
        """Read it.

        Raises:
            ConfigurationError: No proposal, or altered.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            digest = record.pop("digest")
            if record.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            record["candidates"] = tuple(Candidate(**c) for c in record["candidates"])
            found = Proposal(**record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{path} is no proposal ({error}). Propose again.") from error
        if found.digest != digest:
            raise ConfigurationError(
                f"{path} was altered after it was proposed. Propose again, and exclude images with "
                "--exclude."
            )
        return found


def propose(
    records: Iterable[Mapping[str, Any]],
    calibration: Calibration,
    calibration_id: str,
    *,
    last: int,
) -> Proposal:
    """Gather the newest distinct images that this calibration has judged.

    Args:
        records: The trail, whose chain is verified.
        calibration: That in use.
        calibration_id: Digest of its file.
        last: Most images to take.

    Raises:
        CalibrationMismatchError: None of the trail's verdicts is of this calibration.
    """
    found: dict[str, Candidate] = {}
    for record in guarded_lines(records):
        if record["calibration"] != calibration_id or not of_all_copies(record, calibration):
            continue
        if record["image"] not in found:
            name = f"{record['request']}/{record['row']}"
            found[record["image"]] = Candidate(
                name, record["image"], record["score"], record["flagged"]
            )
    candidates = tuple(found.values())[-last:]
    if not candidates:
        raise CalibrationMismatchError(
            f"the trail has no verdict of the calibration {calibration_id} after all "
            f"{calibration.smoothing.n} copies; give the file that was in use. Early stopping "
            "leaves none to calibrate from: calibrate anew from clean images."
        )
    window = judge_window(
        [(c.name, c.flagged, c.score) for c in candidates], calibration, level=LEVEL
    )
    return Proposal(
        calibration=calibration_id,
        candidates=candidates,
        window=asdict(window),
        threshold=calibration.threshold,
        proposed_threshold=_from(candidates, calibration).threshold,
        created=_now(),
    )


def approve(
    proposal: Proposal,
    calibration: Calibration,
    calibration_id: str,
    *,
    by: str,
    exclude: Sequence[str],
) -> tuple[Calibration, dict[str, Any]]:
    """Return the new calibration, and the record of who approved what.

    Args:
        proposal: What was proposed.
        calibration: The calibration from which it was proposed.
        calibration_id: Digest of its file.
        by: Who approves.
        exclude: Names of candidates that are not clean.

    Raises:
        ConfigurationError: Nobody approves, or a name is no candidate's.
        CalibrationMismatchError: The calibration is another one.
        CalibrationSizeError: Too few images are left.
    """
    if not by.strip():
        raise ConfigurationError("--by is empty; a calibration is approved in a person's name.")
    if proposal.calibration != calibration_id:
        raise CalibrationMismatchError(
            f"the proposal was made from the calibration {proposal.calibration}; this one is "
            f"{calibration_id}."
        )
    names = {candidate.name for candidate in proposal.candidates}
    unknown = sorted(set(exclude) - names)
    if unknown:
        raise ConfigurationError(f"the proposal has no candidate {', '.join(unknown[:5])}.")
    kept = [c for c in proposal.candidates if c.name not in set(exclude)]
    approved = _from(kept, calibration)
    record = {
        "by": by.strip(),
        "approved": approved.created,
        "proposal": proposal.digest,
        "replaces": calibration_id,
        "images": len(kept),
        "excluded": sorted(exclude),
        "threshold_before": calibration.threshold,
        "threshold": approved.threshold,
        "alpha": approved.alpha,
        "fpr_band_95": list(approved.fpr_band()),
    }
    return approved, record


def of_all_copies(record: Mapping[str, Any], calibration: Calibration) -> bool:
    """Say whether a verdict has a score like the calibration's.

    One of fewer copies has not. Where early stopping chose their number, those with all copies
    are the doubtful ones alone.
    """
    return record["copies"] == calibration.smoothing.n and not record.get("stopping", False)


def _from(candidates: Sequence[Candidate], calibration: Calibration) -> Calibration:
    """Return the calibration with the scores of these images; the detector stays as it was."""
    if not candidates:
        raise CalibrationSizeError("no image is left; a calibration needs clean images.")
    hashes = sorted(candidate.image for candidate in candidates)
    return replace(
        calibration,
        anomalies=torch.tensor([c.score for c in candidates], dtype=torch.float64),
        data_digest=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        created=_now(),
        version=__version__,
        staged=None,  # the trail knows nothing of what fewer copies would have shown
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
