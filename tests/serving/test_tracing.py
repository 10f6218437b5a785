"""Traces, at a real OTLP collector on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.serving.conftest import Files, png, running, small_config

httpx = pytest.importorskip("httpx")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The spans that a collector on a free port was sent."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    found.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{server.server_port}/v1/traces"
    )
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_is_a_span_of_its_callers_trace_with_its_stages_below(
    files: Files, spans: list[Any], tmp_path: Any
) -> None:
    config = small_config(files, "telemetry.tracing=otlp", f"audit.folder={tmp_path}")
    with running(config) as url:
        header = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        answer = httpx.post(f"{url}/predict", content=png(files.clean[0]), headers=header)
        assert answer.status_code == 200
    (whole,) = [span for span in spans if span.name == "POST /predict"]
    assert whole.trace_id.hex() == TRACE
    assert whole.parent_span_id.hex() == "00f067aa0ba902b7"
    stages = {span.name: span for span in spans if span is not whole}
    assert set(stages) == {f"lrpguard.{name}" for name in ("decode", "queue", "guard", "audit")}
    for span in stages.values():
        assert span.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano
    assert (
        stages["lrpguard.queue"].end_time_unix_nano
        <= stages["lrpguard.guard"].start_time_unix_nano + 1000
    )
