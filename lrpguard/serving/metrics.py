"""Prometheus metrics, right under several workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lrpguard.calibration import Calibration

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Folder in which the workers share their counts; prometheus_client's own variable."""

STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The service's counts.

    Args:
        model: Name of the served model: the only value of its label, whatever clients send.
    """

    def __init__(self, model: str) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._own = CollectorRegistry()
        self._model = model
        self._requests = Counter(
            "lrpguard_requests",
            "Requests by outcome; of several images the worst counts.",
            ["model", "outcome"],
            registry=self._own,
        )
        self._images = Counter(
            "lrpguard_images", "Judged images by status.", ["model", "status"], registry=self._own
        )
        self._copies = Counter(
            "lrpguard_judged_images",
            "Judged images by the copies that were made.",
            ["copies"],
            registry=self._own,
        )
        self._stages = Histogram(
            "lrpguard_stage_duration_seconds",
            "Duration of a stage of a request.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=self._own,
        )
        self.inflight = Gauge(
            "lrpguard_inflight",
            "Requests that are being answered.",
            registry=self._own,
            multiprocess_mode="livesum",
        )
        self.queue_depth = Gauge(
            "lrpguard_queue_depth",
            "Runs of the guard that wait or run.",
            registry=self._own,
            multiprocess_mode="livesum",
        )
        self.ready = Gauge(
            "lrpguard_ready",
            "Workers that are ready.",
            registry=self._own,
            multiprocess_mode="livesum",
        )
        self._calibration = Gauge(
            "lrpguard_calibration_info",
            "The calibration in use; always 1.",
            ["calibration", "fingerprint", "detector", "alpha", "n", "copies", "created"],
            registry=self._own,
            multiprocess_mode="livemax",
        )
        self._drift = Gauge(
            "lrpguard_drift_p_value",
            "p-value of the last window; the smallest of the workers.",
            ["test"],
            registry=self._own,
            multiprocess_mode="livemin",
        )
        self._alerts = Counter(
            "lrpguard_alerts", "Alerts: drift, query_monitor.", ["kind"], registry=self._own
        )
        self._audit_failures = Counter(
            "lrpguard_audit_failures", "Lines that could not be written.", registry=self._own
        )
        self._score: Any = None
        for outcome in ("pass", "flagged", "restored", "unguarded", "error", "shed"):
            self._requests.labels(model, outcome)

    def calibrated(self, calibration: Calibration, calibration_id: str) -> None:
        """Enter the calibration, whose quantiles are the score's buckets."""
        from prometheus_client import Histogram

        self._calibration.labels(
            calibration_id,
            calibration.fingerprint[:12],
            calibration.detector.name,
            f"{calibration.alpha:g}",
            str(calibration.n),
            str(calibration.smoothing.n),
            calibration.created,
        ).set(1)
        self._score = Histogram(
            "lrpguard_score",
            "Anomaly score; the buckets end at quantiles of the calibration.",
            buckets=score_buckets(calibration),
            registry=self._own,
        )

    def answered(self, outcome: str) -> None:
        """Count a request by its outcome."""
        self._requests.labels(self._model, outcome).inc()

    def judged(self, status: str, copies: int | None, score: float | None) -> None:
        """Count an image; its score is None where it is none of the calibration's kind."""
        self._images.labels(self._model, status).inc()
        if copies:
            self._copies.labels(str(copies)).inc()
        if score is not None and self._score is not None:
            self._score.observe(score)

    def took(self, stage: str, seconds: float) -> None:
        """Enter the duration of a stage."""
        self._stages.labels(stage).observe(seconds)

    def drifted(self, test: str, p_value: float) -> None:
        """Enter the p-value of a window."""
        self._drift.labels(test).set(p_value)

    def alerted(self, kind: str) -> None:
        """Count an alert."""
        self._alerts.labels(kind).inc()

    def audit_failed(self) -> None:
        """Count a line that could not be written."""
        self._audit_failures.inc()

    def exposition(self) -> tuple[bytes, str]:
        """Return all metrics, of all workers, in Prometheus' text form, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        folder = os.environ.get(MULTIPROCESS_VARIABLE)
        if folder is None:
            return generate_latest(self._own), CONTENT_TYPE_LATEST
        forget_dead(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def score_buckets(calibration: Calibration) -> tuple[float, ...]:
    """Return ascending ends of buckets: quantiles of the calibration, and its threshold."""
    ends = np.quantile(calibration.anomalies.numpy(), _QUANTILES).tolist()
    return tuple(sorted({float(f"{end:.6g}") for end in (*ends, calibration.threshold)}))


def forget_dead(folder: Path) -> None:
    """Take the live gauges of workers that have died out of the shared counts."""
    from prometheus_client.multiprocess import mark_process_dead

    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
