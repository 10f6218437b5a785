"""The thread's queue: how long it takes, and how much of a run there is time for."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest

from lrpguard.serving.worker import HEADROOM, FullError, Job, LateError, Worker

FAR = math.inf


def sized(*sizes: float, until: float = FAR) -> Job[int]:
    """Return a run that gives the index of the size that was chosen."""
    return Job(lambda choice: choice, sizes, until)


class TestChoice:
    @pytest.mark.parametrize(
        ("left", "chosen"), [(100.0, 2), (40.0, 2), (39.9, 1), (20.0, 1), (19.9, 0), (-5.0, 0)]
    )
    def test_is_the_largest_that_fits_with_headroom(self, left: float, chosen: int) -> None:
        job = sized(5, 10, 20, until=HEADROOM * left)
        assert job.choose(0.0, per_unit=2.0) == chosen

    def test_is_all_where_nothing_was_measured_yet(self) -> None:
        assert sized(5, 10, until=time.monotonic() + 1e-3).choose(time.monotonic(), None) == 1

    def test_is_made_as_the_run_begins(self) -> None:
        job = sized(1, 2, until=time.monotonic() - 1)
        assert job(per_unit=1.0) == 0
        assert job.size == 1

    def test_a_late_one_that_keeps_others_waiting_is_not_begun(self) -> None:
        late = sized(1, 2, until=time.monotonic() + 10)
        with pytest.raises(LateError):
            late(per_unit=100.0, others_wait=True)
        assert late.begun is None
        assert late(per_unit=100.0) == 0  # alone, it shows whether that is still so
        assert sized(1, 2)(per_unit=100.0, others_wait=True) == 1


class TestEstimate:
    def test_is_learnt_from_runs_of_any_size(self) -> None:
        async def scenario() -> float:
            worker = Worker(4, "test")
            await (await worker.enter(Job(lambda _: time.sleep(0.05), [1.0], FAR), block=False))
            await (await worker.enter(Job(lambda _: time.sleep(0.2), [4.0], FAR), block=False))
            held = threading.Event()
            waiting = [
                await worker.enter(Job(lambda _: held.wait(30), [10.0], FAR), block=False)
                for _ in range(2)
            ]
            expected = worker.expected_wait()
            held.set()
            await asyncio.gather(*waiting)
            worker.close()
            return expected

        assert (
            1.0 <= asyncio.run(scenario()) < 10.0
        )  # 20 units of 0.05 s, or more on a busy machine

    def test_runs_that_wait_are_expected_in_the_size_they_will_choose(self) -> None:
        async def scenario() -> tuple[float, int]:
            worker = Worker(4, "test")
            await (await worker.enter(Job(lambda _: time.sleep(0.1), [1.0], FAR), block=False))
            held = threading.Event()
            first = await worker.enter(Job(lambda _: held.wait(30), [1.0], FAR), block=False)
            soon = sized(1, 10_000, until=time.monotonic() + 60)  # all of it takes 1,000 s
            later = await worker.enter(soon, block=False)
            expected = worker.expected_wait()
            held.set()
            await first
            chosen = await later
            worker.close()
            return expected, chosen

        expected, chosen = asyncio.run(scenario())
        assert expected < 60
        assert chosen == 0

    def test_no_size_in_time_is_no_room(self) -> None:
        async def scenario() -> None:
            worker = Worker(4, "test")
            await (await worker.enter(Job(lambda _: time.sleep(0.1), [1.0], FAR), block=False))
            held = threading.Event()
            first = await worker.enter(Job(lambda _: held.wait(30), [1.0], FAR), block=False)
            with pytest.raises(FullError):
                await worker.enter(sized(1e4, until=time.monotonic() + 60), block=False)
            held.set()
            await first
            worker.close()

        asyncio.run(scenario())

    def test_what_would_barely_be_in_time_is_no_room(self) -> None:
        async def scenario(seconds: float) -> bool:
            worker = Worker(4, "test")
            await (await worker.enter(Job(lambda _: time.sleep(0.1), [1.0], FAR), block=False))
            held = threading.Event()
            first = await worker.enter(Job(lambda _: held.wait(30), [100.0], FAR), block=False)
            needed = worker.expected_wait() * 2  # the one before, and itself
            late = sized(100.0, until=time.monotonic() + seconds * needed)
            try:
                await worker.enter(late, block=False)
                refused = False
            except FullError:
                refused = True
            held.set()
            await first
            worker.close()
            return refused

        assert asyncio.run(scenario(1.1))
        assert not asyncio.run(scenario(1.3))

    def test_a_queue_that_comes_to_stand_is_cleared_for_those_in_time(self) -> None:
        """Runs get slower than was known when they were let in."""

        async def scenario() -> list[object]:
            worker = Worker(4, "test")
            await (await worker.enter(Job(lambda _: None, [1.0], FAR), block=False))
            slow = Job(lambda _: time.sleep(0.5), [1.0], FAR)
            late = sized(10.0, until=time.monotonic() + 0.6)
            futures = [await worker.enter(job, block=False) for job in (slow, late, sized(1.0))]
            found = await asyncio.gather(*futures, return_exceptions=True)
            worker.close()
            return found

        first, second, third = asyncio.run(scenario())
        assert (first, third) == (None, 0)
        assert isinstance(second, LateError)
