"""Options that several commands share. Nothing here imports torch, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrpguard.errors import ConfigurationError
from lrpguard.secret import KEY_VARIABLE

DEFAULT_BATCH_SIZE = 16
DEFAULT_PART_SIZE = 1000

PACKAGED_MODEL = "lrpguard.demo.digits:load_digits_model"
"""Model of the demo, on which an installation is tried."""

PACKAGED_SIZE = "8,8"


class DetectorName(StrEnum):
    """Detectors that can be calibrated."""

    COMBINED = "combined"
    PAPER = "paper"


class Engine(StrEnum):
    """Where images are judged."""

    LOCAL = "local"
    RAY = "ray"


class FailurePolicy(StrEnum):
    """What a guard does when it fails itself."""

    CLOSED = "fail_closed"
    OPEN = "fail_open"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and what it wants.

    Attributes:
        spec: As for :func:`lrpguard.loading.load_model`.
        weights: Weights file.
        mean: Mean of each channel, comma separated.
        std: Standard deviation of each channel, comma separated.
        image_size: Size to bring images to, ``"H,W"`` or one number for both.
        device: Where to run it; None takes a GPU where there is one.
    """

    spec: str
    weights: Path | None = None
    mean: str | None = None
    std: str | None = None
    image_size: str | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """The noisy copies of each image.

    Attributes:
        n: How many; None takes the paper's.
        sigma: Standard deviation of the noise on the [0, 1] pixel scale; None the paper's.
        seed: Public seed.
        key: Secret key in place of the seed.
    """

    n: int | None = None
    sigma: float | None = None
    seed: int = 0
    key: bytes | None = None


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Return the numbers of a comma-separated option.

    Raises:
        ConfigurationError: It holds something else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigurationError(
            f"{option} is {text!r}; expected numbers with commas between them, one a channel: "
            f"{option} 0.485,0.456,0.406"
        ) from error


def image_size(text: str | None) -> tuple[int, int] | None:
    """Return (H, W) of ``"H,W"``, or of one number for both.

    Raises:
        ConfigurationError: It holds something else.
    """
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ConfigurationError(
            f"--image-size is {text!r}; expected pixels, one number or height,width: "
            "--image-size 224,224"
        )
    return sides[0], sides[-1]


def check_folder(out: Path | None) -> None:
    """Refuse a file to be written where it cannot be, before the work is done.

    Raises:
        ConfigurationError: There is no such folder, or it is one itself.
    """
    if out is not None and out.is_dir():
        raise ConfigurationError(f"--out is {out}, a folder; name a file in it.")
    if out is not None and not out.parent.is_dir():
        raise ConfigurationError(
            f"--out is {out}, but there is no folder {out.parent}. Make it first: "
            f"mkdir -p {out.parent}"
        )


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="SPEC",
        help="torchvision:NAME[@WEIGHTS], timm:NAME or package.module:factory.",
    ),
]
OptionalModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SPEC",
        help="torchvision:NAME[@WEIGHTS], timm:NAME or package.module:factory; "
        "without it the packaged digits model.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Weights file: .safetensors, .pth or .pt.",
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="M,M,M",
        help="Mean of each channel, where the model wants normalised input and its weights do "
        "not say how.",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option("--std", metavar="S,S,S", help="Standard deviation of each channel, with --mean."),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="H,W",
        help="Resize and crop images to this size; by default to that of the weights.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="DEVICE", help="cpu, cuda or cuda:0; by default a GPU if there is one."
    ),
]
DataOption = Annotated[
    str,
    typer.Option("--data", metavar="SPEC", help="Image folder, image file, quoted glob or .npz."),
]
OptionalDataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="Images to try the model on: folder, file, quoted glob or .npz. By default noise.",
    ),
]
VerdictsOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the verdicts here as JSON lines; ray: the folder."
    ),
]
OnFailureOption = Annotated[
    FailurePolicy,
    typer.Option(
        "--on-failure",
        help="Where the guard itself fails: stop, or give the model's own answer, unguarded.",
    ),
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="local: this process; ray: the cluster that RAY_ADDRESS names, or all of this "
        "machine, and --out is a folder of Parquet files. The same command again goes on where "
        "it was interrupted.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Workers of --engine ray; by default one a GPU or, without, one a CPU core.",
    ),
]
PartSizeOption = Annotated[
    int,
    typer.Option("--part-size", metavar="N", min=1, help="Images of a file of --engine ray."),
]
BatchSizeOption = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Images read and judged together.")
]
CopiesOption = Annotated[
    int | None,
    typer.Option(
        "--n", metavar="N", min=2, help="Noisy copies of each image.  [default: 50, the paper's]"
    ),
]
SigmaOption = Annotated[
    float | None,
    typer.Option(
        "--sigma",
        metavar="SIGMA",
        help="Standard deviation of the noise, on the [0, 1] pixel scale.  [default: 0.05, the "
        "paper's]",
    ),
]
ChosenCopiesOption = Annotated[
    int | None,
    typer.Option("--n", metavar="N", min=2, help="Noisy copies of each image; by default chosen."),
]
ChosenSigmaOption = Annotated[
    float | None,
    typer.Option(
        "--sigma",
        metavar="SIGMA",
        help="Standard deviation of the noise, on the [0, 1] pixel scale; by default chosen on "
        "the clean images.",
    ),
]
LooksOption = Annotated[
    bool,
    typer.Option(
        "--looks",
        help="Calibrate for 10, 20 and 40 % of the copies, too: for early stopping, and for a "
        "service that has little time.",
    ),
]
PrepareOption = Annotated[
    bool,
    typer.Option(
        "--prepare",
        help="Time the ways to run the copies on this machine first, and keep to the fastest.",
    ),
]
BudgetOption = Annotated[
    int | None,
    typer.Option(
        "--budget",
        metavar="PASSES",
        min=1,
        help="Most passes through the model that a request may cost, where n is chosen.  "
        "[default: 50]",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, help="Public seed of the noise, where there is no key."
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Secret key of the noise, 16 to 64 bytes (openssl rand -out FILE 32); also as "
        f"hexadecimal in {KEY_VARIABLE}.",
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="'name,label' lines; by default classes come from the .npz, or from file names.",
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="What tables call the model.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        file_okay=False,
        help="Folder of attacked images.  [default: $LRPGUARD_CACHE or ~/.cache/lrpguard]",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing of progress.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, everything else to stderr.")
]
