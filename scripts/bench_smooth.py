"""Time SmoothLRP over its limit, beside zennit and captum, and measure its peak memory.

The limit is what torch's own autograd takes for a plain forward and an input-gradient backward of
the same noisy copies, already made, in chunks of the same size, with frozen parameters. All else
that SmoothLRP does comes on top: the noise, the prediction for the clean image, the rules, the
streamed moments.

    python scripts/bench_smooth.py            # writes its section of docs/performance.md, and JSON
    python scripts/bench_smooth.py --quick    # a minute, to see that it runs

Methods take turns within each repeat, so that what else the machine does falls on all of them.
On a CPU the clock is the CPU time of the process, with one thread unless --threads says
otherwise; on a GPU it is wall time after a synchronisation. Weights are random: they do not
change the time.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lrpguard import Guard, Smoothing
from lrpguard.attribution.methods import Lrp, MemoryFormat
from lrpguard.copies import Way
from lrpguard.evaluation.cifar_resnet import resnet20
from lrpguard.evaluation.timing import (
    Method,
    command_line,
    machine,
    paired_ratio,
    peak_memory,
    peak_of_process,
    setting,
    take_turns,
    write_results,
)
from lrpguard.moments import RunningMoments
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from lrpguard.preparing import distances
from lrpguard.smoothing import PAPER_N, PAPER_SIGMA, chunk_size

ROOT = Path(__file__).resolve().parents[1]
TIME_BAR = 1.15
MEMORY_BAR = 1.05
PEAK_COPIES = (50, 500)
EPSILON = 1e-9
RIGHT = 1e-4
"""Largest distance of the median copy to gradient x input at which relevance counts as right."""

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SqueezeNet 1.1": (torchvision.models.squeezenet1_1, 224),
    "ResNet-20": (resnet20, 32),
}
"""Constructor and image size of each network."""


@dataclass(frozen=True)
class Case:
    """One network, one image, its noisy copies, and how many of them go through at a time."""

    name: str
    model: nn.Module
    image: Tensor
    copies: Tensor
    label: int
    chunk: int


def make_case(name: str, *, n: int, device: str, chunk: int | None = None) -> Case:
    """Build a network with random weights, an image and its copies."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False).to(device)
    image = torch.rand(1, 3, size, size).to(device)
    smoothing = Smoothing(n=n)
    noise = gaussian_copies(image_digest(image[0], key_bytes(0)), 0, n, image.shape[1:])
    if chunk is None:
        chunk = chunk_size(model, image, composite=smoothing.composite, memory_budget=None)
    with torch.no_grad():
        label = int(model(image).argmax())
    return Case(name, model, image, image + PAPER_SIGMA * noise.to(device), label, chunk)


def gradients(case: Case) -> Tensor:
    """Return the input gradients of the copies, [n, C, H, W]: the limit."""
    found = []
    for part in case.copies.split(case.chunk):
        leaf = part.clone().requires_grad_()
        found += torch.autograd.grad(case.model(leaf)[:, case.label].sum(), leaf)
    return torch.cat(found)


def exact_relevance(case: Case) -> Tensor:
    """Return gradient x input in float64, to which epsilon 1e-9 comes down, [n, C, H, W]."""
    exact = replace(
        case, model=copy.deepcopy(case.model).double(), copies=case.copies.double(), chunk=1
    )
    return exact.copies * gradients(exact)


def smooth_lrp(case: Case, n: int, memory_format: MemoryFormat = "contiguous") -> Method:
    """Return SmoothLRP of the image, its chunk size measured beforehand, as in a guard."""
    smoothing = Smoothing(n=n, way=Way(memory_format))
    guard = Guard(case.model, smoothing=smoothing, restoration=None)
    guard.evidence(case.image)
    return lambda: guard.evidence(case.image)


def zennit_lrp(case: Case) -> Callable[[], Tensor]:
    """Return LRP-epsilon of the copies by zennit, batch normalisation merged, as its docs say."""
    from zennit.attribution import Gradient
    from zennit.canonizers import NamedMergeBatchNorm
    from zennit.composites import LayerMapComposite
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.types import Activation, AvgPool, Convolution

    names = [name for name, m in case.model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    pairs = [([name.replace("bn", "conv")], name) for name in names]
    layers = [
        (Activation, Pass()),
        (AvgPool, Norm()),
        ((Convolution, nn.Linear), Epsilon(EPSILON)),
    ]
    composite = LayerMapComposite(layers, canonizers=[NamedMergeBatchNorm(pairs)] if pairs else [])

    def run() -> Tensor:
        start = _start(case.label)
        with Gradient(case.model, composite) as attributor:
            found = [attributor(part, start)[1] for part in case.copies.split(case.chunk)]
        return torch.cat(found).detach()

    return run


def captum_lrp(case: Case) -> Callable[[], Tensor]:
    """Return LRP-epsilon of the copies by captum, with its default rules."""
    from captum.attr import LRP

    def run() -> Tensor:
        method = LRP(case.model)
        parts = [part.clone().requires_grad_() for part in case.copies.split(case.chunk)]
        return torch.cat([method.attribute(part, target=case.label).detach() for part in parts])

    return run


def _start(label: int) -> Callable[[Tensor], Tensor]:
    """Return zennit's start: the explained logit, zero elsewhere."""

    def start(logits: Tensor) -> Tensor:
        mask = torch.zeros_like(logits)
        mask[:, label] = 1
        return logits.detach() * mask

    return start


def bench(
    case: Case, *, n: int, repeats: int, peer_repeats: int, device: str
) -> list[dict[str, Any]]:
    """Time the limit, SmoothLRP, and the peers that run; return the lines of the table."""
    ours: dict[str, Method] = {
        "limit": lambda: gradients(case),
        "lrpguard": smooth_lrp(case, n),
        "by pixel": smooth_lrp(case, n, "channels_last"),
    }
    times = take_turns(ours, repeats, device=device)
    exact = exact_relevance(case)
    notes = {
        "limit": compare(case.copies * gradients(case), exact),
        "lrpguard": compare(relevances(case), exact),
        "by pixel": compare(relevances(case, "channels_last"), exact),
    }
    titles = {
        "limit": "limit: forward + input gradient",
        "lrpguard": "lrpguard SmoothLRP, all of it",
        "by pixel": "the same, copies in channels_last",
    }
    lines = [
        _line(title, times[name], times["limit"], notes[name]) for name, title in titles.items()
    ]
    for name, make in (("zennit 0.5.1 Epsilon", zennit_lrp), ("captum LRP", captum_lrp)):
        try:
            method = make(case)
            note = compare(method(), exact)
        except Exception as error:  # what a peer raises is part of the result
            text = " ".join((str(error) or type(error).__name__).split())
            lines.append({"method": name, "seconds": None, "note": f"refuses: {text[:120]}"})
            continue
        peers: dict[str, Method] = {"limit": lambda: gradients(case), "peer": method}
        times = take_turns(peers, peer_repeats, device=device)
        lines.append(_line(name, times["peer"], times["limit"], note))
    return lines


def _line(method: str, seconds: list[float], limit: list[float], note: str) -> dict[str, Any]:
    return {"method": method, **asdict(paired_ratio(seconds, limit)), "note": note}


def relevances(case: Case, memory_format: MemoryFormat = "contiguous") -> Tensor:
    """Return the relevance of the copies by this package's engine, [n, C, H, W]."""
    method = Lrp(memory_format=memory_format)
    target = torch.full((len(case.copies),), case.label, device=case.copies.device)
    parts = zip(case.copies.split(case.chunk), target.split(case.chunk), strict=True)
    return torch.cat([method.attribute(case.model, *part).relevance for part in parts])


def compare(found: Tensor, exact: Tensor) -> str:
    """Say how far the relevance of the copies is from the exact one.

    The median copy decides: where rounding tips a single ReLU or max-pool of a copy, torch's own
    gradient of it is far from the exact one, too.
    """
    each = distances(found, exact)
    verdict = "right" if each.median() <= RIGHT else "**wrong**"
    return f"{verdict}: {float(each.median()):.1e}, worst copy {float(each.max()):.1e}"


def parts(case: Case, *, n: int, repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of the parts of SmoothLRP outside its passes."""
    digest = image_digest(case.image[0], key_bytes(0))
    maps = torch.rand(min(case.chunk, n), *case.image.shape[2:])

    def moments() -> None:
        running = RunningMoments()
        for _ in range(0, n, len(maps)):
            running.update(maps)

    def noise() -> None:
        for first in range(0, n, case.chunk):
            gaussian_copies(digest, first, min(case.chunk, n - first), case.image.shape[1:])

    def clean() -> None:
        with torch.no_grad():
            case.model(case.image)

    methods: dict[str, Method] = {"noise": noise, "clean prediction": clean, "moments": moments}
    times = take_turns(methods, repeats, device="cpu")
    return {name: float(median(seconds)) for name, seconds in times.items()}


def chunks(name: str, *, n: int, sizes: list[int], repeats: int, device: str) -> dict[int, float]:
    """Return the median seconds of the limit at each chunk size."""
    cases = {size: make_case(name, n=n, device=device, chunk=size) for size in sizes}
    methods: dict[str, Method] = {
        str(size): partial(gradients, case) for size, case in cases.items()
    }
    times = take_turns(methods, repeats, device=device)
    return {size: float(median(times[str(size)])) for size in sizes}


def peak(name: str, n: int, device: str) -> int:
    """Return the peak bytes of this process, or of the GPU, after one SmoothLRP with n copies."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    guard = Guard(make().eval().to(device), smoothing=Smoothing(n=n), restoration=None)
    guard.evidence(torch.rand(1, 3, size, size).to(device))
    return peak_memory(device)


def peaks(name: str, *, copies: list[int], device: str, threads: int) -> dict[int, int]:
    """Return the peak of each number of copies, each in a process of its own."""
    return {
        n: peak_of_process(
            __file__, ["--peak", name, str(n), "--device", device, "--threads", str(threads)]
        )
        for n in copies
    }


def page(record: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    about = record["machine"]
    first, last = PEAK_COPIES
    text = [
        "## SmoothLRP",
        "",
        f"Made by `{record['command']}`; do not edit.",
        "",
        f"{setting(about)} One image, n = {record['n']} copies, random weights. The *limit* is a "
        "plain forward and input-gradient backward of the same copies in the same chunks, by torch "
        "alone; SmoothLRP adds the noise, the clean prediction, the rules and the streamed "
        "moments. `Guard.prepare()` chooses between copies as torch has them by default and in "
        "channels_last. *Its relevance*: relative L2 distance of the median copy, and of the "
        "worst, to gradient x input by torch in float64. Methods took turns; each ratio is the "
        "median over the repeats of the time over the limit's in the same repeat, with the 95 % "
        "bootstrap interval of that median.",
        "",
    ]
    for name, found in record["networks"].items():
        text += [
            f"### {name}, {found['size']} x {found['size']}, chunks of {found['chunk']}",
            "",
            "| | seconds | times the limit | repeats | its relevance |",
            "| --- | --- | --- | --- | --- |",
            *(_row(entry) for entry in found["lines"]),
            "",
            f"Bar: {TIME_BAR}. Parts of SmoothLRP outside its passes, in ms of CPU time: "
            + ", ".join(f"{part} {1000 * s:.1f}" for part, s in found["parts"].items())
            + ".",
            "",
        ]
        if found["chunks"]:
            text += [
                "Limit by chunk size, in ms a copy: "
                + ", ".join(
                    f"{k}: {1000 * s / record['n']:.1f}" for k, s in found["chunks"].items()
                )
                + ".",
                "",
            ]
        if found["peaks"]:
            small, large = (found["peaks"][n] for n in record["copies"])
            text += [
                f"Peak memory of a process with n = {first} and n = {last}: "
                f"{small / 2**20:.0f} and {large / 2**20:.0f} MiB, "
                f"{100 * (large / small - 1):+.1f} % (bar: +{100 * (MEMORY_BAR - 1):.0f} %).",
                "",
            ]
    return "\n".join(text)


def _row(entry: dict[str, Any]) -> str:
    if entry["seconds"] is None:
        return f"| {entry['method']} | - | - | - | {entry['note']} |"
    ratio = f"{entry['ratio']:.3f} ({entry['low']:.3f}-{entry['high']:.3f})"
    return (
        f"| {entry['method']} | {entry['seconds']:.3f} | {ratio} | {entry['repeats']} "
        f"| {entry['note']} |"
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--n", type=int, default=PAPER_N, help="noisy copies (default 50)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peer-repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the results go")
    parser.add_argument("--quick", action="store_true", help="few repeats, no memory, no sweep")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "N"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, print and write; return the exit code."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak(args.peak[0], int(args.peak[1]), args.device))
        return 0
    repeats, peer_repeats = (3, 1) if args.quick else (args.repeats, args.peer_repeats)
    record: dict[str, Any] = {
        "command": command_line("bench_smooth", arguments),
        "machine": machine(args.device),
        "n": args.n,
        "copies": list(PEAK_COPIES),
        "networks": {},
    }
    for name in args.networks:
        case = make_case(name, n=args.n, device=args.device)
        lines = bench(
            case, n=args.n, repeats=repeats, peer_repeats=peer_repeats, device=args.device
        )
        found = {
            "size": case.image.shape[2],
            "chunk": min(case.chunk, args.n),
            "lines": lines,
            "parts": parts(case, n=args.n, repeats=repeats),
            "chunks": {},
            "peaks": {},
        }
        if not args.quick:
            sizes = sorted({1, 2, 5, min(case.chunk, args.n), 25, args.n})
            found["chunks"] = chunks(
                name, n=args.n, sizes=sizes, repeats=peer_repeats, device=args.device
            )
            found["peaks"] = peaks(
                name, copies=list(PEAK_COPIES), device=args.device, threads=args.threads
            )
        record["networks"][name] = found
    text = page(record)
    write_results(args.out, "bench_smooth", record, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
