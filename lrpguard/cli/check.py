"""``lrpguard check``: a verdict on each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from lrpguard.cli.console import FAILED, INTERRUPTED, OK, Console, describe, to_json
from lrpguard.cli.opening import class_name, class_text, open_model
from lrpguard.cli.options import ModelOptions, check_folder
from lrpguard.errors import (
    CalibrationMismatchError,
    InputError,
    ModelOutputError,
    NonFiniteScoreError,
)
from lrpguard.guard import Guard, Policy
from lrpguard.loading import ImageItem, ImageSource, LoadedModel, batches, load_data
from lrpguard.restoration import UNKNOWN

BROKEN = "broken"
"""Status of an image that has no verdict: it cannot be read, or the guard refused it."""

_OF_ONE_IMAGE = (InputError, CalibrationMismatchError, ModelOutputError, NonFiniteScoreError)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What to check, and what to do with the verdicts.

    Attributes:
        data: The images.
        calibration: Calibration file.
        batch_size: Images judged together.
        out: JSONL file of the verdicts, None for none.
        fail_on_flag: Whether a flagged image makes the exit code 1.
        restore: Whether flagged images are restored.
        on_failure: What the guard does when it fails itself.
        key: Secret key of the noise.
    """

    data: str
    calibration: Path
    batch_size: int
    out: Path | None
    fail_on_flag: bool
    restore: bool
    on_failure: Policy
    key: bytes | None


def run(model: ModelOptions, options: CheckOptions, *, console: Console) -> int:
    """Judge each image, and say so as it is done.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: Nothing can be judged with this model, calibration or data.
    """
    check_folder(options.out)
    loaded = open_model(model)
    source = load_data(options.data, preprocessing=loaded.preprocessing)
    guard = Guard(
        loaded.model,
        calibration=options.calibration,
        restoration="auto" if options.restore else None,
        on_failure=options.on_failure,
        key=options.key,
    )
    counts: Counter[str] = Counter()
    try:
        _check_all(guard, loaded, source, options, counts, console)
    except KeyboardInterrupt:
        kept = "" if options.out is None else f" {options.out} holds their verdicts."
        console.note(f"interrupted: {counts.total()} of {len(source)} images are judged.{kept}")
        return INTERRUPTED
    return _finish(counts, options, console)


def _check_all(
    guard: Guard,
    loaded: LoadedModel,
    source: ImageSource,
    options: CheckOptions,
    counts: Counter[str],
    console: Console,
) -> None:
    """Judge the images; count and print each as it is done."""
    with ExitStack() as stack:
        bar = stack.enter_context(console.bar("check", len(source)))
        file = stack.enter_context(options.out.open("w", encoding="utf-8")) if options.out else None
        console.line(_columns("image", "class", "confidence", "p-value", "status"))
        unread: list[ImageItem] = []
        for items, images in batches(source, options.batch_size, on_broken=unread.append):
            for record in _in_order(_judge(guard, loaded, items, images), unread):
                counts[record["status"]] += 1
                _print(record, loaded, file, console)
                bar.update()
        for record in _in_order((), unread):
            counts[record["status"]] += 1
            _print(record, loaded, file, console)


def _judge(
    guard: Guard, loaded: LoadedModel, items: Sequence[ImageItem], images: Tensor
) -> Iterator[dict[str, Any]]:
    """Yield the record of each image; one that the guard refuses does not stop the others."""
    try:
        verdict = guard(images)
    except _OF_ONE_IMAGE as error:
        if len(items) == 1:
            yield _broken(items[0], describe(error))
            return
        for item, image in zip(items, images, strict=True):
            yield from _judge(guard, loaded, [item], image[None])
        return
    for item, outcome in zip(items, verdict.to_dicts(), strict=True):
        yield _record(item, loaded, outcome, verdict.failure)


def _in_order(
    records: Iterator[dict[str, Any]] | tuple[()], unread: list[ImageItem]
) -> Iterator[dict[str, Any]]:
    """Yield records in the order of the source, with the unread images met so far among them."""
    for record in records:
        while unread and unread[0].index < record["index"]:
            item = unread.pop(0)
            yield _broken(item, str(item.error))
        yield record
    while unread:
        item = unread.pop(0)
        yield _broken(item, str(item.error))


def _record(
    item: ImageItem, loaded: LoadedModel, outcome: dict[str, Any], failure: str | None
) -> dict[str, Any]:
    restored = outcome["restored_label"]
    return {
        "index": item.index,
        "name": item.name,
        "true_label": item.label,
        "class": class_name(loaded, outcome["label"]),
        "restored_class": class_name(loaded, restored),
        "error": failure,
        **outcome,
        "restored_label": None if restored == UNKNOWN else restored,
    }


def _broken(item: ImageItem, error: str) -> dict[str, Any]:
    verdict = ("class", "restored_class", "label", "confidence", "p_value", "score", "flagged")
    return {
        "index": item.index,
        "name": item.name,
        "true_label": item.label,
        **dict.fromkeys((*verdict, "restored_label", "restored_confidence", "copies")),
        "error": error,
        "status": BROKEN,
    }


def _print(
    record: dict[str, Any], loaded: LoadedModel, file: TextIO | None, console: Console
) -> None:
    console.record(record)
    if file is not None:
        file.write(to_json(record) + "\n")
        file.flush()
    if record["status"] == BROKEN:
        console.say(_columns(record["name"], "-", "-", "-", f"broken: {record['error']}"))
        return
    p_value = record["p_value"]
    console.line(
        _columns(
            record["name"],
            class_text(loaded, record["label"]),
            f"{record['confidence']:.3f}",
            "-" if p_value is None else f"{p_value:.4f}",
            _status(record, loaded),
        )
    )


def _status(record: dict[str, Any], loaded: LoadedModel) -> str:
    if record["status"] == "restored":
        restored = class_text(loaded, record["restored_label"])
        return f"restored: {restored} ({record['restored_confidence']:.3f})"
    if record["status"] == "unguarded":
        return f"unguarded: {record['error']}"
    return str(record["status"])


def _columns(name: str, label: str, confidence: str, p_value: str, status: str) -> str:
    return f"{name:<28}  {label:<20}  {confidence:>10}  {p_value:>7}  {status}"


def _finish(counts: Counter[str], options: CheckOptions, console: Console) -> int:
    """Print the summary; return the exit code."""
    flagged = counts["flagged"] + counts["restored"] + counts["unknown"]
    parts = [
        f"{counts.total()} image{'' if counts.total() == 1 else 's'}",
        f"{flagged} flagged",
        f"{counts['restored']} restored",
        f"{counts[BROKEN]} broken",
    ]
    if counts["unguarded"]:
        parts.append(f"{counts['unguarded']} unguarded")
    console.say(", ".join(parts) + (f"; wrote {options.out}" if options.out else ""))
    failed = counts[BROKEN] or counts["unguarded"] or (options.fail_on_flag and flagged)
    return FAILED if failed else OK
