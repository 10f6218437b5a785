"""What the audit trail keeps of a verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lrpguard.calibration import Calibration
from lrpguard.serving.answer import Outcome
from lrpguard.serving.config import PolicySection
from lrpguard.serving.opening import Opened
from lrpguard.serving.selftest import key_id
from lrpguard.serving.stages import Stages
from lrpguard.version import __version__


@dataclass(frozen=True)
class Call:
    """Who asks, and how.

    Attributes:
        id: Name of the request.
        route: Method and route, e.g. ``"POST /predict"``.
        client: Address of the client, or what a proxy says it is.
        headers: Headers of the request, names in lower case.
        stages: Its clock.
    """

    id: str
    route: str
    client: str
    headers: dict[str, str] = field(default_factory=dict)
    stages: Stages = field(default_factory=Stages)


def audit_lines(
    call: Call,
    opened: Opened,
    outcomes: Sequence[Outcome],
    *,
    hashes: Sequence[str],
    near: Sequence[int],
    policy: PolicySection,
    key: bytes,
) -> list[dict[str, Any]]:
    """Return one record an image, from which its score can be reproduced.

    Args:
        call: The request.
        opened: The guard.
        outcomes: What became of each image, before the policy on flags.
        hashes: Public hash of each image; the image itself is not kept.
        near: Near-duplicates of each image; empty without the query monitor.
        policy: What is done with flags.
        key: Key of the trail, by which the client's address is hashed.
    """
    calibration = opened.calibration
    common = {
        "event": "verdict",
        "time": datetime.fromtimestamp(call.stages.wall, UTC).isoformat(timespec="milliseconds"),
        "request": call.id,
        "route": call.route,
        "client": hashlib.blake2b(call.client.encode(), digest_size=8, key=key).hexdigest(),
        "version": __version__,
        "fingerprint": calibration.fingerprint,
        "calibration": opened.calibration_id,
        "key": key_id(opened.key),
        "sigma": calibration.smoothing.sigma,
        "alpha": calibration.alpha,
        "on_flag": policy.on_flag,
        "shadow": policy.shadow,
        "ms": call.stages.milliseconds(),
    }
    return [
        common
        | {
            "row": row,
            "image": hashes[row],
            "label": outcome.model_label,
            "restored_label": outcome.restored_label,
            "flagged": outcome.flagged,
            "p_value": outcome.p_value,
            "score": outcome.score,
            "threshold": _threshold(outcome, calibration),
            "copies": outcome.copies,
            "stopping": outcome.stopping,
            "status": outcome.status,
            "reason": outcome.reason,
        }
        | ({"near_duplicates": near[row]} if near else {})
        for row, outcome in enumerate(outcomes)
    ]


def _threshold(outcome: Outcome, calibration: Calibration) -> float | None:
    """Return the largest score that is not flagged; None without a guard, or with looks."""
    if outcome.stopping or not outcome.copies:
        return None
    return calibration.at(outcome.copies).threshold
