"""Timing methods against each other on a machine that does other things, too."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrpguard.version import __version__

Method = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Time of a method over that of another one, in the same repeats.

    Attributes:
        seconds: Median over the repeats of the method's time.
        ratio: Median over the repeats of its time over the other's in the same repeat.
        low: Lower end of the 95 % bootstrap interval of that median; with fewer than six repeats
            about the least of them.
        high: Upper end.
        repeats: How many repeats.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    repeats: int


def clock(device: str) -> float:
    """Return CPU seconds of the process for "cpu", else wall seconds once the GPU is idle."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(
    methods: Mapping[str, Method], repeats: int, *, device: str
) -> dict[str, list[float]]:
    """Time each method once a repeat, after a warm-up, in turned order every other time.

    So whatever else the machine does falls on all methods alike.

    Args:
        methods: What to time, by name.
        repeats: How often, >= 1.
        device: Where it runs; says which clock, see :func:`clock`.

    Returns:
        Seconds of each repeat, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(-1, repeats):
        names = list(methods)[:: 1 if repeat % 2 else -1]
        for name in names:
            started = clock(device)
            methods[name]()
            if repeat >= 0:
                times[name].append(clock(device) - started)
    return times


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Return how many times the reference's time a method takes.

    Args:
        seconds: Times of the method, one a repeat.
        reference: Times of the reference in the same repeats.
    """
    ratios = np.array(seconds) / np.array(reference)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    median = float(np.median(ratios))
    return Ratio(float(np.median(seconds)), median, float(low), float(high), len(ratios))


def peak_memory(device: str) -> int:
    """Return the most bytes that this process, or for a GPU its allocator, has held so far.

    On Linux ``VmHWM``, for ``ru_maxrss`` starts from the peak of the process that started this one.
    """
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine(device: str) -> dict[str, Any]:
    """Describe the machine, without its name."""
    info = Path("/proc/cpuinfo")
    names = [
        text.split(":", 1)[1].strip()
        for text in (info.read_text() if info.exists() else "").splitlines()
        if text.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(names) or None,
        "gpu": None if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "clock": "CPU time of the process" if device == "cpu" else "wall time, synchronised",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lrpguard": __version__,
    }


def setting(about: Mapping[str, Any]) -> str:
    """Say in a line where something was measured, from :func:`machine`'s record."""
    gpu = f", {about['gpu']}" if about["gpu"] else ""
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} thread(s){gpu}; torch "
        f"{about['torch']}, Python {about['python']}; clock: {about['clock']}."
    )


def peak_of_process(script: str, arguments: Sequence[str]) -> int:
    """Run a script in a process of its own, which prints its :func:`peak_memory`.

    With a fixed threshold glibc gives each large tensor pages of its own, which go back when it is
    freed: the peak is then that of the live tensors, not of the allocator's habits.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return int(done.stdout)


def command_line(script: str, arguments: Sequence[str]) -> str:
    """Return the command that regenerates results, without the folder they went to."""
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return " ".join(["python", f"scripts/{script}.py", *arguments[:at], *arguments[at + 2 :]])


def write_results(folder: Path, script: str, record: Mapping[str, Any], text: str) -> None:
    """Write a benchmark's record, and its text as a section of ``performance.md``.

    Args:
        folder: Where ``performance.md`` and ``results/`` are.
        script: Name of the script; marks its section.
        record: What was measured, for JSON.
        text: The section, Markdown.
    """
    folder.joinpath("results").mkdir(parents=True, exist_ok=True)
    results = folder / "results" / f"{script}.json"
    results.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = folder / "performance.md"
    old = page.read_text(encoding="utf-8") if page.exists() else "# Performance\n"
    start, end = f"<!-- {script} -->\n", f"<!-- end of {script} -->\n"
    before, found, rest = old.partition(start)
    after = rest.partition(end)[2] if found else ""
    if not found:
        before = before.rstrip("\n") + "\n\n"
    new = f"{before}{start}{text.rstrip()}\n{end}{after}"
    page.write_text(new, encoding="utf-8")
