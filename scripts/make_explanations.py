"""Measure LRP against SmoothLRP on real images, and write docs/explanations.md from the cards.

    python scripts/make_explanations.py --model resnet20
    python scripts/make_explanations.py --model squeezenet1_1
    python scripts/make_explanations.py --model resnet20 --copies 50 --rules epsilon cmp
    python scripts/make_explanations.py --tables          # the page alone, from the cards

What docs/explanations_notes.md says, where it is there, stands at the head of the page.

Weights and images come from the folder that LRPGUARD_DATA names, or from the options. An
interrupted run that is started again goes on where it stopped; see --rows.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lrpguard.errors import LrpGuardError
from lrpguard.evaluation.explanations.card import make_card
from lrpguard.evaluation.explanations.measure import Plan, Smooth, is_complete, measure, run_header
from lrpguard.evaluation.explanations.page import explanations_page, read_cards
from lrpguard.evaluation.paper import write_card
from lrpguard.evaluation.paper.setup import load_labelled
from lrpguard.noise import image_digest
from lrpguard.rowlog import RowLog
from lrpguard.smoothing import PAPER_SIGMA

ROOT = Path(__file__).resolve().parents[1]

GRID = (Smooth(4, 0.05), Smooth(8, 0.05), Smooth(8, 0.02))

RULES = (
    "epsilon",
    "epsilon-plus",
    "epsilon-gamma-box",
    "epsilon-alpha2-beta1",
    "epsilon-alpha2-beta1-flat",
    "cmp",
)
"""Every preset but LRP-0, whose maps are those of epsilon."""

PLANS: Mapping[str, Plan] = {
    "resnet20": Plan(RULES, GRID, images=300, probed=300),
    "squeezenet1_1": Plan(RULES, (Smooth(4, 0.05), Smooth(4, 0.02)), images=300, probed=300),
}
"""What is measured on each model. SqueezeNet's images are fifty times as large: fewer copies."""

CHANNELS_LAST = ("squeezenet1_1",)
"""Models run with their channels last: four fifths of the time on a CPU, maps equal to rounding."""

BATCH = {"resnet20": 20, "squeezenet1_1": 4}
"""Images measured together; a file of rows may hold fewer images of the last batch."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(PLANS), default="resnet20")
    parser.add_argument("--weights", type=Path, help="weights file")
    parser.add_argument("--data", type=Path, help="images: a folder, an .npz")
    parser.add_argument("--images", type=int, help="how many (default: the plan's)")
    parser.add_argument("--probed", type=int, help="how many for sensitivity and random weights")
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="which (default: the plan's)")
    parser.add_argument(
        "--copies",
        type=int,
        help=f"this many at sigma = {PAPER_SIGMA}, in place of the plan's grid",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--rows", type=Path, help="JSONL of rows (default build/...)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the results go")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--tables", action="store_true", help="only write the page of the cards")
    return parser.parse_args(arguments)


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the model's plan with what the command line changes."""
    plan = PLANS[args.model]
    images = plan.images if args.images is None else args.images
    probed = min(plan.probed, images) if args.probed is None else args.probed
    rules = plan.rules if args.rules is None else tuple(args.rules)
    grid = plan.grid if args.copies is None else (Smooth(args.copies, PAPER_SIGMA),)
    return replace(plan, images=images, probed=probed, seed=args.seed, rules=rules, grid=grid)


def name_of(args: argparse.Namespace) -> str:
    """Return what the files of a run are called."""
    return f"explanations_{args.model}" + (f"_n{args.copies}" if args.copies else "")


def main(arguments: list[str]) -> int:
    """Measure, and write the card and the page; return the exit code."""
    args = parse(arguments)
    try:
        if not args.tables:
            run(args)
        notes = args.docs / "explanations_notes.md"
        said = notes.read_text(encoding="utf-8") if notes.is_file() else ""
        page = explanations_page(read_cards(args.docs / "results"), notes=said)
    except LrpGuardError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    (args.docs / "explanations.md").write_text(page, encoding="utf-8")
    print("wrote explanations.md")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure what the rows do not hold yet, and write the card."""
    torch.set_num_threads(args.threads)
    plan = plan_of(args)
    loaded, data = load_labelled(args.model, weights=args.weights, data=args.data)
    (part,) = data.split([plan.images], seed=plan.seed)
    items = list(part)
    order = torch.channels_last if args.model in CHANNELS_LAST else torch.contiguous_format
    model = loaded.model.to(memory_format=order)
    rows_file = args.rows or ROOT / "build" / f"{name_of(args)}.jsonl"
    with RowLog(rows_file, run_header(model, plan)) as log:
        keys = []
        size = BATCH[args.model]
        for start in tqdm(range(0, len(items), size), "batch", disable=args.quiet, unit="batch"):
            # No batch is partly probed, so that a row has all or nothing.
            for first, last in _split(start, min(start + size, len(items)), plan.probed):
                images = torch.stack([i.image for i in items[first:last] if i.image is not None])
                images = images.contiguous(memory_format=order)
                keys += _measured(model, images, first < plan.probed, plan, log)
        stored = [log.rows[key] for key in keys]
    card = make_card(
        args.model,
        "CIFAR-10 test images" if args.model == "resnet20" else "ImageNet samples",
        [row["values"] for row in stored],
        plan=plan,
        indices=part.indices,
        command=command(args, plan),
        seconds=sum(row["seconds"] for row in stored),
    )
    write_card(card, args.docs / "results" / f"{name_of(args)}.json")


def command(args: argparse.Namespace, plan: Plan) -> str:
    """Return the command without the folders of this machine."""
    words = ["python", "scripts/make_explanations.py", "--model", args.model]
    if args.copies is not None:
        words += ["--copies", str(args.copies)]
    if args.rules is not None:
        words += ["--rules", *args.rules]
    for name in ("images", "probed", "seed"):
        words += [f"--{name}", str(getattr(plan, name))]
    return shlex.join(words)


def _split(first: int, last: int, probed: int) -> list[tuple[int, int]]:
    """Cut a range where the probed images end."""
    if first < probed < last:
        return [(first, probed), (probed, last)]
    return [(first, last)]


def _measured(
    model: torch.nn.Module, images: torch.Tensor, probe: bool, plan: Plan, log: RowLog
) -> list[str]:
    """Measure images that the log does not hold, and enter them; return the keys of all."""
    keys = [image_digest(image, b"").hex() + ("/probed" if probe else "") for image in images]
    missing = [i for i, key in enumerate(keys) if not _stored(log.rows.get(key), plan, probe)]
    if missing:
        begun = time.process_time()
        rows = measure(model, images[missing], plan=plan, probe=probe)
        seconds = (time.process_time() - begun) / len(missing)
        for i, row in zip(missing, rows, strict=True):
            log.add(keys[i], {"values": row, "seconds": round(seconds, 3)})
    return keys


def _stored(row: dict[str, Any] | None, plan: Plan, probe: bool) -> bool:
    return row is not None and is_complete(row["values"], plan, probe=probe)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
