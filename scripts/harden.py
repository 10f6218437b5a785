"""Measure guards made harder to pass, before and after, each attacked by what knows it.

    python scripts/harden.py --model resnet20
    python scripts/harden.py --model robust_resnet8 --levels 8
    python scripts/red_team.py            # the page, from all cards

Weights and images come from the folder that LRPGUARD_DATA names; those of robust_resnet8, made by
scripts/train_robust.py, lie in docs/results. Clean images calibrate the guard, others put the
variants' signals on one scale, others calibrate every variant; the test images are others again.
Writes docs/results/hardening_MODEL.json.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import get_args

import torch

from lrpguard import Smoothing
from lrpguard.attacks.adaptive import Manner
from lrpguard.evaluation.cifar_resnet import MEAN, STD
from lrpguard.evaluation.labelled import labelled
from lrpguard.evaluation.paper.card import write_card
from lrpguard.evaluation.paper.setup import DATA_VARIABLE
from lrpguard.evaluation.protocol import draw_splits
from lrpguard.loading import load_data, load_model
from lrpguard.redteam.harden import Sizes, harden

ROOT = Path(__file__).resolve().parents[1]
ROBUST = "robust_resnet8"


def main(arguments: list[str]) -> int:
    """Measure, and write the card; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("resnet20", ROBUST), default="resnet20")
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 4, 8], help="eps, of 255")
    parser.add_argument("--test", type=int, default=26, help="images; those right are attacked")
    parser.add_argument("--pool", type=int, default=400, help="clean images for the guard")
    parser.add_argument("--variants", type=int, default=400, help="clean images for the variants")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--manners", nargs="+", choices=get_args(Manner), default=["joint"])
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = Path(os.environ.get(DATA_VARIABLE, ROOT.parent / "shared" / "data"))
    robust = args.model == ROBUST
    weights = (
        ROOT / "docs" / "results" / f"{ROBUST}.safetensors"
        if robust
        else folder / "models" / "resnet20_cifar10.safetensors"
    )
    name = f"lrpguard.evaluation.cifar_resnet:{'resnet8' if robust else 'resnet20'}"
    loaded = load_model(name, weights=weights, mean=MEAN, std=STD)
    source = load_data(folder / "cifar10" / "test_5000.npz", preprocessing=loaded.preprocessing)
    splits = draw_splits(
        labelled(source, classes=10, labels_file=None),
        pool=args.pool + args.variants,
        test=args.test,
        seed=args.seed,
    )
    card = harden(
        loaded.model,
        splits,
        Smoothing(n=args.n, sigma=args.sigma),
        Sizes(
            guard=args.pool,
            steps=args.steps,
            levels=tuple(args.levels),
            manners=tuple(args.manners),
        ),
        seed=args.seed,
        progress=lambda line: print(line, flush=True),
    )
    card |= {
        "model": args.model,
        "data": "test_5000.npz",
        "command": shlex.join(["python", "scripts/harden.py", *_shown(arguments)]),
    }
    path = args.out / f"hardening_{args.model}.json"
    write_card(card, path)
    print(f"wrote {path.name}")
    return 0


def _shown(arguments: list[str]) -> list[str]:
    """Return the arguments without the folder, which is a matter of the machine."""
    if "--out" in arguments:
        place = arguments.index("--out")
        return arguments[:place] + arguments[place + 2 :]
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
