"""The command ``lrpguard evaluate``: its options, its help, and where its work is done.

The work is imported when it runs, so that --help is quick.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lrpguard.cli.commands import app
from lrpguard.cli.console import Console, command
from lrpguard.cli.options import (
    CacheOption,
    ChosenCopiesOption,
    ChosenSigmaOption,
    DataOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    KeyFileOption,
    LabelsOption,
    MeanOption,
    ModelOption,
    ModelOptions,
    NameOption,
    NoiseOptions,
    PrepareOption,
    QuietOption,
    SeedOption,
    StdOption,
    WeightsOption,
)
from lrpguard.secret import secret_key

_EPILOG = "\n".join(
    (
        "\b",
        "Example:",
        "  lrpguard evaluate --model torchvision:resnet18 --weights resnet18.pth \\",
        "      --data labelled-images/ --quick --baselines max-softmax,odds --out evaluation/",
    )
)


def shown_command(arguments: Sequence[str]) -> str:
    """Return the command line as a card may show it: without the folders of this machine."""
    shown = [
        Path(argument).name if Path(argument).is_absolute() else argument for argument in arguments
    ]
    return shlex.join(["lrpguard", *shown])


@app.command(
    short_help="Measure detection and restoration under attacks.",
    epilog=_EPILOG,
)
@command
def evaluate(
    model: ModelOption,
    data: DataOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", file_okay=False, help="Folder for the card and the rows."
        ),
    ],
    labels: LabelsOption = None,
    pool: Annotated[
        int | None,
        typer.Option(
            "--calibration-pool",
            metavar="N",
            min=2,
            help="Clean images that fit and calibrate.  [default: 2000, quick 400]",
        ),
    ] = None,
    test: Annotated[
        int | None,
        typer.Option(
            "--test",
            metavar="N",
            min=1,
            help="Images judged, clean and attacked.  [default: 300, quick 100]",
        ),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option("--attacks", metavar="A,B", help="Attacks by name; by default the suite."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer images and attacks: a first look, in minutes.")
    ] = False,
    prepare: PrepareOption = False,
    halves: Annotated[
        bool,
        typer.Option(
            "--halves",
            help="Fit the guard to one half of the pool and calibrate it on the other, as the "
            "others are; below 1,000 images it would take each for both.",
        ),
    ] = False,
    baselines: Annotated[
        str | None,
        typer.Option(
            "--baselines",
            metavar="A,B",
            help="Detectors to stand beside the guard; 'all' takes those fitted without attacks.",
        ),
    ] = None,
    restorations: Annotated[
        str | None,
        typer.Option(
            "--restorations",
            metavar="A,B",
            help="Restorations to stand beside the guard's: names, 'all' or 'none'.  "
            "[default: those that cost no further pass]",
        ),
    ] = None,
    cache: CacheOption = None,
    name: NameOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    n: ChosenCopiesOption = None,
    sigma: ChosenSigmaOption = None,
    seed: SeedOption = 0,
    key_file: KeyFileOption = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> int:
    """Attack labelled images, judge them, and count what is detected, restored and harmed.

    The images must not have trained the model. Some, drawn by the seed, fit and calibrate the
    guard; others are judged, clean and attacked; none does both. An interrupted run goes on where
    it stopped when the same command is run again.

    Exit code: 0, 1 on an error, 2 on a wrong option.
    """
    from lrpguard.cli import evaluate as work

    return work.run(
        ModelOptions(
            spec=model, weights=weights, mean=mean, std=std, image_size=image_size, device=device
        ),
        NoiseOptions(n=n, sigma=sigma, seed=seed, key=secret_key(key_file, os.environ)),
        work.EvaluateOptions(
            data=data,
            labels=labels,
            pool=pool,
            test=test,
            attacks=attacks,
            quick=quick,
            prepare=prepare,
            halves=halves,
            baselines=baselines,
            restorations=restorations,
            out=out,
            cache=cache,
            seed=seed,
            name=name,
            command=shown_command(sys.argv[1:]),
        ),
        console=Console(json, quiet),
    )
