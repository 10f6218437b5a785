"""One thread that runs the guard, and how many requests may wait for it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

SMOOTHING = 0.2
"""Weight of the newest run in the estimate of how long an image takes."""


class FullError(Exception):
    """There is no room, or none in time.

    Attributes:
        retry_after: Seconds after which there may be, at least 1.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"full for about {retry_after} s")
        self.retry_after = retry_after


class AbandonedError(Exception):
    """Nobody waits for this run any more, so it was not begun."""


class Job(Generic[T]):
    """A run that waits for the thread, or is on it.

    Attributes:
        abandoned: Set where nobody waits for it any more: it is not begun.
        begun: When it began, by ``time.perf_counter``; None while it waits.
        ended: When it ended.
    """

    def __init__(self, run: Callable[[], T], images: int) -> None:
        self.run = run
        self.images = images
        self.abandoned = threading.Event()
        self.begun: float | None = None
        self.ended: float | None = None

    def __call__(self) -> T:
        """Run it, unless it was abandoned."""
        if self.abandoned.is_set():
            raise AbandonedError
        self.begun = time.perf_counter()
        try:
            return self.run()
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
        self._per_image: float | None = None
        self._images = 0
        self._jobs = 0

    @property
    def depth(self) -> int:
        """Number of runs that wait or run."""
        return self._jobs

    def expected_wait(self) -> float:
        """Return the seconds until a run that comes now would begin, as far as is known."""
        return self._images * (self._per_image or 0.0)

    def expected_run(self, images: int) -> float:
        """Return the seconds that a run would take, as far as is known."""
        return images * (self._per_image or 0.0)

    async def enter(self, job: Job[T], *, until: float, block: bool) -> asyncio.Future[T]:
        """Put a run into the queue.

        Args:
            job: The run.
            until: When it must be done, by ``time.monotonic``.
            block: Whether to wait for room until then.

        Returns:
            Its result to come.

        Raises:
            FullError: There is no room; or the queue is so long that it would be done too late.
        """
        needed = self.expected_wait() + self.expected_run(job.images)
        if self._jobs and not block and time.monotonic() + needed > until:
            raise FullError(self._retry_after())
        if self._room.locked():
            if not block:
                raise FullError(self._retry_after())
            try:
                await asyncio.wait_for(self._room.acquire(), until - time.monotonic())
            except TimeoutError:
                raise FullError(self._retry_after()) from None
        else:
            await self._room.acquire()
        return self._submit(job)

    def close(self) -> None:
        """End the thread after the runs that wait."""
        self._thread.shutdown(wait=True)

    def _submit(self, job: Job[T]) -> asyncio.Future[T]:
        self._jobs += 1
        self._images += job.images
        self._tell(self._jobs)
        future = asyncio.get_running_loop().run_in_executor(self._thread, job)
        future.add_done_callback(lambda _: self._leave(job))
        return future

    def _leave(self, job: Job[T]) -> None:
        self._jobs -= 1
        self._images -= job.images
        self._tell(self._jobs)
        self._room.release()
        if job.begun is not None and job.ended is not None:
            took = (job.ended - job.begun) / job.images
            known = took if self._per_image is None else self._per_image
            self._per_image = known + SMOOTHING * (took - known)

    def _retry_after(self) -> int:
        return max(1, math.ceil(self.expected_wait()))
