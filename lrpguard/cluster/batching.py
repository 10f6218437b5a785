"""Judges the requests of a Ray Serve replica together, as they come."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpguard.guard import Guard
from lrpguard.serving.answer import Outcome
from lrpguard.serving.config import ServiceConfig
from lrpguard.serving.metrics import Metrics
from lrpguard.serving.records import Call
from lrpguard.serving.running import Runner
from lrpguard.serving.worker import FullError

Judged = tuple[Outcome, ...] | Exception
"""What became of a request: its outcomes, or why there are none."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A request that waits for its batch.

    Attributes:
        guard: The guard.
        images: Checked images [B, C, H, W].
        until: When it must be answered, by ``time.monotonic``.
        maps: Whether outcomes shall hold maps.
    """

    guard: Guard
    images: Tensor
    until: float
    maps: bool


class BatchingRunner(Runner):
    """Runs the guard on batches that ``serve.batch`` gathers, one at a time.

    Args:
        config: The settings.
        metrics: Where the depth of the queue is told.
    """

    def __init__(self, config: ServiceConfig, metrics: Metrics) -> None:
        from ray import serve

        super().__init__(config, metrics)
        gather = serve.batch(
            max_batch_size=config.ray.batch_size,
            batch_wait_timeout_s=config.ray.batch_wait_ms / 1000,
        )
        self._together = gather(self.judge_batch)

    async def _judge(
        self, guard: Guard, images: Tensor, call: Call, until: float, *, maps: bool
    ) -> tuple[Outcome, ...]:
        asked = Asked(guard, images, until, maps)
        with call.stages.stage("guard"):
            found: Judged = await asyncio.wait_for(
                self._together(asked), max(0, until - time.monotonic())
            )
        if isinstance(found, Exception):
            raise found
        return found

    async def judge_batch(self, asked: list[Asked]) -> list[Judged]:
        """Judge several requests at once; where that fails, each alone, so that one harms no other.

        The number of copies is what fits into the time of the one that is to be answered first.

        Args:
            asked: At least one request, all of one guard and image shape.
        """
        job = self._job(
            asked[0].guard,
            torch.cat([one.images for one in asked]),
            min(one.until for one in asked),
            maps=any(one.maps for one in asked),
        )
        try:
            outcomes = await (await self._guarding.enter(job, block=True))
        except FullError as full:
            return [full] * len(asked)
        except Exception as error:
            if len(asked) == 1:
                return [error]
            return [(await self.judge_batch([one]))[0] for one in asked]
        found: list[Judged] = []
        for one in asked:
            found.append(outcomes[: len(one.images)])
            outcomes = outcomes[len(one.images) :]
        return found
