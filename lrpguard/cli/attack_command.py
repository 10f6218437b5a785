"""The command ``lrpguard attack``: its options, its help, and where its work is done.

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
    CopiesOption,
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
    QuietOption,
    SeedOption,
    SigmaOption,
    StdOption,
    WeightsOption,
)
from lrpguard.secret import secret_key


@app.command(
    short_help="Attack the guard itself, knowing it.",
    epilog=example(
        "lrpguard attack --model torchvision:resnet18 --weights resnet18.pth \\",
        "    --calibration guard.safetensors --data labelled-images/ --budget 15 --out red-team/",
    ),
)
@command
def attack(
    model: ModelOption,
    data: DataOption,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", file_okay=False, help="Folder for the card."),
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="The guard's calibration, made of other images. Without it one is made.",
        ),
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option(
            "--calibration-pool",
            metavar="N",
            min=2,
            help="Images that calibrate the guard where there is no --calibration.  "
            "[default: 1000, quick 400]",
        ),
    ] = None,
    test: Annotated[
        int,
        typer.Option(
            "--test", metavar="N", min=1, help="Images drawn; those that are right are attacked."
        ),
    ] = 34,
    levels: Annotated[
        str,
        typer.Option("--levels", metavar="L,L", help="Largest changes of a pixel, of 255."),
    ] = "2,4,8",
    budget: Annotated[
        float,
        typer.Option(
            "--budget", metavar="MINUTES", help="Time for the attacks, the calibration not counted."
        ),
    ] = 15.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer steps, no sweeps, no HopSkipJump.")
    ] = False,
    labels: LabelsOption = None,
    other_model: Annotated[
        str | None,
        typer.Option(
            "--other-model",
            metavar="SPEC",
            help="Another network for the same classes and input, to craft on.",
        ),
    ] = None,
    other_weights: Annotated[
        Path | None,
        typer.Option(
            "--other-weights", metavar="FILE", exists=True, dir_okay=False, help="Its weights."
        ),
    ] = None,
    name: NameOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    n: CopiesOption = None,
    sigma: SigmaOption = None,
    seed: SeedOption = 0,
    key_file: KeyFileOption = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> int:
    """Attack a guard as those would who know it, and say what passes.

    The images must have trained neither the model nor the calibration. Attacks come in order of
    worth: static, knowing the guard but not its key, knowing the key, from another network, by
    queries; then false alarms, misled restoration and explanation. What does not fit the budget is
    left out, and said to be.

    Exit code: 0, 1 on an error, 2 on a wrong option. What the attacks find is no error.
    """
    from lrpguard.cli import attack as work

    return work.run(
        ModelOptions(
            spec=model, weights=weights, mean=mean, std=std, image_size=image_size, device=device
        ),
        NoiseOptions(n=n, sigma=sigma, seed=seed, key=secret_key(key_file, os.environ)),
        work.AttackOptions(
            data=data,
            labels=labels,
            calibration=calibration,
            pool=pool,
            test=test,
            levels=levels,
            minutes=budget,
            quick=quick,
            other_model=other_model,
            other_weights=other_weights,
            out=out,
            name=name,
            quiet=quiet,
            command=shown_command(sys.argv[1:]),
        ),
        console=Console(json),
    )
