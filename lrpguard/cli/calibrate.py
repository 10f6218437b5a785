"""``lrpguard calibrate``: from clean images to a calibration file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from lrpguard.calibration import Calibration
from lrpguard.calibrator import fit_images
from lrpguard.cli.console import FAILED, INTERRUPTED, OK, Console
from lrpguard.cli.opening import (
    ImageBatches,
    chosen_smoothing,
    keep_to_fastest,
    open_model,
    readable_images,
    smoothing,
)
from lrpguard.cli.options import DetectorName, ModelOptions, NoiseOptions, check_folder
from lrpguard.conformal import images_text
from lrpguard.errors import ConfigurationError, InputShapeError, LrpGuardError
from lrpguard.guard import Guard
from lrpguard.loading import ImageItem, ImageSource, load_data
from lrpguard.smoothing import Smoothing
from lrpguard.stopping import Looks
from lrpguard.tuning import TRIAL_IMAGES, Choice

PARTIAL_SUFFIX = ".partial.jsonl"
"""What the file of an unfinished calibration is called, after the file to come."""


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What to calibrate for, and where to write it.

    Attributes:
        data: Clean images.
        alpha: Share of clean requests that may be flagged.
        detector: ``"combined"`` or ``"paper"``.
        budget: Most passes that a request may cost, where n is chosen.
        looks: Whether to calibrate for fewer copies, too.
        prepare: Whether to time the ways to run the copies, and keep to the fastest.
        batch_size: Images read together.
        out: The calibration file.
    """

    data: str
    alpha: float
    detector: str
    budget: int | None
    looks: bool
    prepare: bool
    batch_size: int
    out: Path

    @property
    def partial(self) -> Path:
        """Where the scores are kept until the file is written."""
        return self.out.with_name(self.out.name + PARTIAL_SUFFIX)


@dataclass
class Broken:
    """Images that could not be read, reported as they are met.

    Attributes:
        console: Where to report them.
        items: Name and error of each.
    """

    console: Console
    items: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, item: ImageItem) -> None:
        """Report one."""
        error = str(item.error)
        self.items.append({"name": item.name, "error": error})
        self.console.note(f"skipped {item.name}: {error}")


def run(
    model: ModelOptions, noise: NoiseOptions, options: CalibrateOptions, *, console: Console
) -> int:
    """Calibrate, and write the file. Scores are kept on the way, so that a run can resume.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: The model, the images or the settings do not allow it.
    """
    check_folder(options.out)
    loaded = open_model(model)
    source = load_data(options.data, preprocessing=loaded.preprocessing)
    settings = _noise(loaded.model, source, noise, options, console)
    guard = Guard(loaded.model, smoothing=settings, key=noise.key)
    if guard.noise_why:
        console.note(f"noise: {guard.noise_why}.")
    first = next(readable_images(source), None) if options.prepare else None
    if first is not None:  # where there is none the calibration says so
        keep_to_fastest(guard, first, options.partial, console)
    broken = Broken(console)
    before = _scored(options.partial)
    if before:
        console.note(f"resuming: {options.partial} holds the scores of {before} images.")
    try:
        calibration = guard.calibrate(
            ImageBatches(source, options.batch_size, broken),
            alpha=options.alpha,
            detector=options.detector,
            checkpoint=options.partial,
            progress=not (console.quiet or console.json),
            looks=Looks.of(guard.smoothing.n) if options.looks else None,
        )
    except KeyboardInterrupt:
        console.note(f"interrupted. {_kept(options.partial)}")
        return INTERRUPTED
    except LrpGuardError as error:
        if _scored(options.partial) > before:
            console.note(_kept(options.partial))
        if isinstance(error, InputShapeError):
            raise InputShapeError(f"{error} On the command line: --image-size H,W.") from error
        raise
    kept = label_kept(options.partial)
    calibration.save(options.out)
    options.partial.unlink(missing_ok=True)
    _report(calibration, options, broken.items, kept, model.spec, console)
    return FAILED if broken.items else OK


def _noise(
    model: nn.Module,
    source: ImageSource,
    noise: NoiseOptions,
    options: CalibrateOptions,
    console: Console,
) -> Smoothing | Choice:
    """Return the noise asked for, or chosen on clean images.

    The paper's detector takes the paper's noise. What is not given is chosen on images that will
    fit the detector, not on those that calibrate it.

    Raises:
        ConfigurationError: The budget is too small, or given beside n.
        LrpGuardError: The model cannot be guarded.
    """
    if noise.n is not None and options.budget is not None:
        raise ConfigurationError("--n and --budget are both given; --budget is for choosing n.")
    if options.detector == DetectorName.PAPER or None not in (noise.n, noise.sigma):
        return smoothing(noise)
    trial = fit_images(readable_images(source), TRIAL_IMAGES)
    if not trial:
        return smoothing(noise)  # too few images; the calibration says so
    sizes = sorted({tuple(image.shape) for image in trial})
    if len(sizes) > 1:
        raise InputShapeError(
            f"the images have different sizes, [C, H, W] = {list(sizes[0])} and {list(sizes[1])}; "
            "scores depend on the size. Have them resized to one: --image-size H,W."
        )
    console.step(f"choosing the noise on {len(trial)} clean images")
    return chosen_smoothing(model, torch.stack(trial), noise, budget=options.budget)


def label_kept(partial: Path) -> float | None:
    """Return the share of noisy copies of clean images that keep the label, in [0, 1].

    Args:
        partial: Scores of a calibration run, as the guard keeps them.
    """
    columns: list[str] = []
    changed: list[float] = []
    for line in partial.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "run" in record:
            columns = record["run"]["scores"]
        elif "label_disagreement" in columns:
            changed.append(record["scores"][columns.index("label_disagreement")])
    return 1 - sum(changed) / len(changed) if changed else None


def _scored(partial: Path) -> int:
    """Return how many images an unfinished run has scored."""
    if not partial.is_file():
        return 0
    return max(0, partial.read_bytes().count(b"\n") - 1)


def _kept(partial: Path) -> str:
    scored = _scored(partial)
    if not scored:
        return "No image was scored yet."
    return (
        f"The scores of {scored} images are kept in {partial}: run the same command "
        "again to go on from there, or remove the file to begin anew."
    )


def _report(
    calibration: Calibration,
    options: CalibrateOptions,
    broken: list[dict[str, str]],
    kept: float | None,
    spec: str,
    console: Console,
) -> None:
    low, high = calibration.fpr_band()
    noise = calibration.smoothing
    console.record(
        {
            "file": str(options.out),
            "model": spec,
            "detector": calibration.detector.name,
            "alpha": calibration.alpha,
            "n_fit": calibration.fit_n,
            "n_calibration": calibration.n,
            "crossed": calibration.crossed,
            "threshold": calibration.threshold,
            "fpr_band_95": [low, high],
            "image_shape": calibration.image_shape,
            "copies": noise.n,
            "looks": list(calibration.copies),
            "way": str(noise.way),
            "sigma": noise.sigma,
            "label_kept": kept,
            "why": calibration.noise_why,
            "precision": calibration.precision,
            "fingerprint": calibration.fingerprint,
            "broken": broken,
        }
    )
    channels, height, width = calibration.image_shape
    used = images_text(calibration.fit_n, calibration.n, crossed=calibration.crossed)
    console.line(f"model      {spec}, fingerprint {calibration.fingerprint[:12]}")
    console.line(f"images     {used}, {channels} x {height} x {width} pixels")
    looks = "" if calibration.staged is None else f"; looks at {list(calibration.copies)}"
    console.line(f"noise      {noise.n} copies, sigma {noise.sigma:g}{_stability(kept)}{looks}")
    if options.prepare:
        console.line(f"way        {noise.way}")
    console.line(f"detector   {calibration.detector.name}, threshold {calibration.threshold:.4g}")
    console.line(
        f"alpha      {calibration.alpha:g}: {100 * low:.1f} to {100 * high:.1f} % of clean images "
        "will be flagged (95 % band)"
    )
    if broken:
        console.say(f"broken     {len(broken)} of the files could not be read, and were left out")
    console.line(f"wrote      {options.out}")


def _stability(kept: float | None) -> str:
    return "" if kept is None else f": {100 * kept:.1f} % of noisy copies keep their label"
