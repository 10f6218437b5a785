"""Figure 2 of the paper, ours: LRP-CMP against SmoothLRP-CMP on many images.

    python scripts/figure2.py [--model vgg16] [--data FOLDER] [--images 12] [--colors seismic]

SqueezeNet 1.1 and images of LRPGUARD_DATA by default, drawn at random by ``--seed``; 12 images take
about two minutes on one core. Nobody has chosen them, and wrongly classified ones say so.
"""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from lrpguard.evaluation.paper.pictures import figure2_panels
from lrpguard.evaluation.paper.script import draw, figure_parser, open_data, save, smoothing_of
from lrpguard.figures import panel_figure


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = figure_parser(__doc__, figure="figure2")
    parser.add_argument("--images", type=int, default=12, help="how many (default 12)")
    return parser.parse_args(arguments)


def make(args: argparse.Namespace) -> None:
    """Compute the maps and draw them."""
    loaded, data = open_data(args)
    (part,) = data.split([args.images], seed=args.seed)
    bar = tqdm(part, "explain", len(part), unit="image")
    figure = panel_figure(
        figure2_panels(loaded, bar, smoothing=smoothing_of(args)),
        title=f"LRP-CMP and SmoothLRP-CMP on {args.model}: relevance, red for and blue against; "
        f"each map has its own scale\nn = {args.n} copies, sigma = {args.sigma:g}, {args.images} "
        f"images drawn with seed {args.seed}",
        colors=args.colors,
    )
    save(figure, args)


def main(arguments: list[str]) -> int:
    """Draw the figure; return the exit code."""
    return draw(make, parse(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
