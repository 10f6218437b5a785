"""``lrpguard demo``: the tour on digits."""

from __future__ import annotations

import time
from pathlib import Path

from lrpguard.cli.console import OK, Console
from lrpguard.cli.options import check_folder
from lrpguard.demo.run import ATTACK_EPS, DEMO_N, DEMO_SIGMA, DemoSettings, run_demo
from lrpguard.demo.table import format_result, to_record
from lrpguard.errors import MissingDependencyError
from lrpguard.figures import demo_figure, require_matplotlib, save_png


def run(*, n: int | None, sigma: float | None, seed: int, out: Path, console: Console) -> int:
    """Run the demo, print its table and write its picture.

    Where matplotlib is missing there is a table, but no picture.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: scikit-learn is missing, or a setting is out of its range.
    """
    check_folder(out)
    start = time.monotonic()
    can_draw = _can_draw(console)
    settings = DemoSettings(
        n=DEMO_N if n is None else n, sigma=DEMO_SIGMA if sigma is None else sigma, seed=seed
    )
    result = run_demo(settings, progress=console.step)
    picture = None
    if can_draw and result.panels:
        save_png(demo_figure(result.panels, title=_title()), out)
        picture = str(out)
    seconds = time.monotonic() - start
    console.record(to_record(result) | {"picture": picture, "seconds": seconds})
    console.line("\n" + format_result(result))
    if picture is not None:
        console.line(f"\nwrote {picture}")
    if not console.quiet:
        console.note(f"took {seconds:.0f} s")
    return OK


def _title() -> str:
    eps = round(255 * ATTACK_EPS[0])
    return f"The first digits that PGD with eps {eps}/255 fools, and what the guard does"


def _can_draw(console: Console) -> bool:
    try:
        require_matplotlib()
    except MissingDependencyError as error:
        console.note(f"no picture: {error}")
        return False
    return True
