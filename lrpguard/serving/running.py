"""Runs the guard and, in its place, the bare model: the policies on failure, overload, deadline."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

from torch import Tensor

from lrpguard.guard import Guard
from lrpguard.serving.answer import Outcome, Unguarded, bare, judged
from lrpguard.serving.config import ServiceConfig
from lrpguard.serving.logs import log
from lrpguard.serving.metrics import Metrics
from lrpguard.serving.records import Call
from lrpguard.serving.refusal import RefusedError, of_error, overloaded, too_late
from lrpguard.serving.sizes import passes, run_choices
from lrpguard.serving.worker import FullError, Job, LateError, Worker
from lrpguard.smoothing import clean_logits, to_model

BARE_SHARE = 0.1
"""Share of the deadline that is kept for the bare model, where it answers in the guard's place."""

T = TypeVar("T")


class Runner:
    """Two threads, one for the guard and one for the bare model, each with a bounded queue.

    Made and used on one event loop.

    Args:
        config: The settings.
        metrics: Where the depth of the queue is told.
    """

    def __init__(self, config: ServiceConfig, metrics: Metrics) -> None:
        self._policy = config.policy
        self._deadline = config.deadline_seconds
        self._guarding = Worker(config.limits.queue, "lrpguard-guard", metrics.queue_depth.set)
        self._bare = Worker(config.limits.queue, "lrpguard-bare")

    async def guarded(
        self, guard: Guard, images: Tensor, call: Call, *, maps: bool = False
    ) -> tuple[Outcome, ...]:
        """Judge images, or do what the policies say where that fails or takes too long.

        Args:
            guard: The guard.
            images: Checked images [B, C, H, W].
            call: The request.
            maps: Whether outcomes shall hold maps.

        Raises:
            RefusedError: The policies give no answer.
        """
        opens = self._policy.on_failure == "fail_open"
        until = self._until(call) - BARE_SHARE * self._deadline * opens
        try:
            return await self._judge(guard, images, call, until, maps=maps)
        except FullError as full:
            if opens and isinstance(full, LateError):
                return await self.bypassed(guard, images, call, "deadline")
            if self._policy.on_overload != "bypass":
                raise overloaded(full.retry_after) from full
            return await self.bypassed(guard, images, call, "overload")
        except TimeoutError:
            if not opens:
                raise too_late() from None
            return await self.bypassed(guard, images, call, "deadline")
        except RefusedError:
            raise
        except Exception as error:
            log.exception("the guard failed", extra={"request_id": call.id})
            if not opens:
                raise of_error(error) from error
            return await self.bypassed(guard, images, call, "guard_failure")

    async def _judge(
        self, guard: Guard, images: Tensor, call: Call, until: float, *, maps: bool
    ) -> tuple[Outcome, ...]:
        """Wait for the thread, and judge.

        Raises:
            FullError: There is no room, or it was not begun by then.
            TimeoutError: It was begun, and not done by then.
            Exception: Whatever the guard raises.
        """
        block = self._policy.on_overload == "block"
        job = self._job(guard, images, until, maps=maps)
        return await self._run(self._guarding, job, call, block=block)

    def _job(
        self, guard: Guard, images: Tensor, until: float, *, maps: bool = False
    ) -> Job[tuple[Outcome, ...]]:
        """Return the run of the guard, with as many copies as there is time for."""
        choices = run_choices(guard, fewer=self._policy.on_deadline == "fewer")

        def run(choice: int) -> tuple[Outcome, ...]:
            copies = list(choices)[choice]
            verdict = guard(images, maps=maps, copies=copies)
            if copies is None and guard.calibration is not None:  # now it is known how much it was
                made = float(verdict.copies.double().mean())
                job.size = len(images) * passes(guard.calibration, made)
            return judged(verdict, stopping=copies is None)

        job = Job(run, [len(images) * size for size in choices.values()], until)
        return job

    async def bypassed(
        self, guard: Guard, images: Tensor, call: Call, reason: Unguarded
    ) -> tuple[Outcome, ...]:
        """Return the bare model's answer, marked unguarded.

        Raises:
            RefusedError: There is no room or time for that either, or the model fails.
        """
        model = guard.model
        until = self._until(call)
        job = Job(lambda _: clean_logits(model, to_model(images, model)), [len(images)], until)
        try:
            logits = await self._run(self._bare, job, call, block=False, stage="bare")
        except FullError as full:
            raise overloaded(full.retry_after) from full
        except TimeoutError:
            raise too_late() from None
        except Exception as error:
            log.exception("the model failed", extra={"request_id": call.id})
            raise RefusedError(500, "model_failure", "the model failed.") from error
        return bare(logits, reason)

    async def afterwards(self, guard: Guard, images: Tensor, call: Call) -> tuple[Outcome, ...]:
        """Judge images whose request has its answer already: in the shadow.

        Raises:
            FullError: There is no room.
            Exception: Whatever the guard raises.
        """
        job = self._job(guard, images, time.monotonic() + self._deadline)
        return await self._run(self._guarding, job, call, block=False)

    def close(self) -> None:
        """End the threads after the runs that wait."""
        self._guarding.close()
        self._bare.close()

    def _until(self, call: Call) -> float:
        """Return when the request must be answered, by ``time.monotonic``."""
        return time.monotonic() + self._deadline - call.stages.elapsed

    async def _run(
        self,
        worker: Worker,
        job: Job[T],
        call: Call,
        *,
        block: bool,
        stage: str = "guard",
    ) -> T:
        """Put a run into a thread's queue, and wait for its end.

        Raises:
            FullError: There is no room; or, :class:`LateError`, it was not begun in time.
            TimeoutError: It was begun, and not done in time.
            Exception: Whatever the run raises.
        """
        queued = time.perf_counter()
        try:
            future = await worker.enter(job, block=block)
            future.add_done_callback(_look)  # an abandoned run may fail unheard
            return await asyncio.wait_for(
                asyncio.shield(future), max(0, job.until - time.monotonic())
            )
        except TimeoutError:
            if job.begun is None:  # it only waited: too many requests, no failure of the guard
                raise LateError(worker.retry_after()) from None
            raise
        finally:
            job.abandoned.set()
            if job.begun is not None:
                call.stages.add("queue", queued, job.begun)
                call.stages.add(stage, job.begun, job.ended or time.perf_counter())


def _look(future: asyncio.Future[T]) -> None:
    """Take note of a result, so that asyncio does not warn that nobody did."""
    if not future.cancelled():
        future.exception()
