"""Time the engine's rules over their limit, beside zennit and captum, and what they keep.

The limit is what torch's own autograd takes for a plain forward and an input-gradient backward of
the same batch with frozen parameters, whatever the rule: no rule can be had for less.

    python scripts/bench_engine.py            # writes its section of docs/performance.md, and JSON
    python scripts/bench_engine.py --quick    # a few minutes, to see that it runs

Methods take turns within each repeat; the clock is as in bench_smooth.py. Weights are random.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

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
from lrpguard.lrp import EPSILON, EPSILON_PLUS, Composite, Epsilon, Gamma, LayerRule, relevance
from lrpguard.lrp.engine import held_for_backward, saved_bytes
from lrpguard.lrp.weights import WeightCache
from lrpguard.preparing import distances

ROOT = Path(__file__).resolve().parents[1]
RIGHT = 1e-3
"""Largest relative L2 distance of the median image at which two engines' relevance is the same."""

NETWORKS: dict[str, int] = {"squeezenet1_1": 8, "resnet50": 4, "vgg16": 2}
"""Networks of torchvision.models, and images a batch: about a chunk of SmoothLRP on a CPU."""

SIZE = 224
GAMMA = 0.25
RULES: dict[str, tuple[Composite, float]] = {
    "epsilon": (EPSILON, 1.05),
    "gamma": (
        Composite("gamma", Epsilon(1e-6), (LayerRule(Gamma(GAMMA), kind="convolution"),)),
        1.6,
    ),
    "z-plus": (EPSILON_PLUS, 1.6),
}
"""Each rule on the convolutions (dense layers epsilon), and the bar of its ratio to the limit."""


@dataclass(frozen=True)
class Case:
    """One network with random weights and one batch."""

    name: str
    model: nn.Module
    images: Tensor
    target: Tensor


def make_case(name: str, *, batch: int, size: int, device: str) -> Case:
    """Build a network and a batch of noisy pixels."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().requires_grad_(False)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.0  # zennit leaves a normalisation with this eps behind when it merges
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    model = model.to(device)
    images = (torch.rand(batch, 3, size, size) + 0.05 * torch.randn(batch, 3, size, size)).to(
        device
    )
    with torch.no_grad():
        return Case(name, model, images, model(images).argmax(1))


def limit(case: Case) -> Tensor:
    """Return the input gradient of the batch by plain autograd."""
    leaf = case.images.clone().requires_grad_()
    logits = case.model(leaf)
    return torch.autograd.grad(logits.gather(1, case.target[:, None]).sum(), leaf)[0]


def ours(case: Case, rule: str) -> Callable[[], Tensor]:
    """Return the engine's pass, its weights made beforehand, as for all chunks but the first."""
    composite, cache = RULES[rule][0], WeightCache()
    return lambda: (
        relevance(case.model, case.images, case.target, composite=composite, cache=cache).relevance
    )


def zennit(case: Case, rule: str) -> Callable[[], Tensor]:
    """Return zennit's pass with the same rules, batch normalisation merged as its docs say."""
    import zennit.rules as rules
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.torchvision import ResNetCanonizer
    from zennit.types import Activation, AvgPool, Convolution

    inner: dict[str, Callable[[], Any]] = {
        "epsilon": lambda: rules.Epsilon(1e-9),
        "gamma": lambda: rules.Gamma(GAMMA, stabilizer=1e-9),
        "z-plus": lambda: rules.ZPlus(stabilizer=1e-9),
    }
    canonizers = [ResNetCanonizer()] if case.name.startswith("resnet") else []
    layers = [
        ((Activation, nn.BatchNorm2d), rules.Pass()),
        ((AvgPool, Sum), rules.Norm(stabilizer=1e-30)),
        (Convolution, inner[rule]()),
        (nn.Linear, rules.Epsilon(1e-9 if rule == "epsilon" else 1e-6)),
    ]
    composite = LayerMapComposite(layers, canonizers=canonizers)

    def start(logits: Tensor) -> Tensor:
        return torch.zeros_like(logits).scatter_(1, case.target[:, None], 1.0) * logits.detach()

    def run() -> Tensor:
        with Gradient(case.model, composite) as attributor:
            found: Tensor = attributor(case.images.clone(), start)[1]
        return found.detach()

    return run


def captum(case: Case, rule: str) -> Callable[[], Tensor]:
    """Return captum's pass with the rules of its own that come nearest."""
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule

    inner: dict[str, Callable[[], Any]] = {
        "epsilon": lambda: EpsilonRule(1e-9),
        "gamma": lambda: GammaRule(gamma=GAMMA, set_bias_to_zero=False),
        "z-plus": lambda: Alpha1_Beta0_Rule(set_bias_to_zero=False),
    }

    def run() -> Tensor:
        for part in case.model.modules():
            if isinstance(part, nn.Conv2d):
                part.rule = inner[rule]()
        method = LRP(case.model)
        found: Tensor = method.attribute(case.images.clone().requires_grad_(), target=case.target)
        return found.detach()

    return run


PEERS = {"zennit 0.5.1": zennit, "captum": captum}


def bench(case: Case, rule: str, *, repeats: int, peer_repeats: int) -> list[dict[str, Any]]:
    """Return the lines of one network and rule."""
    device = case.images.device.type
    method = ours(case, rule)
    expected = method()
    lines = [line("lrpguard", {"limit": partial(limit, case), "it": method}, repeats, device)]
    for name, make in PEERS.items():
        try:
            peer = make(replace(case, model=copy.deepcopy(case.model)), rule)
            each = distances(peer(), expected)
        except Exception as error:  # what a peer raises is part of the result
            text = " ".join((str(error) or type(error).__name__).split())
            lines.append({"method": name, "ratio": None, "note": f"refuses: {text[:90]}"})
            continue
        entry = line(name, {"limit": partial(limit, case), "it": peer}, peer_repeats, device)
        middle = float(each.median())
        same = "same relevance" if middle <= RIGHT else "**another relevance**"
        lines.append(entry | {"note": f"{same} ({middle:.1e}, worst {float(each.max()):.1e})"})
    return lines


def line(name: str, methods: dict[str, Method], repeats: int, device: str) -> dict[str, Any]:
    """Time one method against the limit."""
    times = take_turns(methods, repeats, device=device)
    return {"method": name, **asdict(paired_ratio(times["it"], times["limit"])), "note": ""}


def kept(case: Case) -> dict[str, int]:
    """Return the bytes that one image keeps for the backward, by method."""
    one = Case(case.name, case.model, case.images[:1], case.target[:1])
    with held_for_backward(case.model) as plain:
        logits = case.model(one.images.clone().requires_grad_())
    del logits
    found = {"plain autograd": sum(plain.values())}
    for rule, (composite, _) in RULES.items():
        for lean in (False, True):
            size = saved_bytes(case.model, one.images, composite=composite, lean=lean)
            found[f"{rule}, {'bits' if lean else 'activations'}"] = size
    return found


def peak(name: str, rule: str, *, batch: int, size: int, device: str) -> int:
    """Return the peak bytes of this process, or of the GPU, after two passes."""
    case = make_case(name, batch=batch, size=size, device=device)
    method = partial(limit, case) if rule == "limit" else ours(case, rule)
    method()
    method()
    return peak_memory(device)


def peaks(name: str, *, batch: int, size: int, device: str, threads: int) -> dict[str, int]:
    """Return the peak of the limit and of each rule, each in a process of its own."""
    shape = ["--batch", str(batch), "--size", str(size)]
    shape += ["--device", device, "--threads", str(threads)]
    return {
        rule: peak_of_process(__file__, ["--peak", name, rule, *shape])
        for rule in ("limit", *RULES)
    }


def page(record: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    about = record["machine"]
    text = [
        "## The engine, rule by rule",
        "",
        f"Made by `{record['command']}`; do not edit.",
        "",
        f"{setting(about)} One batch of {record['size']} x {record['size']} pixels, random "
        "weights, seed 0. The *limit* is a plain forward and input-gradient backward of the same "
        "batch by torch alone, whatever the rule. Rules stand on the convolutions, dense layers "
        "have epsilon. Methods took turns; each ratio is the median over the repeats of the time "
        "over the limit's in the same repeat, with the 95 % bootstrap interval of that median, "
        "which for fewer than six repeats is hardly more than their range. The "
        "last column compares a peer's relevance with lrpguard's (relative L2 distance of the "
        "median image, and of the worst).",
        "",
        "| network, batch | rule | method | times the limit | bar | repeats | its relevance |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in record["networks"].items():
        for rule, lines in found["rules"].items():
            text += [row(f"{name}, {found['batch']}", rule, entry) for entry in lines]
    text += ["", "Kept between forward and backward, MiB an image, and over plain autograd's:", ""]
    for name, found in record["networks"].items():
        plain = found["kept"]["plain autograd"]
        parts = [f"plain autograd {plain / 2**20:.1f}"]
        parts += [
            f"{kind} {size / 2**20:.2f} (1/{plain / size:.1f})"
            for kind, size in found["kept"].items()
            if kind != "plain autograd"
        ]
        text.append(f"- {name}: " + "; ".join(parts))
    text += ["", "Peak memory of a process, MiB, its weights and Python included:", ""]
    for name, found in record["networks"].items():
        if found["peaks"]:
            parts = [f"{kind} {size / 2**20:.0f}" for kind, size in found["peaks"].items()]
            text.append(f"- {name}, batch of {found['batch']}: " + "; ".join(parts))
    return "\n".join([*text, ""])


def row(network: str, rule: str, entry: dict[str, Any]) -> str:
    """Return one line of the table."""
    bar = f"{RULES[rule][1]}" if entry["method"] == "lrpguard" else ""
    if entry["ratio"] is None:
        return f"| {network} | {rule} | {entry['method']} | - | {bar} | - | {entry['note']} |"
    ratio = f"{entry['ratio']:.2f} ({entry['low']:.2f}-{entry['high']:.2f})"
    return (
        f"| {network} | {rule} | {entry['method']} | {ratio} | {bar} | {entry['repeats']} "
        f"| {entry['note']} |"
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, help="images a batch (default 8, 4, 2)")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width (default 224)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the results go")
    parser.add_argument("--quick", action="store_true", help="few repeats, no peak memory")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "RULE"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, print and write; return the exit code."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    if args.peak:
        name, rule = args.peak
        print(peak(name, rule, batch=args.batch, size=args.size, device=args.device))
        return 0
    record: dict[str, Any] = {
        "command": command_line("bench_engine", arguments),
        "machine": machine(args.device),
        "size": args.size,
        "networks": {},
    }
    repeats, peer_repeats = (2, 1) if args.quick else (args.repeats, args.peer_repeats)
    for name in args.networks:
        batch = args.batch or NETWORKS[name]
        shape = {"batch": batch, "size": args.size, "device": args.device}
        case = make_case(name, **shape)
        record["networks"][name] = {
            "batch": batch,
            "rules": {
                rule: bench(case, rule, repeats=repeats, peer_repeats=peer_repeats)
                for rule in RULES
            },
            "kept": kept(case),
            "peaks": {} if args.quick else peaks(name, **shape, threads=args.threads),
        }
    text = page(record)
    write_results(args.out, "bench_engine", record, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
