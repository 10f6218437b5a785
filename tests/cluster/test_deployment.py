"""The service on Ray Serve, over real HTTP: as the library answers, batched, shed, killed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpguard import Guard
from lrpguard.cluster.deployment import Replica, application, build
from lrpguard.errors import ConfigurationError
from lrpguard.serving.chain import records
from lrpguard.serving.refusal import RefusedError
from tests.serving.conftest import MODEL, Files, png, small_config, wait_until
from tests.serving.models import controlled

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def url(cluster: str, files: Files, audit: Path) -> Iterator[str]:
    """One replica, before which one request may wait."""
    serve = pytest.importorskip("ray.serve")
    settings = (
        "ray.max_replicas=1",
        "ray.batch_size=3",
        "ray.batch_wait_ms=200",
        "ray.max_queued_requests=1",
        "limits.queue=0",
        "answer.expose_scores=true",
        f"audit.folder={audit}",
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(small_config(files, *settings)), name="guard")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def predict(url: str, image: Any) -> Any:
    return httpx.post(f"{url}/predict", content=png(image), timeout=300)


def patient(url: str, content: bytes) -> Any:
    """Send a request again where the proxy sheds it: while it looks for a replica, one may wait."""
    answers = [httpx.post(f"{url}/predict", content=content, timeout=300)]

    def admitted() -> bool:
        if answers[-1].status_code == 429:
            answers.append(httpx.post(f"{url}/predict", content=content, timeout=300))
        return bool(answers[-1].status_code != 429)

    wait_until(admitted)
    return answers[-1]


def told(verdict: Any, row: int) -> tuple[Any, ...]:
    values = (verdict.logits, verdict.score, verdict.p_value, verdict.flagged)
    return tuple(value[row].tolist() for value in values)


def test_answers_are_the_librarys_alone_and_in_a_batch(url: str, files: Files) -> None:
    images = torch.cat([files.clean[:5], files.odd])
    expected = Guard(controlled(), calibration=files.calibration)(images)
    alone = patient(url, png(images[5])).json()
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda image: patient(url, png(image)).json(), images)
        answers = list(found)
    assert answers[5] | {"request_id": ""} == alone | {"request_id": ""}
    for row, answer in enumerate(answers):
        names = ("logits", "score", "p_value", "flagged")
        assert tuple(answer[name] for name in names) == told(expected, row)
        assert answer["status"] == expected.status[row]


def test_the_open_inference_protocol_is_spoken(url: str, files: Files) -> None:
    assert httpx.get(f"{url}/v2/health/ready", timeout=60).status_code == 200
    tensor = {"name": "images", "datatype": "FP32", "shape": [2, 1, 8, 8]}
    body = {"inputs": [tensor | {"data": files.clean[:2].flatten().tolist()}]}
    answer = httpx.post(f"{url}/v2/models/{MODEL}/infer", json=body, timeout=300).json()
    found = {output["name"]: output["data"] for output in answer["outputs"]}
    expected = Guard(controlled(), calibration=files.calibration)(files.clean[:2])
    assert found["score"] == expected.score.tolist()


def test_a_bad_request_is_refused_by_name_and_harms_no_other(url: str, files: Files) -> None:
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(patient, url, png(files.clean[0]))
        bad = pool.submit(patient, url, b"x")
    assert (bad.result().status_code, bad.result().json()["code"]) == (400, "bad_input")
    assert good.result().status_code == 200


def test_too_many_requests_are_shed(url: str, files: Files, behaviour_folder: Path) -> None:
    (behaviour_folder / "slow").touch()
    try:
        with ThreadPoolExecutor(12) as pool:
            jobs: list[Future[Any]] = []
            while len(jobs) < 12 and not any(job.done() for job in jobs):  # done: it was shed
                jobs.append(pool.submit(predict, url, files.clean[0]))
                wait(jobs, timeout=5, return_when=FIRST_COMPLETED)
            (behaviour_folder / "slow").unlink()
            answers = [job.result() for job in jobs]
    finally:
        (behaviour_folder / "slow").unlink(missing_ok=True)
    statuses = [answer.status_code for answer in answers]
    assert min(statuses.count(200), statuses.count(429)) >= 1
    assert statuses.count(200) + statuses.count(429) == len(jobs)
    assert {a.headers["retry-after"] for a in answers if a.status_code == 429} == {"1"}


def test_a_replica_killed_in_a_request_is_replaced(
    url: str, files: Files, audit: Path, behaviour_folder: Path
) -> None:
    (behaviour_folder / "kill").touch()
    assert predict(url, files.clean[0]).status_code >= 500
    assert not (behaviour_folder / "kill").exists()
    answers = []

    def answered() -> bool:
        answers.append(predict(url, files.clean[1]))
        return bool(answers[-1].status_code == 200)

    wait_until(answered)
    lines = {line["request"] for line in records(audit, key=b"")}
    assert answers[-1].json()["request_id"] in lines


def test_a_replica_without_its_selftest_is_not_healthy(files: Files, tmp_path: Path) -> None:
    (tmp_path / "alone.safetensors").write_bytes(files.calibration.read_bytes())
    pytest.importorskip("ray.serve")
    config = small_config(files, f"guard.calibration={tmp_path / 'alone.safetensors'}")

    async def health() -> None:
        replica = Replica(config)
        app = replica.__serve_build_asgi_app__()
        async with app.router.lifespan_context(app):
            await replica.check_health()

    with pytest.raises(RefusedError, match="not ready: SelfTestError"):
        asyncio.run(health())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("policy.on_overload=bypass", "set it to 'shed'"),
        ("ray.min_replicas=5", "ray.max_replicas is 4, less than"),
    ],
)
def test_what_ray_serve_cannot_keep_is_refused(files: Files, setting: str, words: str) -> None:
    pytest.importorskip("ray.serve")
    with pytest.raises(ConfigurationError, match=words):
        application(small_config(files, setting))


def test_the_builder_takes_a_settings_file(files: Files, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    (tmp_path / "guard.toml").write_text("[ray]\nmax_replicas = 2\n")
    assert build({"config": str(tmp_path / "guard.toml")}) is not None
    with pytest.raises(ConfigurationError, match="expected config=FILE"):
        build({"file": "guard.toml"})
