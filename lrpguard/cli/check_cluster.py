"""``lrpguard check --engine ray``: verdicts on very many images, by a Ray cluster, to Parquet."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

from lrpguard.cli.check import CheckOptions, ClusterOptions, finish, open_checker
from lrpguard.cli.console import Console
from lrpguard.cli.opening import open_model
from lrpguard.cli.options import ModelOptions
from lrpguard.cluster.batch import Workers, judge_parts, require_ray, source_digest
from lrpguard.cluster.parts import PartFolder
from lrpguard.errors import ConfigurationError, LrpGuardError
from lrpguard.fingerprint import model_fingerprint
from lrpguard.loading import ImageSource, LoadedModel, load_data
from lrpguard.serving.opening import file_id
from lrpguard.serving.selftest import key_id
from lrpguard.version import __version__


def run(
    model: ModelOptions, options: CheckOptions, cluster: ClusterOptions, *, console: Console
) -> int:
    """Judge the images that have no verdict yet.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: Nothing can be judged with this model, calibration, data or folder.
    """
    require_ray()
    out = options.out
    if out is None or out.is_file():
        raise ConfigurationError(
            f"--out is {out}; --engine ray writes Parquet files into a folder: --out verdicts/"
        )
    gpu = _gpu(model.device)
    if model.weights is not None:
        model = replace(model, weights=model.weights.absolute())
    options = replace(options, calibration=options.calibration.absolute())
    loaded = open_model(replace(model, device="cpu"))
    source = load_data(options.data, preprocessing=loaded.preprocessing)
    folder = PartFolder(out.absolute())
    folder.begin(_job(loaded, source, options, cluster))
    counts: Counter[str] = Counter()
    for part in judge_parts(
        partial(open_checker, model, options),
        source,
        folder,
        part_size=cluster.part_size,
        workers=Workers(cluster.workers, gpu),
    ):
        counts += part
        console.record(part)
        console.line(f"{counts.total()} of {len(source)} images")
    if counts.total() != len(source):
        raise LrpGuardError(
            f"the cluster ended the job after {counts.total()} of {len(source)} images. The same "
            "command again goes on with the others."
        )
    return finish(counts, options, console)


def _gpu(device: str | None) -> bool | None:
    """Return whether workers take a GPU; None where that depends on the cluster.

    Raises:
        ConfigurationError: The device is a certain one: Ray says which each worker gets.
    """
    if device is None:
        return None
    if device not in ("cpu", "cuda"):
        raise ConfigurationError(
            f"--device is {device}; with --engine ray it is cpu or cuda, and Ray gives each worker "
            "a GPU of its own."
        )
    return device == "cuda"


def _job(
    loaded: LoadedModel, source: ImageSource, options: CheckOptions, cluster: ClusterOptions
) -> dict[str, Any]:
    """Return what the verdicts, and their division into parts, depend on."""
    return {
        "lrpguard": __version__,
        "model": loaded.name,
        "fingerprint": model_fingerprint(loaded.model),
        "preprocessing": str(loaded.preprocessing),
        "calibration": file_id(options.calibration),
        "key": key_id(options.key),
        "restore": options.restore,
        "on_failure": options.on_failure,
        "data": source_digest(source),
        "images": len(source),
        "part_size": cluster.part_size,
    }
