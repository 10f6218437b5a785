"""A short probe of the ways to run the copies of an image, on the model's own device.

Way and calibration belong together, for scores depend on how a sum was rounded. So the probe, whose
timing decides, runs once, before a calibration, and the choice is part of :class:`Smoothing`.

What it does not choose: TensorFloat-32, because torch keeps that flag for the whole process, not
for a thread, and other models would run by it; and bfloat16, whose rounding of 4e-3 alone is beyond
the tolerance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import get_args

import torch
from torch import Tensor, nn

from lrpguard.attribution.methods import MemoryFormat
from lrpguard.calibration import Calibration
from lrpguard.copies import Way
from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_eval, check_images
from lrpguard.lrp.engine import Relevance
from lrpguard.noise import gaussian_copies, image_digest
from lrpguard.smoothing import Smoothing, chunk_size, clean_logits, to_model

LOGITS_TOLERANCE = 1e-4
"""Largest relative L2 distance of a copy's logits to the plain way's."""

RELEVANCE_TOLERANCE = 1e-4
"""Largest relative L2 distance of the median copy's relevance to the plain way's.

Not of each copy: where rounding tips a single ReLU or max-pool, that copy's relevance moves by 1e-3
to 1e-2, in the plain way, too (docs/performance.md).
"""

GAIN = 0.05
"""Share of the time that a way must save to be taken: less may be chance."""

DEFAULT_REPEATS = 5


@dataclass(frozen=True)
class Trial:
    """One way beside the plain one, on the same copies.

    Attributes:
        way: The way.
        seconds: Median time of a pass of ``copies`` copies, NaN where it failed.
        ratio: Median over the repeats of its time over the plain way's in the same repeat.
        copies: Copies in the pass.
        logits: Largest relative L2 distance of a copy's logits to the plain way's.
        relevance: Relative L2 distance of the median copy's relevance to the plain way's.
        failure: What it raised, ``""`` where it ran.
    """

    way: Way
    seconds: float
    ratio: float
    copies: int
    logits: float
    relevance: float
    failure: str = ""

    @property
    def agrees(self) -> bool:
        """Whether logits and relevance are the plain way's within the tolerances."""
        return self.logits <= LOGITS_TOLERANCE and self.relevance <= RELEVANCE_TOLERANCE

    def __str__(self) -> str:
        if self.failure:
            return f"{self.way}: {self.failure}"
        return (
            f"{self.way}: {1000 * self.seconds:.1f} ms for {self.copies} copies, "
            f"{self.ratio:.2f} times the plain way's; relevance within {self.relevance:.1e}"
            + ("" if self.agrees else ", too far")
        )


@dataclass(frozen=True)
class Preparation:
    """What the probe has found.

    Attributes:
        way: The way that was taken.
        trials: Every way, the plain one first.
        device: Where it ran, e.g. ``"cpu"``.
    """

    way: Way
    trials: tuple[Trial, ...]
    device: str

    def __str__(self) -> str:
        return "\n".join([f"on {self.device}: {self.way}", *(f"  {t}" for t in self.trials)])


def probe(
    model: nn.Module,
    images: Tensor,
    smoothing: Smoothing,
    key: bytes,
    memory_budget: int | None = None,
    repeats: int = DEFAULT_REPEATS,
) -> Preparation:
    """Time the memory formats of a chunk of copies, and take the fastest that agrees.

    The plain way, ``contiguous``, stays where no other saves :data:`GAIN` of its time.

    Args:
        model: Checked module; it is not changed.
        images: Pixels in [0, 1] [B, C, H, W]; the first is used.
        smoothing: Noise and composite.
        key: Noise key.
        memory_budget: Bytes of activations that a pass may hold; None takes the device's default.
        repeats: Timed passes of each way, >= 1.

    Raises:
        ConfigurationError: ``repeats`` is below 1.
        InputError: The images break the contract.
        ModelError: The model cannot be explained.
    """
    if repeats < 1:
        raise ConfigurationError(f"repeats is {repeats}; time each way at least once.")
    check_eval(model)
    image = to_model(check_images(images)[:1], model)
    chunk = chunk_size(model, image, composite=smoothing.composite, memory_budget=memory_budget)
    count = min(chunk, smoothing.n)
    target = clean_logits(model, image).argmax(1).expand(count)
    image = image[0]
    noise = gaussian_copies(image_digest(image, key), 0, count, image.shape).to(image.device)
    copies = (image.float() + smoothing.sigma * noise).to(image.dtype)

    def passing(memory_format: MemoryFormat) -> Callable[[], Relevance]:
        method = replace(smoothing, way=Way(memory_format)).method()
        return lambda: method.attribute(model, copies, target)

    plain = passing("contiguous")
    expected = plain()
    trials: list[Trial] = []
    for memory_format in get_args(MemoryFormat):
        way = Way(memory_format, chunk)
        run = passing(memory_format)
        try:
            found = run()
            times = _in_turns(plain, run, repeats, image.device)
        except Exception as error:  # e.g. a model that views its activations in one order only
            text = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            nan = float("nan")
            trials.append(Trial(way, nan, nan, count, nan, nan, text))
            continue
        trials.append(
            Trial(
                way,
                seconds=median(its for _, its in times),
                ratio=median(its / plain_one for plain_one, its in times),
                copies=count,
                logits=float(distances(found.logits, expected.logits).max()),
                relevance=float(distances(found.relevance, expected.relevance).median()),
            )
        )
    faster = [t for t in trials[1:] if t.agrees and t.ratio <= 1 - GAIN]
    best = min(faster, key=lambda t: t.ratio, default=trials[0])
    return Preparation(best.way, tuple(trials), str(image.device))


def distances(found: Tensor, expected: Tensor) -> Tensor:
    """Return the relative L2 distance of each row of a batch, float64 [B].

    Args:
        found: What was found, [B, ...].
        expected: What it should be, of the same shape.
    """
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    size = expected.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    apart: Tensor = (found - expected).norm(dim=1) / size
    return apart


def check_unsettled(calibration: Calibration | None) -> None:
    """Refuse to choose a way for a guard that is calibrated for one.

    Raises:
        ConfigurationError: It is.
    """
    if calibration is not None:
        raise ConfigurationError(
            f"the guard is calibrated for {calibration.smoothing.way}, and scores depend on it. "
            "Prepare a guard without calibration, then calibrate it."
        )


def _in_turns(
    plain: Callable[[], Relevance], other: Callable[[], Relevance], repeats: int, on: torch.device
) -> list[tuple[float, float]]:
    """Return the seconds of both in each repeat, after one another, in turned order."""
    times = []
    for repeat in range(repeats):
        if repeat % 2:
            times.append((_seconds(plain, on), _seconds(other, on)))
        else:
            times.append((_seconds(other, on), _seconds(plain, on))[::-1])
    return times


def _seconds(run: Callable[[], Relevance], on: torch.device) -> float:
    started = _now(on)
    run()
    return _now(on) - started


def _now(on: torch.device) -> float:
    """Return wall seconds, once a GPU has done what it was given."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.perf_counter()
