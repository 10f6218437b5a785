"""A batch job on a Ray cluster: many images, judged by many workers, to Parquet.

Ray Data gives each worker whole parts of the images. A worker writes a part when all its images are
judged. So whatever dies, no part is half there: Ray gives the part of a worker that died to
another, and a job that was interrupted itself goes on with the parts that are missing. Reading and
judging are one step: reading an image costs some thousandth of what its noisy copies cost.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrpguard.checking import Checker
from lrpguard.cluster.parts import PartFolder
from lrpguard.errors import LrpGuardError, MissingDependencyError
from lrpguard.loading import ImageSource
from lrpguard.loading.data import ArraySource, FileSource

LIVES = 10
"""Workers that may die over one part before the job is given up: an image may be killing them."""


@dataclass(frozen=True)
class Workers:
    """The workers of a job.

    Attributes:
        count: How many; None for one a GPU, or one a CPU core, of the cluster.
        gpu: Whether each takes a GPU; None where the cluster has one.
    """

    count: int | None = None
    gpu: bool | None = None


class PartJudge:
    """A worker: it makes a guard for its first part, and judges one part after the other.

    Args:
        open_checker: Makes the guard, on the worker.
        folder: Where parts are written.
    """

    def __init__(self, open_checker: Callable[[], Checker], folder: PartFolder) -> None:
        self._open_checker = open_checker
        self._folder = folder
        self._checker: Checker | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[str]]:
        """Judge the part of a row; return how many images have which status, or our error.

        An error of ours is returned since Ray would hand on its text, in the midst of others.
        """
        (part,), (source,) = rows["part"], rows["source"]
        try:
            if self._checker is None:
                self._checker = self._open_checker()
            records = list(self._checker.records(pickle.loads(source)))
        except LrpGuardError as error:
            return {"counts": ["{}"], "error": [f"{type(error).__name__}: {error}"]}
        return {"counts": [json.dumps(self._folder.write(int(part), records))], "error": [""]}


def judge_parts(
    open_checker: Callable[[], Checker],
    source: ImageSource,
    folder: PartFolder,
    *,
    part_size: int,
    workers: Workers,
) -> Iterator[Counter[str]]:
    """Judge the images of a source on the cluster that ``RAY_ADDRESS`` names, or on this machine.

    Args:
        open_checker: Makes the guard; it is pickled, and run once on each worker, where its files
            and lrpguard must be.
        source: The images; their files must be on each worker, under the same path.
        folder: Where parts are written, begun; parts that are there are not judged again.
        part_size: Images of a part, at least 1.
        workers: How many, and on what.

    Yields:
        How many images of a part have which status, when it is done; those found done at first.

    Raises:
        MissingDependencyError: The extra ``ray`` is not installed.
        LrpGuardError: A worker cannot make the guard, or, under ``fail_closed``, it fails.
    """
    require_ray()
    import ray

    missing = []
    for part, start in enumerate(range(0, len(source), part_size)):
        counts = folder.counts(part)
        if counts is None:
            missing.append((part, source.part(start, min(start + part_size, len(source)))))
        else:
            yield counts
    if not missing:
        return
    ours = not ray.is_initialized()
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    try:
        yield from _run(open_checker, missing, folder, workers)
        folder.tidy()
    finally:
        if ours:
            ray.shutdown()


def source_digest(source: ImageSource) -> str:
    """Return a digest of which images a source has: names, sizes and times of files, or pixels."""
    state = hashlib.sha256()
    if isinstance(source, FileSource):
        for path, name in zip(source.paths, source.names, strict=True):
            status = os.stat(path)
            state.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    elif isinstance(source, ArraySource):
        for array in (source.images, source.labels):
            if array is not None:
                state.update(f"{array.dtype}\0{array.shape}\n".encode())
                state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def require_ray() -> None:
    """Refuse to go on without the extra.

    Raises:
        MissingDependencyError: A package of it is not installed.
    """
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"a job on a cluster needs {error.name}. Install it with: pip install 'lrpguard[ray]'"
        ) from error


def _run(
    open_checker: Callable[[], Checker],
    missing: list[tuple[int, ImageSource]],
    folder: PartFolder,
    workers: Workers,
) -> Iterator[Counter[str]]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    use_gpu = gpus > 0 if workers.gpu is None else workers.gpu
    count = workers.count or (gpus if use_gpu else int(resources.get("CPU", 1))) or 1
    rows = [{"part": part, "source": pickle.dumps(source)} for part, source in missing]
    with warnings.catch_warnings():
        # Ray has no other way yet to say how often a part may be retried.
        warnings.simplefilter("ignore", DeprecationWarning)
        judged = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            PartJudge,
            fn_constructor_args=(open_checker, folder),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(count, len(rows)), max_tasks_in_flight_per_actor=2),
            num_gpus=1 if use_gpu else None,
            num_cpus=None if use_gpu else 1,
            max_task_retries=LIVES,
        )
    for row in judged.iter_rows():
        if row["error"]:
            raise LrpGuardError(f"on a worker, {row['error']}")
        yield Counter(json.loads(row["counts"]))
