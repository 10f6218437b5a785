"""Requests judged together, one of which fails."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch
from torch import Tensor

from lrpguard import Guard
from lrpguard.cluster.batching import Asked, BatchingRunner, Judged
from lrpguard.serving.answer import judged
from lrpguard.serving.metrics import Metrics
from tests.serving.conftest import MODEL, Files, small_config
from tests.serving.models import controlled

pytest.importorskip("ray.serve")


@pytest.fixture(scope="module")
def guard(files: Files) -> Guard:
    return Guard(controlled(), calibration=files.calibration)


def judge(files: Files, guard: Guard, *requests: Tensor) -> list[Judged]:
    async def run() -> list[Judged]:
        runner = BatchingRunner(small_config(files), Metrics(MODEL))
        until = time.monotonic() + 300
        found = await runner.judge_batch([Asked(guard, r, until, maps=False) for r in requests])
        runner.close()
        return found

    return asyncio.run(run())


def test_each_gets_its_own(guard: Guard, files: Files) -> None:
    images = torch.cat([files.clean[:3], files.odd])
    found = judge(files, guard, images[:1], images[1:])
    assert found == [judged(guard(images[:1])), judged(guard(images[1:]))]


def test_one_that_fails_harms_no_other(guard: Guard, files: Files) -> None:
    outside = files.clean[:1] * 3
    found = judge(files, guard, files.clean[:1], outside)
    assert found[0] == judged(guard(files.clean[:1]))
    assert type(found[1]).__name__ == "InputRangeError"
