"""Time whole requests: requests a second, latency, and what share of the device's peak they reach.

    python scripts/bench_requests.py --device cuda                  # VGG16 and ResNet-50, n = 50
    python scripts/bench_requests.py --requests 3 --batches 1       # minutes on one core of a CPU

A request is all that a guard runs through the model for one image: its prediction, n noisy copies
there and back, the changed views. The way of the copies is what Guard.prepare() chooses. The peak
is that of a large matrix product in the same precision, which takes turns with the requests; the
operations of a request are counted on a plain forward and input-gradient backward by torch. Weights
are random. Writes its section of docs/performance.md, and JSON.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrpguard import Guard, Smoothing
from lrpguard.copies import Way
from lrpguard.evaluation.timing import (
    command_line,
    machine,
    paired_ratio,
    peak_memory,
    peak_of_process,
    setting,
    take_turns,
    write_results,
)
from lrpguard.smoothing import PAPER_N
from lrpguard.views import changed_views

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("vgg16", "resnet50")
BATCHES = (1, 32)
SHARE = ("ratio", "low", "high")
"""What is kept of the ratio of the peak to a request."""

SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices of the peak, by device."""


def make_model(name: str, device: str) -> nn.Module:
    """Build a network of torchvision with random weights."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model.eval().requires_grad_(False).to(device)


def make_images(batch: int, size: int, device: str) -> Tensor:
    """Return images of random pixels, another for each place."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, size, size, generator=generator).to(device)


def operations(model: nn.Module, image: Tensor, n: int) -> int:
    """Count the floating-point operations of one request: a multiplication and an addition are two.

    Only what convolutions, dense layers and matrix products do is counted, as is usual.
    """
    leaf = image.clone().requires_grad_()
    with FlopCounterMode(display=False) as both:
        model(leaf)[:, 0].sum().backward()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(image)
    views = len(changed_views(image[0]))
    total: int = n * both.get_total_flops() + (1 + views) * forward.get_total_flops()
    return total


def bench(name: str, args: argparse.Namespace) -> tuple[Way, dict[str, Any]]:
    """Time the requests of one network in batches of each size; return the way, too."""
    model = make_model(name, args.device)
    guard = Guard(model, smoothing=Smoothing(n=args.n), restoration=None)
    image = make_images(1, args.size, args.device)
    way = guard.prepare(image).way
    one = operations(model, image, args.n)
    side = args.side or SIDE["cpu" if args.device == "cpu" else "cuda"]
    square = torch.rand(side, side, device=args.device)
    lines = []
    for batch in args.batches:
        images = make_images(batch, args.size, args.device)
        times = take_turns(
            {
                "peak": lambda: square @ square,
                "request": partial(guard.evidence, images, views=True),
            },
            max(args.requests // batch, 1),
            device=args.device,
        )
        share = paired_ratio(times["peak"], times["request"])
        work = batch * one / (2 * side**3)
        p50, p99 = (float(np.quantile(times["request"], level)) for level in (0.5, 0.99))
        lines.append(
            {
                "batch": batch,
                "repeats": share.repeats,
                "p50": p50,
                "p99": p99,
                "requests_a_second": batch / p50,
                "flops_a_second": batch * one / p50,
                "share": {key: asdict(share)[key] * work for key in SHARE},
            }
        )
    return way, {"way": str(way), "operations": one, "side": side, "lines": lines}


def peak(name: str, way: Way, args: argparse.Namespace) -> int:
    """Return the peak bytes of this process, or of the GPU, after one request in a way."""
    model = make_model(name, args.device)
    guard = Guard(model, smoothing=Smoothing(n=args.n, way=way), restoration=None)
    guard.evidence(make_images(1, args.size, args.device), views=True)
    return peak_memory(args.device)


def page(record: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    text = [
        "## Whole requests",
        "",
        f"Made by `{record['command']}`; do not edit.",
        "",
        f"{setting(record['machine'])} Images of {record['size']} x {record['size']} random "
        f"pixels, n = {record['n']}, float32, random weights, seed 0; a request is the prediction, "
        "the copies and the changed views, without calibration and restoration. *Share of the "
        "peak*: of the operations a second of a large matrix product in turns with the requests, "
        "median of the repeats with its 95 % bootstrap interval, which for fewer than six repeats "
        "is hardly more than their range. p99 lies near the largest where "
        "there are fewer than a hundred repeats.",
        "",
        "| network | images a batch | repeats | requests a second | p50, s | p99, s "
        "| operations a request | share of the peak | peak memory, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in record["networks"].items():
        memory = "-" if found["peak"] is None else f"{found['peak'] / 2**20:.0f}"
        for line in found["lines"]:
            middle, low, high = (f"{100 * line['share'][key]:.0f}" for key in SHARE)
            text.append(
                f"| {name} | {line['batch']} | {line['repeats']} "
                f"| {line['requests_a_second']:.3g} | {line['p50']:.3g} | {line['p99']:.3g} "
                f"| {found['operations']:.2e} | {middle} ({low}-{high}) % | {memory} |"
            )
    ways = "; ".join(f"{name} {found['way']}" for name, found in record["networks"].items())
    return "\n".join([*text, "", f"Chosen by `Guard.prepare()`: {ways}.", ""])


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--n", type=int, default=PAPER_N, help=f"copies (default {PAPER_N})")
    parser.add_argument("--requests", type=int, default=100, help="images of each batch size")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--size", type=int, default=224, help="height and width (default 224)")
    parser.add_argument("--side", type=int, help="rows of the matrices (default 2048, GPU 8192)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the results go")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "FORMAT"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, print and write; return the exit code."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    if args.peak:
        name, memory_format = args.peak
        print(peak(name, Way(memory_format), args))
        return 0
    shape = [f"--{k}={getattr(args, k)}" for k in ("n", "size", "device", "threads")]
    record: dict[str, Any] = {
        "command": command_line("bench_requests", arguments),
        "machine": machine(args.device),
        "n": args.n,
        "size": args.size,
        "networks": {},
    }
    for name in args.networks:
        way, found = bench(name, args)
        one = ["--peak", name, way.memory_format, *shape]
        memory = None if args.no_memory else peak_of_process(__file__, one)
        record["networks"][name] = found | {"peak": memory}
    text = page(record)
    write_results(args.out, "bench_requests", record, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
