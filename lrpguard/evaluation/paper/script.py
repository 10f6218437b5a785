"""What the scripts of the figures share: options, loading, saving."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lrpguard.errors import LrpGuardError
from lrpguard.evaluation.labelled import Labelled
from lrpguard.evaluation.paper.setup import MODELS, load_labelled
from lrpguard.figures import SIGNED_MAP, require_matplotlib, save_png
from lrpguard.loading import LoadedModel
from lrpguard.smoothing import PAPER_N, PAPER_SIGMA, Smoothing

BUILD = Path("build")
DPI = 130


def figure_parser(description: str | None, *, figure: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every figure has.

    Args:
        description: What ``--help`` says first.
        figure: Name of the picture, without suffix.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=sorted(MODELS), default="squeezenet1_1")
    add("--weights", type=Path, help="weights file (default: LRPGUARD_DATA's; VGG16 downloads)")
    add("--data", type=Path, help="images: a folder, a file, an .npz (default: LRPGUARD_DATA's)")
    add("--labels", type=Path, help="'name,label' lines, where names do not tell the class")
    add("--out", type=Path, default=BUILD / f"{figure}.png", help=f"default build/{figure}.png")
    add("--n", type=int, default=PAPER_N, help=f"noisy copies (default {PAPER_N})")
    add("--sigma", type=float, default=PAPER_SIGMA, help=f"their noise (default {PAPER_SIGMA})")
    add("--seed", type=int, default=0)
    add(
        "--colors",
        default=SIGNED_MAP,
        help=f"colours of signed maps: {SIGNED_MAP} (default), seismic (the paper's), ...",
    )
    add("--threads", type=int, default=1, help="CPU threads (default 1)")
    return parser


def smoothing_of(args: argparse.Namespace) -> Smoothing:
    """Return how the copies are made."""
    return Smoothing(n=args.n, sigma=args.sigma, seed=args.seed)


def open_data(args: argparse.Namespace) -> tuple[LoadedModel, Labelled]:
    """Load the model and the images.

    Raises:
        LrpGuardError: One of them cannot be loaded, or matplotlib is missing.
    """
    require_matplotlib()
    torch.set_num_threads(args.threads)
    return load_labelled(args.model, weights=args.weights, data=args.data, labels=args.labels)


def draw(make: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a script's own part; return the exit code, with the error told on standard error."""
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        make(args)
    except LrpGuardError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def save(figure: object, args: argparse.Namespace, remarks: Sequence[str] = ()) -> None:
    """Write the picture, and say so."""
    save_png(figure, args.out, dpi=DPI)  # type: ignore[arg-type]
    print("\n".join([*remarks, f"wrote {args.out}"]))
