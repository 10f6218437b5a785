"""One thread that runs the guard, and how many requests may wait for it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SMOOTHING = 0.2
"""Weight of the newest run in the estimate of how long a unit takes."""

HEADROOM = 1.2
"""A size fits where it would be in time even if it took so many times as long as expected."""


class FullError(Exception):
    """There is no room, or none in time.

    Attributes:
        retry_after: Seconds after which there may be, at least 1.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"full for about {retry_after} s")
        self.retry_after = retry_after


class LateError(FullError):
    """It waited for its turn for so long that it was not begun."""


class AbandonedError(Exception):
    """Nobody waits for this run any more, so it was not begun."""


class Job(Generic[T]):
    """A run that waits for the thread, or is on it.

    It may be done in several sizes. Which, is chosen as it begins, by the time that is left.

    Args:
        run: Called with the index of the size that was chosen.
        sizes: How much there is to do, ascending, in units that take about the same time.
        until: When it must be done, by ``time.monotonic``.

    Attributes:
        abandoned: Set where nobody waits for it any more: it is not begun.
        begun: When it began, by ``time.perf_counter``; None while it waits.
        ended: When it ended.
        size: The size that was chosen; the run may correct it.
    """

    def __init__(self, run: Callable[[int], T], sizes: Sequence[float], until: float) -> None:
        self.run = run
        self.sizes = tuple(sizes)
        self.until = until
        self.abandoned = threading.Event()
        self.begun: float | None = None
        self.ended: float | None = None
        self.size = self.sizes[0]

    def choose(self, at: float, per_unit: float | None) -> int:
        """Return the index of the largest size that fits; of the smallest where none does.

        Args:
            at: When it begins, by ``time.monotonic``.
            per_unit: Seconds that a unit takes; None where that is not known: everything fits.
        """
        seconds = HEADROOM * (per_unit or 0.0)
        fitting = [k for k, size in enumerate(self.sizes) if at + size * seconds <= self.until]
        return max(fitting, default=0)

    def __call__(self, per_unit: float | None, *, others_wait: bool = False) -> T:
        """Run it, unless it was abandoned, or would be late and keep others waiting.

        A late one that nobody waits behind is run: it may be the estimate that is wrong, and only
        a run mends that.
        """
        if self.abandoned.is_set():
            raise AbandonedError
        at = time.monotonic()
        if others_wait and at + self.sizes[0] * (per_unit or 0.0) > self.until:
            raise LateError(1)
        choice = self.choose(at, per_unit)
        self.size = self.sizes[choice]
        self.begun = time.perf_counter()
        try:
            return self.run(choice)
        finally:
            self.ended = time.perf_counter()


class Worker:
    """A thread with a bounded queue; made and used on one event loop.

    A place in the queue is held until the thread has taken the run up and ended it, also where
    its client has gone: so clients that come and go cannot pile up work.

    Args:
        waiting: Runs that may wait beside the one that runs.
        name: Name of the thread.
        tell: Called with :attr:`depth` whenever that changes.
    """

    def __init__(
        self, waiting: int, name: str, tell: Callable[[int], None] = lambda depth: None
    ) -> None:
        self._tell = tell
        self._room = asyncio.Semaphore(waiting + 1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._per_unit: float | None = None
        self._jobs: list[Job[Any]] = []

    @property
    def depth(self) -> int:
        """Number of runs that wait or run."""
        return len(self._jobs)

    def expected_wait(self) -> float:
        """Return the seconds until a run that comes now would begin, as far as is known.

        Each run before it takes the size that it will choose, as far as is known.
        """
        now = at = time.monotonic()
        per_unit = self._per_unit or 0.0
        for job in self._jobs:
            size = job.sizes[job.choose(at, per_unit)] if job.begun is None else job.size
            at += size * per_unit
        return at - now

    def retry_after(self) -> int:
        """Return the seconds after which there may be room, at least 1."""
        return max(1, math.ceil(self.expected_wait()))

    async def enter(self, job: Job[T], *, block: bool) -> asyncio.Future[T]:
        """Put a run into the queue.

        Args:
            job: The run.
            block: Whether to wait for room until it must be done.

        Returns:
            Its result to come.

        Raises:
            FullError: There is no room; or the queue is so long that it would be done too late,
                in its smallest size.
        """
        needed = self.expected_wait() + job.sizes[0] * (self._per_unit or 0.0)
        if self._jobs and not block and time.monotonic() + HEADROOM * needed > job.until:
            raise FullError(self.retry_after())
        if self._room.locked():
            if not block:
                raise FullError(self.retry_after())
            try:
                await asyncio.wait_for(self._room.acquire(), job.until - time.monotonic())
            except TimeoutError:
                raise FullError(self.retry_after()) from None
        else:
            await self._room.acquire()
        return self._submit(job)

    def close(self) -> None:
        """End the thread after the runs that wait."""
        self._thread.shutdown(wait=True)

    def _submit(self, job: Job[T]) -> asyncio.Future[T]:
        self._jobs.append(job)
        self._tell(self.depth)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, lambda: self._run(job))
        future.add_done_callback(lambda _: self._leave(job))
        return future

    def _run(self, job: Job[T]) -> T:
        """Run a job in the thread, and learn from it before the next one begins."""
        others_wait = any(other.begun is None for other in tuple(self._jobs) if other is not job)
        try:
            return job(self._per_unit, others_wait=others_wait)
        finally:
            if job.begun is not None and job.ended is not None:
                took = (job.ended - job.begun) / job.size
                known = took if self._per_unit is None else self._per_unit
                self._per_unit = known + SMOOTHING * (took - known)

    def _leave(self, job: Job[T]) -> None:
        self._jobs.remove(job)
        self._tell(self.depth)
        self._room.release()
