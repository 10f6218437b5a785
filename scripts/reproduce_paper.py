"""Repeat the paper's experiment on a model, and write its card and the table of all cards.

The default is the paper's own network, VGG16, with torchvision's weights, which are downloaded:

    python scripts/reproduce_paper.py --images IMAGENET_VAL --calibration-images FOOLBOX_IMAGES

With weights in a file, or on CIFAR-10:

    python scripts/reproduce_paper.py --model squeezenet1_1 --weights FILE --images DIR \
        --calibration-images DIR
    python scripts/reproduce_paper.py --model resnet20 --weights FILE --cifar FILE.npz

Where the environment variable LRPGUARD_DATA names a folder, its weights and images are the
defaults. An interrupted run that is started again goes on where it stopped; see --rows.
``--tables`` makes the table from the cards that are there, and runs nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from lrpguard.errors import LrpGuardError
from lrpguard.evaluation.paper import (
    Settings,
    card_table,
    make_card,
    reproduction_page,
    run_header,
    run_paper,
    write_card,
)
from lrpguard.evaluation.paper.setup import MODELS, Paths, load_experiment
from lrpguard.rowlog import RowLog

ROOT = Path(__file__).resolve().parents[1]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="vgg16")
    parser.add_argument("--weights", type=Path, help="weights file; VGG16 may do without")
    parser.add_argument("--images", type=Path, help="folder of ImageNet images to test on")
    parser.add_argument("--labels", type=Path, help="'name,label' lines for --images")
    parser.add_argument(
        "--calibration-images", type=Path, help="the 20 Foolbox images (imagenet_II_CCC.jpg)"
    )
    parser.add_argument("--cifar", type=Path, help=".npz with images and labels")
    parser.add_argument("--test", type=int, default=300, help="images to attack (default 300)")
    parser.add_argument(
        "--conformal", type=int, default=400, help="clean images for 5 %% FPR; at most the rest"
    )
    parser.add_argument("--n", type=int, default=Settings.n, help="noisy copies (default 50)")
    parser.add_argument("--max-rounds", type=int, default=Settings.max_rounds)
    parser.add_argument(
        "--stop-early", action="store_true", help="end the attack once the label has changed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--rows", type=Path, help="JSONL of rows (default build/paper_MODEL.jsonl)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the results go")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--tables", action="store_true", help="only write the table of the cards")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the experiment; return the exit code."""
    args = parse(arguments)
    try:
        if not args.tables:
            run(args, arguments)
    except LrpGuardError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    page = args.docs / "reproduction.md"
    page.write_text(reproduction_page(args.docs / "results"), encoding="utf-8")
    print(f"wrote {page.name}")
    return 0


def run(args: argparse.Namespace, arguments: list[str]) -> None:
    """Run what the rows do not hold yet, print the table, and write the card."""
    torch.set_num_threads(args.threads)
    experiment = load_experiment(
        args.model,
        Paths(args.weights, args.images, args.labels, args.calibration_images, args.cifar),
        test=args.test,
        conformal=args.conformal,
        seed=args.seed,
        device=args.device,
    )
    settings = Settings(
        n=args.n,
        stop_early=args.stop_early,
        max_rounds=args.max_rounds,
        pixels=experiment.pixels,
        seed=args.seed,
    )
    name = args.model + ("_stop_early" if args.stop_early else "")
    rows = args.rows or ROOT / "build" / f"paper_{name}.jsonl"
    header = run_header(experiment.model, experiment.splits, settings)
    with RowLog(rows, header) as log:
        outcome = run_paper(
            experiment.model,
            experiment.splits,
            settings=settings,
            rows=log,
            progress=not args.quiet,
        )
    card = make_card(
        args.model,
        outcome,
        model=experiment.model,
        settings=settings,
        image_shape=experiment.image_shape,
        command=shlex.join(["python", "scripts/reproduce_paper.py", *portable(arguments)]),
    )
    write_card(card, args.docs / "results" / f"paper_{name}.json")
    print(card_table(card))


def portable(arguments: list[str]) -> list[str]:
    """Return the arguments without the folders of this machine, rows and progress."""
    kept = parse(arguments)
    command = ["--model", kept.model]
    for option in ("weights", "images", "labels", "calibration_images", "cifar"):
        path: Path | None = getattr(kept, option)
        if path is not None:
            command += [f"--{option.replace('_', '-')}", path.name]
    for option in ("test", "conformal", "n", "max_rounds", "seed"):
        command += [f"--{option.replace('_', '-')}", str(getattr(kept, option))]
    return command + ["--stop-early"] * kept.stop_early


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
