"""``lrpguard audit``: is the trail whole, and can its scores be reproduced?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lrpguard.cli.console import FAILED, OK, Console
from lrpguard.errors import ConfigurationError
from lrpguard.loading import load_data
from lrpguard.serving.chain import chain_key, records, verify
from lrpguard.serving.configure import load_config
from lrpguard.serving.opening import open_guard
from lrpguard.serving.replay import by_hash, divided, guarded_lines, replay


def verify_trail(folder: Path, *, key: bytes | None, head: str | None, console: Console) -> int:
    """Check the chain of a trail.

    Returns:
        The exit code.

    Raises:
        AuditError: There is no trail, or its chain is broken; the message says where.
    """
    found = verify(folder, key=chain_key(key), known=head)
    keyed = key is not None
    console.record(
        {
            "lines": found.head.seq,
            "files": found.files,
            "head": found.head.hash,
            "torn_bytes": found.torn,
            "keyed": keyed,
        }
    )
    console.line(f"whole      {found.head.seq} lines in {found.files} file(s)")
    console.line(f"head       {found.head.hash}")
    if not keyed:
        console.line("key        none: whoever may write the folder can write the chain anew")
    if found.torn:
        console.line(f"torn       {found.torn} bytes of a line that a crash cut off, unanswered")
    return OK


def replay_trail(
    folder: Path,
    config_file: Path | None,
    assignments: Sequence[str],
    *,
    data: str,
    tolerance: float,
    environment: Mapping[str, str],
    console: Console,
) -> int:
    """Judge the images of a trail again, where this guard has judged them.

    Returns:
        The exit code.

    Raises:
        AuditError: There is no trail, or its chain is broken.
        CalibrationMismatchError: All lines are of other guards.
    """
    config = load_config(config_file, environment=environment, assignments=assignments)
    opened = open_guard(config, environment)
    lines = list(guarded_lines(records(folder, key=chain_key(opened.key))))
    found = divided(lines, opened)
    for (name, value), count in found.others.items():
        console.record({"not_replayed": count, name: value})
        console.line(f"skipped    {count} line(s) are of {name} {value}, not replayed")
    source = load_data(data, preprocessing=opened.preprocessing)
    images = by_hash(item.image for item in source if item.image is not None)
    if lines and not any(line["image"] in images for line in found.mine):
        raise ConfigurationError(
            f"none of the {len(images)} images of --data {data} is one of the trail's: they are "
            "found by a hash of their pixels as the model sees them."
        )
    replayed = []
    there = sum(line["image"] in images for line in found.mine)
    with console.bar("replay", there) as bar:
        for line in replay(found.mine, images, opened, tolerance=tolerance):
            replayed.append(line)
            bar.update()
            console.record(asdict(line))
            if not line.same:
                console.line(
                    f"DIFFERS    line {line.seq}, request {line.request}, image {line.row}: by "
                    f"{line.difference:.3g}"
                )
    differ = sum(not line.same for line in replayed)
    largest = max((line.difference for line in replayed), default=0.0)
    console.line(f"replayed   {len(replayed)} of {len(lines)} verdicts; {differ} differ")
    console.line(f"largest    difference of a score: {largest:.3g}")
    return FAILED if differ else OK
