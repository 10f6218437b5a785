"""The commands: their options, their help, and where their work is done.

The work is imported when a command runs, so that --help is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lrpguard.cli.console import Console, command
from lrpguard.cli.options import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_PART_SIZE,
    PACKAGED_MODEL,
    PACKAGED_SIZE,
    BatchSizeOption,
    BudgetOption,
    ChosenCopiesOption,
    ChosenSigmaOption,
    CopiesOption,
    DataOption,
    DetectorName,
    DeviceOption,
    Engine,
    EngineOption,
    FailurePolicy,
    ImageSizeOption,
    JsonOption,
    KeyFileOption,
    LooksOption,
    MeanOption,
    ModelOption,
    ModelOptions,
    NoiseOptions,
    OnFailureOption,
    OptionalDataOption,
    OptionalModelOption,
    PartSizeOption,
    PrepareOption,
    QuietOption,
    SeedOption,
    SigmaOption,
    StdOption,
    VerdictsOption,
    WeightsOption,
    WorkersOption,
)
from lrpguard.cli.welcome import FIRST
from lrpguard.secret import secret_key
from lrpguard.version import __version__

app = typer.Typer(
    name="lrpguard",
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line."""
    if not sys.stderr.isatty():  # a log, in which a bar ten times a second is of no use
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    app(prog_name="lrpguard")


def example(*lines: str) -> str:
    """Return an epilog that stands as it is written."""
    return "\n".join(("\b", "Example:", *(f"  {line}" for line in lines)))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lrpguard {__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=example("lrpguard demo", "lrpguard calibrate --help"),
)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Notice, and repair, adversarial inputs to a PyTorch image classifier."""
    if context.invoked_subcommand is None:
        typer.echo(FIRST)


@app.command(
    short_help="Attack digits, flag them, restore them: a tour.",
    epilog=example("lrpguard demo --out demo.png"),
)
@command
def demo(
    n: Annotated[
        int | None,
        typer.Option("--n", metavar="N", min=2, help="Noisy copies of each digit.  [default: 50]"),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma",
            metavar="SIGMA",
            help="Standard deviation of the noise, on the [0, 1] scale.  [default: 0.1]",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of the noise and of the attack.")
    ] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="The picture.")
    ] = Path("lrpguard-demo.png"),
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> int:
    """Attack digits, flag them, restore them: a minute's tour.

    Needs no download: scikit-learn's handwritten digits, and a small model that comes with
    lrpguard. Prints what was noticed and restored, with 95 % intervals, and writes one picture.
    """
    from lrpguard.cli import demo as work

    return work.run(n=n, sigma=sigma, seed=seed, out=out, console=Console(json, quiet))


@app.command(
    short_help="Learn what is usual from clean images.",
    epilog=example(
        "lrpguard calibrate --model torchvision:resnet18 --weights resnet18.pth \\",
        "    --data clean-images/ --alpha 0.05 --out resnet18.safetensors",
    ),
)
@command
def calibrate(
    model: ModelOption,
    data: DataOption,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", dir_okay=False, help="Calibration file to write."),
    ],
    alpha: Annotated[
        float,
        typer.Option("--alpha", metavar="ALPHA", help="Share of clean images that may be flagged."),
    ] = 0.05,
    detector: Annotated[
        DetectorName,
        typer.Option(
            "--detector", help="combined: all scores, half the images fit it; paper: one score."
        ),
    ] = DetectorName.COMBINED,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    n: ChosenCopiesOption = None,
    sigma: ChosenSigmaOption = None,
    budget: BudgetOption = None,
    looks: LooksOption = False,
    prepare: PrepareOption = False,
    seed: SeedOption = 0,
    key_file: KeyFileOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = DEFAULT_BATCH_SIZE,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> int:
    """Learn from clean images what is usual, and write a calibration file.

    The images must be like the requests to come, and must not have trained the model. An
    interrupted run goes on where it stopped when the same command is run again.

    Exit code: 0, 1 on an error or where a file could not be read, 2 on a wrong option.
    """
    from lrpguard.cli import calibrate as work

    return work.run(
        ModelOptions(
            spec=model, weights=weights, mean=mean, std=std, image_size=image_size, device=device
        ),
        NoiseOptions(n=n, sigma=sigma, seed=seed, key=secret_key(key_file, os.environ)),
        work.CalibrateOptions(
            data=data,
            alpha=alpha,
            detector=detector.value,
            budget=budget,
            looks=looks,
            prepare=prepare,
            batch_size=batch_size,
            out=out,
        ),
        console=Console(json, quiet),
    )


@app.command(
    short_help="Judge images: flag and restore.",
    epilog=example(
        "lrpguard check --model torchvision:resnet18 --weights resnet18.pth \\",
        "    --calibration resnet18.safetensors --data incoming/ --out verdicts.jsonl",
    ),
)
@command
def check(
    model: ModelOption,
    data: DataOption,
    calibration: Annotated[
        Path,
        typer.Option(
            "--calibration",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Calibration file, which also says how the noise is made.",
        ),
    ],
    out: VerdictsOption = None,
    fail_on_flag: Annotated[
        bool, typer.Option("--fail-on-flag", help="Exit with 1 where an image is flagged.")
    ] = False,
    no_restore: Annotated[
        bool, typer.Option("--no-restore", help="Flag images only; seek no other label.")
    ] = False,
    on_failure: OnFailureOption = FailurePolicy.CLOSED,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    key_file: KeyFileOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = DEFAULT_BATCH_SIZE,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = None,
    part_size: PartSizeOption = DEFAULT_PART_SIZE,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> int:
    """Judge images: one line each, and JSON lines with --json or --out.

    Exit code: 0, 1 on an error, where an image is broken or unguarded, or, with --fail-on-flag,
    flagged; 2 on a wrong option.
    """
    from lrpguard.cli import check as work

    return work.run(
        ModelOptions(
            spec=model, weights=weights, mean=mean, std=std, image_size=image_size, device=device
        ),
        work.CheckOptions(
            data=data,
            calibration=calibration,
            batch_size=batch_size,
            out=out,
            fail_on_flag=fail_on_flag,
            restore=not no_restore,
            on_failure="fail_open" if on_failure is FailurePolicy.OPEN else "fail_closed",
            key=secret_key(key_file, os.environ),
            cluster=work.ClusterOptions(workers, part_size) if engine is Engine.RAY else None,
        ),
        console=Console(json, quiet),
    )


@app.command(
    short_help="Show which pixels speak for a class.",
    epilog=example(
        "lrpguard explain --model torchvision:resnet18 --weights resnet18.pth \\",
        '    --data cat.jpg --class "tabby" --out explained/',
    ),
)
@command
def explain(
    model: ModelOption,
    data: DataOption,
    target: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Class to explain, by number or name; by default the predicted one.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", file_okay=False, help="Folder for the pictures."),
    ] = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    n: CopiesOption = None,
    sigma: SigmaOption = None,
    seed: SeedOption = 0,
    key_file: KeyFileOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = DEFAULT_BATCH_SIZE,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> int:
    """Show which pixels speak for a class, and how steadily under noise.

    Writes one PNG an image: the image, the mean relevance, the variance of the relevance. With
    --json prints the logit, the summed relevance, its mean variance, and how exactly relevance
    is conserved (the part of the conservation law that is not accounted for).
    """
    from lrpguard.cli import explain as work

    return work.run(
        ModelOptions(
            spec=model, weights=weights, mean=mean, std=std, image_size=image_size, device=device
        ),
        NoiseOptions(n=n, sigma=sigma, seed=seed, key=secret_key(key_file, os.environ)),
        work.ExplainOptions(data=data, target=target, out=out, batch_size=batch_size),
        console=Console(json, quiet),
    )


@app.command(
    short_help="Check the installation and the model.",
    epilog=example(
        "lrpguard doctor",
        "lrpguard doctor --model mypackage.models:classifier --image-size 224,224",
    ),
)
@command
def doctor(
    model: OptionalModelOption = None,
    data: OptionalDataOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Calibration file to check against the model.",
        ),
    ] = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    image_size: ImageSizeOption = None,
    n: CopiesOption = None,
    sigma: SigmaOption = None,
    device: DeviceOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Settings of a service: check these, its model, calibration, self-test and trail.",
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Check the installation, a model and its calibration, and measure what a guard costs.

    One line a check, ok or FAIL. Exit code: 0, 1 where a check fails, 2 on a wrong option.
    """
    from lrpguard.cli import doctor as work
    from lrpguard.serving.configure import load_config

    if config is not None:
        service = load_config(config, environment=os.environ)
        return work.run(
            work.model_options(service),
            NoiseOptions(n=n, sigma=sigma),
            data=data,
            calibration=service.guard.calibration,
            console=Console(json),
            service=service,
        )
    return work.run(
        ModelOptions(
            spec=model or PACKAGED_MODEL,
            weights=weights,
            mean=mean,
            std=std,
            image_size=image_size or (None if model else PACKAGED_SIZE),
            device=device,
        ),
        NoiseOptions(n=n, sigma=sigma),
        data=data,
        calibration=calibration,
        console=Console(json),
    )
