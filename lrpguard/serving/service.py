"""The service: from checked images to outcomes, under the policies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from torch import Tensor

from lrpguard.errors import AuditError, InputError, LrpGuardError
from lrpguard.inputs import check_images
from lrpguard.noise import image_digest
from lrpguard.secret import secret_key
from lrpguard.serving.answer import Outcome, apply_policy, withhold_copies
from lrpguard.serving.audit import AuditTrail
from lrpguard.serving.chain import chain_key
from lrpguard.serving.config import ServiceConfig
from lrpguard.serving.drift import DriftWatch, Window
from lrpguard.serving.logs import log
from lrpguard.serving.metrics import Metrics
from lrpguard.serving.monitor import QueryMonitor
from lrpguard.serving.opening import Opened, check_selftest, open_guard, set_threads
from lrpguard.serving.records import Call, audit_lines
from lrpguard.serving.refusal import RefusedError, bad_request
from lrpguard.serving.running import Runner
from lrpguard.serving.tracing import Tracing
from lrpguard.serving.worker import FullError

T = TypeVar("T")

INLINE_VALUES = 2**16
"""Values that are hashed on the event loop itself: below, a thread costs more than the hash."""

_SEVERITY = {"clean": 0, "flagged": 1, "unknown": 1, "restored": 2, "unguarded": 3}
_OUTCOMES = ("pass", "flagged", "restored", "unguarded")


class Service:
    """One worker process: the guard, its queue, the audit trail, the counts.

    Args:
        config: The settings.
        environment: Variables; ``LRPGUARD_KEY`` is read.
        cores: CPU cores of the machine, which the workers share.
        make_runner: Makes what runs guard and bare model.
    """

    def __init__(
        self,
        config: ServiceConfig,
        environment: Mapping[str, str],
        *,
        cores: int | None = None,
        make_runner: Callable[[ServiceConfig, Metrics], Runner] = Runner,
    ) -> None:
        self.config = config
        self.metrics = Metrics(config.model.name)
        self._environment = environment
        self._make_runner = make_runner
        self._cores = cores or os.cpu_count() or 1
        self._opened: Opened | None = None
        self._not_ready = "loading"
        self._trail: AuditTrail | None = None
        self._audit_key = b""
        self._audit_broken = False
        self._drift: DriftWatch | None = None
        self._monitor: QueryMonitor | None = None
        self._tracing = Tracing() if config.telemetry.tracing == "otlp" else None
        self._background: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to load; returns before that is done."""
        self._runner = self._make_runner(self.config, self.metrics)
        self._threads = asyncio.Semaphore(4)  # decoding and hashing, which need memory
        self._loading = asyncio.create_task(self._load())

    async def loaded(self) -> None:
        """Return when the loading is over, whether it went well or not."""
        if self._loading is not None:
            await self._loading

    async def close(self) -> None:
        """End what runs, in order: verdicts of the shadow, workers, trail."""
        await self.loaded()
        if self._background:
            await asyncio.wait(self._background)
        self.metrics.ready.set(0)
        await asyncio.to_thread(self._runner.close)
        if self._trail is not None:
            head = self._trail.head
            await asyncio.to_thread(self._trail.close)
            log.info("audit trail closed", extra={"audit_lines": head.seq, "audit_head": head.hash})
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def not_ready(self) -> str | None:
        """Return why no requests should come, None where they may.

        Where the last audit line could not be written, the folder is tried: with no requests
        coming, nothing else would find that the disk has room again.
        """
        if self._trail is not None and self._audit_broken:
            try:
                await asyncio.to_thread(self._trail.probe)
                self._audit_broken = False
            except (OSError, AuditError):
                if self.config.audit.on_error == "refuse":
                    return "audit"
        return self._not_ready or None

    def opened(self) -> Opened:
        """Return the guard.

        Raises:
            RefusedError: 503 where it is not ready, e.g. still loading.
        """
        if self._opened is None or self._not_ready:
            raise RefusedError(
                503, "not_ready", f"the service is not ready: {self._not_ready}.", retry_after=2
            )
        return self._opened

    async def in_thread(self, call: Call, stage: str, function: Callable[[], T]) -> T:
        """Run a function beside the event loop, timed as a stage; few at a time."""
        async with self._threads:
            with call.stages.stage(stage):
                return await asyncio.to_thread(function)

    async def judge(self, images: Tensor, call: Call, *, maps: bool = False) -> tuple[Outcome, ...]:
        """Judge a request's images, keep the verdicts, and apply the policies.

        Args:
            images: Pixels [B, C, H, W], as they came.
            call: The request.
            maps: Whether outcomes shall hold maps.

        Raises:
            RefusedError: There is no answer, for the reason it names.
        """
        opened = self.opened()
        images, hashes = await self._checked(images, opened, call)
        near = self._watch_queries(call, images)
        if self.config.policy.shadow:
            outcomes = await self._runner.bypassed(opened.guard, images, call, "shadow")
            task = asyncio.create_task(self._shadow(images, hashes, near, opened, call))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            return outcomes
        outcomes = await self._runner.guarded(opened.guard, images, call, maps=maps)
        await self._keep(outcomes, hashes, near, opened, call)
        if not self.config.answer.expose_scores:
            outcomes = withhold_copies(outcomes)
        return apply_policy(outcomes, self.config.policy.on_flag)

    def finish(
        self, call: Call, outcomes: Sequence[Outcome] | None, refusal: RefusedError | None
    ) -> None:
        """Count, log and trace a request that is over; neither is given where its client left."""
        outcome = "abandoned"
        if refusal is not None:
            outcome = {429: "shed", 422: "flagged"}.get(refusal.status, "error")
        elif outcomes is not None:
            outcome = _OUTCOMES[max(_SEVERITY[o.status] for o in outcomes)]
        self.metrics.answered(outcome)
        for stage in call.stages.done:
            self.metrics.took(stage.name, stage.seconds)
        status = 499 if refusal is None and outcomes is None else 200
        status = status if refusal is None else refusal.status
        entry = {
            "request_id": call.id,
            "route": call.route,
            "http_status": status,
            "outcome": outcome,
            "code": None if refusal is None else refusal.code,
            "ms": round(1e3 * call.stages.elapsed, 3),
            "stages_ms": call.stages.milliseconds(),
        }
        log.info("request", extra=entry)
        if self._tracing is not None:
            told = {
                "lrpguard.request_id": call.id,
                "lrpguard.outcome": outcome,
                "http.response.status_code": status,
            }
            self._tracing.record(
                call.route, call.stages, headers=call.headers, attributes=told, failed=status >= 500
            )

    async def _load(self) -> None:
        """Load, check, and become ready; or say why not."""
        try:
            await asyncio.to_thread(self._open)
        except Exception as error:
            self._not_ready = type(error).__name__
            log.error("not ready: %s", error, exc_info=not isinstance(error, LrpGuardError))
            return
        self._not_ready = ""
        self.metrics.ready.set(1)

    def _open(self) -> None:
        config = self.config
        set_threads(config, self._cores)
        key = secret_key(config.guard.key_file, self._environment)
        if config.audit.folder is not None:
            self._audit_key = chain_key(key)
            self._trail = AuditTrail(
                config.audit.folder,
                fsync=config.audit.fsync,
                rotate_bytes=config.audit.rotate_bytes,
                key=self._audit_key,
            )
        opened = open_guard(config, self._environment)
        difference = check_selftest(config, opened)
        self.metrics.calibrated(opened.calibration, opened.calibration_id)
        if config.drift.window:
            self._drift = DriftWatch(opened.calibration, config.drift.window, config.drift.level)
        monitor = config.monitor
        if monitor.enabled:
            self._monitor = QueryMonitor(
                monitor.memory, monitor.clients, monitor.distance, monitor.alert_after
            )
        self._opened = opened
        log.info(
            "ready",
            extra={
                "fingerprint": opened.calibration.fingerprint,
                "calibration": opened.calibration_id,
                "selftest_difference": difference,
                "secret_key": key is not None,
                "expose_scores": config.answer.expose_scores,
            },
        )

    async def _checked(
        self, images: Tensor, opened: Opened, call: Call
    ) -> tuple[Tensor, list[str]]:
        """Check the images, and hash them."""
        most = self.config.limits.images
        if len(images) > most:
            raise RefusedError(413, "too_large", f"{len(images)} images; at most {most} at once.")
        try:
            checked = check_images(images)
            opened.calibration.check_shape(checked)
        except InputError as error:
            raise bad_request(error) from error
        if checked.numel() <= INLINE_VALUES:
            return checked, _hashes(checked)
        hashes = await self.in_thread(call, "hash", lambda: _hashes(checked))
        return checked, hashes

    async def _shadow(
        self,
        images: Tensor,
        hashes: list[str],
        near: list[int],
        opened: Opened,
        call: Call,
    ) -> None:
        """Judge a request that has its answer already; where there is no room, say so."""
        try:
            outcomes = await self._runner.afterwards(opened.guard, images, call)
            await self._keep(outcomes, hashes, near, opened, call)
        except FullError:
            log.warning("no room for the shadow", extra={"request_id": call.id})
        except Exception:
            log.exception("the shadow failed", extra={"request_id": call.id})

    async def _keep(
        self,
        outcomes: tuple[Outcome, ...],
        hashes: Sequence[str],
        near: Sequence[int],
        opened: Opened,
        call: Call,
    ) -> None:
        """Write the audit lines, then count the verdicts."""
        if self._trail is not None:
            lines = audit_lines(
                call,
                opened,
                outcomes,
                hashes=hashes,
                near=near,
                policy=self.config.policy,
                key=self._audit_key,
            )
            with call.stages.stage("audit"):
                await self._append(self._trail, lines, call)
        for image, outcome in zip(hashes, outcomes, strict=True):
            all_copies = outcome.copies == opened.calibration.smoothing.n
            score = outcome.score if all_copies and not outcome.stopping else None
            self.metrics.judged(outcome.status, outcome.copies, score)
            if self._drift is not None and not outcome.unguarded:
                window = self._drift.add(image, call.id, outcome.flagged, score)
                if window is not None:
                    self._tell_of(window)

    async def _append(self, trail: AuditTrail, lines: list[dict[str, object]], call: Call) -> None:
        try:
            await asyncio.to_thread(trail.append, lines)
            self._audit_broken = False
        except (OSError, AuditError) as error:
            self._audit_broken = True
            self.metrics.audit_failed()
            log.error("audit line lost: %s", error, extra={"request_id": call.id})
            if self.config.audit.on_error == "refuse":
                raise RefusedError(
                    503, "audit", "the verdict could not be recorded.", retry_after=10
                ) from error

    def _tell_of(self, window: Window) -> None:
        self.metrics.drifted("flag_rate", window.rate_p_value)
        self.metrics.drifted("scores", window.score_p_value)
        if window.alarms:
            self.metrics.alerted("drift")
            log.warning("drift", extra={"tests": list(window.alarms), "window": asdict(window)})

    def _watch_queries(self, call: Call, images: Tensor) -> list[int]:
        if self._monitor is None:
            return []
        header = self.config.monitor.client_header
        client = call.headers.get(header.lower(), call.client) if header else call.client
        near = [self._monitor.add(client, image) for image in images]
        if self._monitor.suspicious(max(near)):
            self.metrics.alerted("query_monitor")
            log.warning("near-duplicate requests", extra={"request_id": call.id, "near": max(near)})
        return near


def _hashes(images: Tensor) -> list[str]:
    return [image_digest(image, b"").hex() for image in images]
