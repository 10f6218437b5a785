"""From the options to the model, the images and the guard's settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from lrpguard.cli.console import Console
from lrpguard.cli.options import ModelOptions, NoiseOptions, image_size, numbers
from lrpguard.guard import Guard
from lrpguard.loading import ImageItem, ImageSource, LoadedModel, batches, find_device, load_model
from lrpguard.smoothing import PAPER_N, PAPER_SIGMA, Smoothing
from lrpguard.tuning import DEFAULT_BUDGET, Choice, choose_smoothing


@dataclass(frozen=True)
class ImageBatches:
    """The readable images of a source, in batches, as ``Guard.calibrate`` takes them.

    Attributes:
        source: The images.
        batch_size: Most images of one batch.
        on_broken: Called with each item that cannot be read.
    """

    source: ImageSource
    batch_size: int
    on_broken: Callable[[ImageItem], None]

    def __len__(self) -> int:
        """Return the number of batches where no image is broken and all have one size."""
        return -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for _, images in batches(self.source, self.batch_size, on_broken=self.on_broken):
            yield images


def open_model(options: ModelOptions) -> LoadedModel:
    """Load the model that the options name, on the device they name.

    Raises:
        LrpGuardError: See :func:`lrpguard.loading.load_model`.
    """
    return load_model(
        options.spec,
        weights=options.weights,
        mean=numbers(options.mean, "--mean"),
        std=numbers(options.std, "--std"),
        image_size=image_size(options.image_size),
        device=find_device(options.device),
    )


def smoothing(options: NoiseOptions) -> Smoothing:
    """Return the noise the options ask for.

    Raises:
        ConfigurationError: A value is out of its range.
    """
    return Smoothing(
        n=PAPER_N if options.n is None else options.n,
        sigma=PAPER_SIGMA if options.sigma is None else options.sigma,
        seed=options.seed,
    )


def chosen_smoothing(
    model: nn.Module, trial: Tensor, options: NoiseOptions, *, budget: int | None = None
) -> Smoothing | Choice:
    """Return noise of which what the options leave open is chosen on clean images.

    Args:
        model: The model to be guarded.
        trial: Clean images [B, C, H, W] that may fit the detector.
        options: What was asked for.
        budget: Most passes of a request; None takes the default.

    Returns:
        The choice, with why; the noise alone where the options leave nothing open.

    Raises:
        ConfigurationError: The budget is too small.
        LrpGuardError: The model cannot be guarded.
    """
    if options.n is not None and options.sigma is not None:
        return smoothing(options)
    return choose_smoothing(
        model,
        trial,
        n=options.n,
        sigma=options.sigma,
        budget=budget or DEFAULT_BUDGET,
        seed=options.seed,
        key=options.key,
    )


def readable_images(source: ImageSource) -> Iterator[Tensor]:
    """Yield the images [C, H, W] of a source that can be read, one after another."""
    for place in range(len(source)):
        image = source[place].image
        if image is not None:
            yield image


def keep_to_fastest(guard: Guard, image: Tensor, begun: Path, console: Console) -> None:
    """Let a guard run its copies in the fastest way here, or in that of a run that goes on.

    Args:
        guard: Not calibrated yet.
        image: A clean image [C, H, W] that the ways are tried on.
        begun: Scores of an unfinished run, if there is such a file.
        console: Where the timings are told.

    Raises:
        LrpGuardError: The model cannot be guarded.
    """
    found = guard.prepare(image[None])
    console.note(str(found))
    known = _way_of(begun)
    for trial in found.trials:
        if str(trial.way) == known:
            guard.smoothing = replace(guard.smoothing, way=trial.way)


def _way_of(begun: Path) -> str:
    """Return the way of an unfinished run, in words; the guard itself refuses a broken file."""
    if not begun.is_file():
        return ""
    with begun.open(encoding="utf-8", errors="replace") as lines:
        try:
            return str(json.loads(next(lines, ""))["run"]["way"])
        except (ValueError, KeyError, TypeError):
            return ""


def class_text(loaded: LoadedModel, label: int) -> str:
    """Return a class for people: its number, and its name where that is known."""
    name = loaded.class_name(label)
    return str(label) if name is None else f"{label} {name}"
