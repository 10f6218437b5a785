"""``lrpguard explain``: which pixels speak for a class, and how steadily."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from lrpguard.cli.audit import ConservationAudit, Residual
from lrpguard.cli.console import FAILED, INTERRUPTED, OK, Console
from lrpguard.cli.opening import class_text, open_model, smoothing
from lrpguard.cli.options import ModelOptions, NoiseOptions
from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.figures import relevance_figure, require_matplotlib, save_png
from lrpguard.loading import ImageItem, ImageSource, LoadedModel, batches, load_data
from lrpguard.smoothing import Smoothing
from lrpguard.smoothing import explain as smooth_explain


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """What to explain.

    Attributes:
        data: The images.
        target: Explained class, by number or name; None explains the predicted one.
        out: Folder of the pictures, None for none.
        batch_size: Images read together.
    """

    data: str
    target: str | None
    out: Path | None
    batch_size: int


def run(
    model: ModelOptions, noise: NoiseOptions, options: ExplainOptions, *, console: Console
) -> int:
    """Explain each image.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: The model or the data cannot be used, or matplotlib is missing.
    """
    if options.out is None and not console.json:
        raise ConfigurationError("give --out DIR for pictures, --json for numbers, or both.")
    if options.out is not None:
        require_matplotlib()
        options.out.mkdir(parents=True, exist_ok=True)
    settings = smoothing(noise)
    loaded = open_model(model)
    target = find_class(options.target, loaded.class_names)
    source = load_data(options.data, preprocessing=loaded.preprocessing)
    broken: list[ImageItem] = []
    done = 0
    with console.bar("explain", len(source)) as bar:
        try:
            for record in _records(loaded, source, target, settings, noise.key, options, broken):
                console.record(record)
                console.line(_line(record, loaded))
                bar.update()
                done += 1
        except KeyboardInterrupt:
            kept = "" if options.out is None else f" Their pictures are in {options.out}."
            console.note(f"interrupted: {done} of {len(source)} images are explained.{kept}")
            return INTERRUPTED
    for item in broken:
        console.record({"index": item.index, "name": item.name, "error": item.error})
        console.say(f"{item.name}: broken: {item.error}")
    return FAILED if broken else OK


def _records(
    loaded: LoadedModel,
    source: ImageSource,
    target: int | None,
    settings: Smoothing,
    key: bytes | None,
    options: ExplainOptions,
    broken: list[ImageItem],
) -> Iterator[dict[str, Any]]:
    """Yield the record of each image as it is explained and drawn; gather the unreadable."""
    audit = ConservationAudit(loaded.model)
    taken: set[str] = set()
    for items, images in batches(source, options.batch_size, on_broken=broken.append):
        evidence = smooth_explain(
            loaded.model,
            images,
            target=target,
            n=settings.n,
            sigma=settings.sigma,
            seed=settings.seed,
            key=key,
        )
        residuals = [
            audit.measure(image[None], label[None])
            for image, label in zip(images, evidence.label, strict=True)
        ]
        for row, item in enumerate(items):
            record = _record(item, row, loaded, evidence, residuals[row])
            if options.out is not None:
                file = options.out / _free_name(item.name, taken)
                _draw(file, images[row], evidence, row, record, loaded, settings)
                record["file"] = str(file)
            yield record


def find_class(wanted: str | None, names: Sequence[str] | None) -> int | None:
    """Return the number of a class that is given by number or by name.

    Raises:
        ConfigurationError: No class, or several, have that name.
    """
    if wanted is None:
        return None
    if wanted.isdecimal():
        return int(wanted)
    if names is None:
        raise ConfigurationError(
            f"--class is {wanted!r}, but the names of this model's classes are not known. Give the "
            "number of the class, from 0."
        )
    found = [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigurationError(
            f"--class {wanted!r} names several classes, {found}. Give the number of one."
        )
    close = difflib.get_close_matches(wanted, names, n=3)
    mend = f" Close to it: {', '.join(close)}." if close else ""
    raise ConfigurationError(f"--class is {wanted!r}; no class has that name.{mend}")


def _record(
    item: ImageItem, row: int, loaded: LoadedModel, evidence: Evidence, residual: Residual
) -> dict[str, Any]:
    label = int(evidence.label[row])
    return {
        "index": item.index,
        "name": item.name,
        "predicted": int(evidence.logits[row].argmax()),
        "label": label,
        "class": loaded.class_name(label),
        "logit": float(evidence.explained_logit[row]),
        "relevance_sum": float(evidence.relevance_mean[row].double().sum()),
        "mean_variance": float(evidence.relevance_variance[row].double().mean()),
        "conservation_residual": residual.value,
        "conservation_precision": residual.precision,
        "file": None,
        "error": None,
    }


def _line(record: dict[str, Any], loaded: LoadedModel) -> str:
    return (
        f"{record['name']}: class {class_text(loaded, record['label'])}, logit "
        f"{record['logit']:.4g}, relevance {record['relevance_sum']:.4g}, variance "
        f"{record['mean_variance']:.3g}, conserved to {record['conservation_residual']:.0e}"
        f"; wrote {record['file']}"
    )


def _draw(
    file: Path,
    image: Tensor,
    evidence: Evidence,
    row: int,
    record: dict[str, Any],
    loaded: LoadedModel,
    settings: Smoothing,
) -> None:
    other = "" if record["label"] == record["predicted"] else ", not the predicted one"
    title = (
        f"class {class_text(loaded, record['label'])}{other}, logit {record['logit']:.2f} "
        f"({settings.n} copies, sigma {settings.sigma:g})"
    )
    figure = relevance_figure(
        image.cpu().numpy(),
        evidence.relevance_mean[row].cpu().numpy(),
        evidence.relevance_variance[row].cpu().numpy(),
        title=title,
    )
    save_png(figure, file)


def _free_name(name: str, taken: set[str]) -> str:
    """Return a file name for an image's picture that no other image of this run has."""
    stem = PurePosixPath(name).stem
    free, count = f"{stem}-relevance.png", 1
    while free in taken:
        count += 1
        free = f"{stem}-relevance-{count}.png"
    taken.add(free)
    return free
