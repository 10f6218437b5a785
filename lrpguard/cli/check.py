"""``lrpguard check``: a verdict on each image."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lrpguard.checking import BROKEN, Checker
from lrpguard.cli.console import FAILED, INTERRUPTED, OK, Console, to_json
from lrpguard.cli.opening import class_text, open_model
from lrpguard.cli.options import ModelOptions, check_folder
from lrpguard.guard import Guard, Policy
from lrpguard.loading import ImageSource, LoadedModel, load_data


@dataclass(frozen=True)
class ClusterOptions:
    """How images are shared out on a cluster.

    Attributes:
        workers: How many; None for one a GPU, or one a CPU core, of the cluster.
        part_size: Images of one Parquet file.
    """

    workers: int | None
    part_size: int


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What to check, and what to do with the verdicts.

    Attributes:
        data: The images.
        calibration: Calibration file.
        batch_size: Images judged together.
        out: JSONL file of the verdicts, None for none; on a cluster a folder of Parquet files.
        fail_on_flag: Whether a flagged image makes the exit code 1.
        restore: Whether flagged images are restored.
        on_failure: What the guard does when it fails itself.
        key: Secret key of the noise.
        cluster: How a Ray cluster does it; None for this process.
    """

    data: str
    calibration: Path
    batch_size: int
    out: Path | None
    fail_on_flag: bool
    restore: bool
    on_failure: Policy
    key: bytes | None
    cluster: ClusterOptions | None = None


def run(model: ModelOptions, options: CheckOptions, *, console: Console) -> int:
    """Judge each image, and say so as it is done.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: Nothing can be judged with this model, calibration or data.
    """
    if options.cluster is not None:
        from lrpguard.cli import check_cluster

        return check_cluster.run(model, options, options.cluster, console=console)
    check_folder(options.out)
    checker = open_checker(model, options)
    source = load_data(options.data, preprocessing=checker.loaded.preprocessing)
    counts: Counter[str] = Counter()
    try:
        _check_all(checker, source, options, counts, console)
    except KeyboardInterrupt:
        kept = "" if options.out is None else f" {options.out} holds their verdicts."
        console.note(f"interrupted: {counts.total()} of {len(source)} images are judged.{kept}")
        return INTERRUPTED
    return finish(counts, options, console)


def open_checker(model: ModelOptions, options: CheckOptions) -> Checker:
    """Load the model, and put the guard together.

    Raises:
        LrpGuardError: The model cannot be loaded or guarded, or the calibration is not its.
    """
    loaded = open_model(model)
    guard = Guard(
        loaded.model,
        calibration=options.calibration,
        restoration="auto" if options.restore else None,
        on_failure=options.on_failure,
        key=options.key,
    )
    return Checker(guard, loaded, options.batch_size)


def _check_all(
    checker: Checker,
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
        for record in checker.records(source):
            counts[record["status"]] += 1
            _print(record, checker.loaded, file, console)
            bar.update()


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


def finish(counts: Counter[str], options: CheckOptions, console: Console) -> int:
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
