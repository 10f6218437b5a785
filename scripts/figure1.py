"""Figure 1 of the paper, ours: LRP rules and B-LRP against their smoothed versions, one image.

    python scripts/figure1.py [--model vgg16] [--data castle.jpg] [--colors seismic]

SqueezeNet 1.1 and an image of LRPGUARD_DATA by default; about a minute on one core. The columns
are LRP-0, LRP-gamma, LRP-epsilon, LRP-CMP and B-LRP; above the plain map, below its mean over noisy
copies. B-LRP samples networks by dropout; its smoothed version samples one for each noisy copy. The
last column is the paper's: B-LRP's median over networks above SmoothLRP-0's median over copies.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.labelled import Labelled
from lrpguard.evaluation.paper.pictures import figure1_panels, rule_pairs
from lrpguard.evaluation.paper.script import draw, figure_parser, open_data, save, smoothing_of
from lrpguard.figures import panel_figure
from lrpguard.loading import ImageItem
from lrpguard.loading.data import FileSource

PREFERRED = ("castle", "palace")
"""Image to show where none is named: the paper's castle, or what comes next to it."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = figure_parser(__doc__, figure="figure1")
    parser.add_argument("--image", help="part of the image's name (default: a castle, a palace)")
    parser.add_argument("--gamma", type=float, default=0.25, help="of LRP-gamma (default 0.25)")
    parser.add_argument("--epsilon", type=float, default=1.0, help="of LRP-epsilon (default 1)")
    return parser.parse_args(arguments)


def chosen(data: Labelled, name: str | None) -> ImageItem:
    """Return the image of that name, or of a preferred one, or the first.

    Raises:
        ConfigurationError: No image has the name.
    """
    source = data.source
    names = source.names if isinstance(source, FileSource) else [item.name for item in data]
    for wanted in PREFERRED if name is None else (name,):
        for index, found in enumerate(names):
            if wanted in found:
                return replace(source[index], label=data.labels[index])
    if name is not None:
        raise ConfigurationError(f"no image's name has {name!r} in it; there are {len(data)}.")
    return next(iter(data))


def make(args: argparse.Namespace) -> None:
    """Compute the maps and draw them."""
    loaded, data = open_data(args)
    item = chosen(data, args.image)
    assert item.image is not None
    pairs = rule_pairs(
        loaded.model,
        item.image,
        smoothing=smoothing_of(args),
        gamma=args.gamma,
        epsilon=args.epsilon,
    )
    figure = panel_figure(
        figure1_panels(loaded, item, pairs),
        title=f"LRP and SmoothLRP on {args.model}: relevance, red for and blue against; each map "
        f"has its own scale\nn = {args.n} copies, sigma = {args.sigma:g}, seed {args.seed}",
        names=("LRP", "SmoothLRP"),
        colors=args.colors,
    )
    save(figure, args)


def main(arguments: list[str]) -> int:
    """Draw the figure; return the exit code."""
    return draw(make, parse(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
