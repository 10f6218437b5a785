"""Figure 3 of the paper, ours: an adversarial image, its relevance variance, its restoration.

    python scripts/figure3.py [--model vgg16] [--data FOLDER] [--tries 20] [--all-steps]

SqueezeNet 1.1 and images of LRPGUARD_DATA by default. Images are attacked by PGD (5/255, at most 10
steps; it stops at the first step that changes the label, as the paper's toolbox did, unless
``--all-steps``) until whitening the pixels of highest variance restores the right label of one. The
title says how many attacks were looked at, and where none of ``--tries`` is restored, the first
is shown as it is: how seldom it works, docs/reproduction.md counts.
"""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from lrpguard.evaluation.paper import Settings
from lrpguard.evaluation.paper.pictures import figure3_panels, find_reversal
from lrpguard.evaluation.paper.script import draw, figure_parser, open_data, save
from lrpguard.evaluation.paper.setup import MODELS
from lrpguard.figures import panel_figure
from lrpguard.restoration import PAPER_PIXELS


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = figure_parser(__doc__, figure="figure3")
    parser.add_argument("--tries", type=int, default=20, help="attacks at most (default 20)")
    parser.add_argument("--all-steps", action="store_true", help="attack on after it succeeded")
    return parser.parse_args(arguments)


def make(args: argparse.Namespace) -> None:
    """Attack, restore, and draw."""
    loaded, data = open_data(args)
    settings = Settings(
        n=args.n,
        sigma=args.sigma,
        seed=args.seed,
        stop_early=not args.all_steps,
        pixels=None if MODELS[args.model].cifar else PAPER_PIXELS,
    )
    (order,) = data.split([len(data)], seed=args.seed)
    reversal = find_reversal(
        loaded.model,
        tqdm(order, "attack", unit="image"),
        settings=settings,
        tries=args.tries,
    )
    found = (
        f"the first that whitening restored: number {reversal.tried} of the successful attacks"
        if reversal.is_right
        else f"whitening restored none of {reversal.tried} successful attacks; this is the first"
    )
    figure = panel_figure(
        figure3_panels(loaded, reversal),
        title=f"{reversal.item.name}: PGD {255 * settings.eps:.0f}/255 on {args.model}\n{found}\n"
        f"n = {args.n} copies, sigma = {args.sigma:g}, seed {args.seed}",
    )
    save(figure, args, [found])


def main(arguments: list[str]) -> int:
    """Draw the figure; return the exit code."""
    return draw(make, parse(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
