"""The name of a request: its answer and the log have the same, also where the service fails."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lrpguard.serving.refusal import RefusedError
from lrpguard.serving.service import Service
from tests.serving.conftest import MODEL, Files, png, running, small_config

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")


class Failing(Service):
    """A service with a bug."""

    async def judge(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    async def not_ready(self) -> str | None:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("given", [None, "order-66"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/predict"), ("GET", f"/v2/models/{MODEL}/ready")]
)
def test_the_answer_to_a_failure_has_the_id_of_the_log(
    files: Files,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    given: str | None,
) -> None:
    from starlette.testclient import TestClient

    from lrpguard.serving.app import app_of

    service = Failing(small_config(files), {})
    headers = {} if given is None else {"X-Request-ID": given}
    with TestClient(app_of(service), raise_server_exceptions=False) as client:
        assert client.portal is not None
        client.portal.call(service.loaded)
        content = png(files.clean[0]) if method == "POST" else None
        with caplog.at_level(logging.INFO, "lrpguard.serving"):
            answer = client.request(method, path, content=content, headers=headers)
    name = answer.json()["request_id"]
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert given in (None, name)
    assert answer.headers["x-request-id"] == name
    logged = {r.message: r for r in caplog.records if getattr(r, "request_id", None) == name}
    assert logged["the service failed"].exc_info is not None
    assert ("request" in logged) == (method == "POST")


def test_a_refusal_outside_the_judging_has_it_too(files: Files) -> None:
    with running(small_config(files)) as url:
        for path in ("/v2/models/other", "/predict", "/nowhere"):
            answer = httpx.get(url + path, headers={"X-Request-ID": "mine"})
            assert answer.status_code in (404, 405)
            assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"


def test_a_refusal_carries_its_id() -> None:
    from lrpguard.serving.app import refused

    answer = refused(RefusedError(408, "slow", "too slow."), "mine")
    assert answer.headers["x-request-id"] == "mine"
