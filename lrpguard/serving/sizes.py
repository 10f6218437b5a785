"""How the guard may be run, and how much work each way is."""

from __future__ import annotations

from lrpguard.calibration import Calibration
from lrpguard.errors import NotCalibratedError
from lrpguard.guard import Guard
from lrpguard.views import VIEW_COUNT


def passes(calibration: Calibration, copies: float) -> float:
    """Return what judging an image takes, about, in forward passes of the model.

    One pass of the image itself, one of each changed view, and two, forward and backward, of
    each copy.

    Args:
        calibration: That of the guard.
        copies: Copies of the image, or their mean.
    """
    views = VIEW_COUNT if calibration.detector.takes_views else 0
    return 1 + views + 2 * copies


def run_choices(guard: Guard, *, fewer: bool) -> dict[int | None, float]:
    """Return the numbers of copies that the guard may make, and the passes that each takes.

    Least work first. None leaves the number to early stopping, of which the bound for clean
    requests is expected.

    Args:
        guard: A calibrated guard.
        fewer: Whether fewer copies than all may be made, where the calibration knows them.

    Raises:
        NotCalibratedError: The guard has no calibration.
    """
    calibration = guard.calibration
    if calibration is None:
        raise NotCalibratedError("the guard has no calibration, so it cannot be run.")
    counts = calibration.copies if fewer else calibration.copies[-1:]
    if not guard.stopping:
        return {copies: passes(calibration, copies) for copies in counts}
    usual = calibration.rule.looks.most_copies
    choices: dict[int | None, float] = {m: passes(calibration, m) for m in counts if m < usual}
    return choices | {None: passes(calibration, usual)}
