"""``lrpguard report``: from a run to one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lrpguard.cli.case_pictures import case_pictures
from lrpguard.cli.console import OK, Console
from lrpguard.cli.opening import open_model
from lrpguard.cli.options import ModelOptions, check_folder
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.adversarial import default_cache
from lrpguard.loading import load_data
from lrpguard.report import Traffic, read_run, report_page
from lrpguard.report.cases import Case
from lrpguard.report.pictures import Panels
from lrpguard.report.runs import EvaluationRun
from lrpguard.serving.chain import chain_key


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What to report on, and where to write it.

    Attributes:
        run: The run.
        out: The page.
        requests_per_day: Requests a day.
        prevalence: Share of attacks among them.
        data: Images of an evaluation; None shows none.
        cache: Folder of attacked images; None takes the default.
        key: Secret key of an audit trail.
        command: The command as it may be shown to others.
    """

    run: Path
    out: Path
    requests_per_day: float
    prevalence: float
    data: str | None
    cache: Path | None
    key: bytes | None
    command: str


def run(model: ModelOptions | None, options: ReportOptions, *, console: Console) -> int:
    """Read the run, make the page, write it.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: The run cannot be read, or the images are not those of the evaluation.
    """
    check_folder(options.out)
    traffic = Traffic(requests=options.requests_per_day, prevalence=options.prevalence)
    if (model is None) != (options.data is None):
        raise ConfigurationError(
            "--data and --model belong together: give both to see images with their maps, or none."
        )
    found = read_run(options.run, key=chain_key(options.key))
    pictures: dict[Case, Panels] = {}
    if model is not None and options.data is not None:
        if not isinstance(found, EvaluationRun) or found.judged is None:
            raise ConfigurationError(
                "--data and --model are for the folder of an evaluation, with its rows."
            )
        loaded = open_model(model)
        pictures = case_pictures(
            found.card,
            found.judged,
            loaded,
            load_data(options.data, preprocessing=loaded.preprocessing),
            cache=options.cache or default_cache(),
            step=console.step,
        )
    page = report_page(found, command=options.command, traffic=traffic, pictures=pictures)
    options.out.write_text(page, encoding="utf-8")
    console.record({"file": str(options.out), "bytes": len(page.encode()), "cases": len(pictures)})
    console.line(f"wrote {options.out}")
    return OK
