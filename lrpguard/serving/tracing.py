"""OpenTelemetry: one span a request, and one below it for each of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrpguard.errors import MissingDependencyError
from lrpguard.serving.stages import Stages

_NANO = 1_000_000_000


class Tracing:
    """Sends spans where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says; made in the worker's process.

    Spans are made when a request is over, from its own clock, so that the stages need no
    context while they run, and a change of the wall clock moves the whole request at most.

    Raises:
        MissingDependencyError: OpenTelemetry's SDK or its OTLP exporter is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise MissingDependencyError(
                "telemetry.tracing is 'otlp', which needs OpenTelemetry. Install it with: "
                "pip install 'lrpguard[serve,tracing]'"
            ) from error
        # The service's name can be set by OTEL_SERVICE_NAME, which Resource.create reads.
        resource = Resource.create({"service.name": "lrpguard"})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("lrpguard.serving")

    def record(
        self,
        name: str,
        stages: Stages,
        *,
        headers: Mapping[str, str],
        attributes: Mapping[str, Any],
        failed: bool,
    ) -> None:
        """Send the spans of a request that is over.

        Args:
            name: What the request was, e.g. ``"POST /predict"``.
            stages: Its clock.
            headers: Its headers; ``traceparent`` makes it part of the caller's trace.
            attributes: What is known of it.
            failed: Whether it was refused for a fault of the server.
        """
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(headers))
        arrived = int(stages.wall * _NANO)
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=SpanKind.SERVER,
            start_time=arrived,
            attributes=dict(attributes),
        )
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        inside = trace.set_span_in_context(span, parent)
        for stage in stages.done:
            begun = arrived + int(stage.start * _NANO)
            child = self._tracer.start_span(
                f"lrpguard.{stage.name}", context=inside, start_time=begun
            )
            child.end(begun + int(stage.seconds * _NANO))
        span.end(arrived + int(stages.elapsed * _NANO))

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
