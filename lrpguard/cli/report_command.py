"""The command ``lrpguard report``: its options, its help, and where its work is done.

The work is imported when it runs, so that --help is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lrpguard.cli.commands import app, example
from lrpguard.cli.console import Console, command
from lrpguard.cli.evaluate_command import shown_command
from lrpguard.cli.options import (
    CacheOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    KeyFileOption,
    MeanOption,
    ModelOptions,
    QuietOption,
    StdOption,
    WeightsOption,
)
from lrpguard.secret import secret_key


@app.command(
    short_help="Turn a run into one HTML page.",
    epilog=example("lrpguard report evaluation/ --out evaluation.html"),
)
@command
def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            exists=True,
            help="A calibration file, a card (.json), or the folder of an evaluation or of an "
            "audit trail.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="The page.")
    ] = Path("report.html"),
    requests_per_day: Annotated[
        float,
        typer.Option("--requests-per-day", metavar="N", help="For the alarms a day."),
    ] = 100_000,
    prevalence: Annotated[
        float,
        typer.Option("--prevalence", metavar="SHARE", help="Share of attacks among the requests."),
    ] = 1e-4,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="Images of the evaluation, to show some."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="SPEC", help="Model of the evaluation, to show its maps."),
    ] = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    cache: CacheOption = None,
    key_file: KeyFileOption = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> int:
    """Turn a calibration, an evaluation, a red team or an audit trail into one HTML page.

    The page stands alone: it fetches nothing and runs no script. With --data and --model of an
    evaluation it also shows images and maps of the best and the worst cases.

    Exit code: 0, 1 on an error, 2 on a wrong option.
    """
    from lrpguard.cli import report as work

    return work.run(
        None
        if model is None
        else ModelOptions(
            spec=model, weights=weights, mean=mean, std=std, image_size=image_size, device=device
        ),
        work.ReportOptions(
            run=run,
            out=out,
            requests_per_day=requests_per_day,
            prevalence=prevalence,
            data=data,
            cache=cache,
            key=secret_key(key_file, os.environ),
            command=shown_command(sys.argv[1:]),
        ),
        console=Console(json, quiet),
    )
