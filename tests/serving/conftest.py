"""A small calibration, and the real service on a free port of loopback."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lrpguard import Guard, Smoothing
from lrpguard.demo.digits import load_digit_splits
from lrpguard.serving.config import ServiceConfig, selftest_beside
from lrpguard.serving.configure import load_config
from lrpguard.serving.selftest import SelfTest
from tests.serving.models import BEHAVIOUR, FOLDER_VARIABLE, SPEC, Behaviour, controlled

ROOT = Path(__file__).resolve().parents[2]
SMOOTHING = Smoothing(n=4, sigma=0.1)
MODEL = "digits"


@dataclass(frozen=True, eq=False)
class Files:
    """A calibration of the controlled digits network, and images for it.

    Attributes:
        calibration: The file, beside which its self-test is.
        clean: Digits that are not flagged [20, 1, 8, 8].
        odd: An image that is flagged [1, 1, 8, 8].
    """

    calibration: Path
    clean: Tensor
    odd: Tensor


def png(image: Tensor) -> bytes:
    """Return an image [1, 8, 8] as a PNG file."""
    pixels = (image[0] * 255).round().numpy().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def eight_bit(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("guard")
    splits = load_digit_splits()
    guard = Guard(controlled(), smoothing=SMOOTHING)
    clean = eight_bit(splits.calibration.images[:240])
    guard.calibrate(clean.split(60), alpha=0.05).save(folder / "guard.safetensors")
    SelfTest.make(guard, clean[0], key=None).save(selftest_beside(folder / "guard.safetensors"))
    test = eight_bit(splits.test.images[:40])
    kept = test[~guard(test).flagged][:20]
    noise = eight_bit(torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    odd = noise[guard(noise).flagged][:1]
    assert (len(kept), len(odd)) == (20, 1)
    return Files(folder / "guard.safetensors", kept, odd)


@pytest.fixture
def guard(files: Files) -> Guard:
    """The guard as the service should have it."""
    return Guard(controlled(), calibration=files.calibration)


def settings(files: Files, *assignments: str) -> list[str]:
    return [
        f"model.spec={SPEC}",
        f"model.name={MODEL}",
        "model.image_size=8,8",
        "model.device=cpu",
        f"guard.calibration={files.calibration}",
        "server.port=0",
        "server.threads=1",
        "limits.deadline_ms=300000",  # for a machine that is busy with other things
        *assignments,
    ]


def small_config(files: Files, *assignments: str) -> ServiceConfig:
    return load_config(None, environment={}, assignments=settings(files, *assignments))


@pytest.fixture
def behaviour() -> Iterator[Behaviour]:
    """What the network does in this process; put back afterwards."""
    BEHAVIOUR.__init__()  # type: ignore[misc]
    yield BEHAVIOUR
    BEHAVIOUR.gate.set()
    BEHAVIOUR.__init__()  # type: ignore[misc]


@contextmanager
def running(config: ServiceConfig, *, ready: bool = True) -> Iterator[str]:
    """Run the service in a thread, under the real server; give its address."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    from lrpguard.serving.app import create_app
    from lrpguard.serving.launch import uvicorn_settings

    settings = uvicorn_settings(config, lambda: create_app(config, {}))
    server = uvicorn.Server(settings)
    socket = settings.bind_socket()
    url = f"http://127.0.0.1:{socket.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        if ready:
            wait_until(lambda: httpx.get(f"{url}/v2/health/ready").status_code == 200)
        else:
            wait_until(lambda: server.started)
        yield url
    finally:
        server.should_exit = True
        thread.join(60)
        socket.close()


def wait_until(done: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until something holds; a refused connection is a no."""
    import httpx

    end = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "it did not come to hold in time"
        time.sleep(0.02)


class Process:
    """``lrpguard serve`` in a process of its own.

    Args:
        assignments: Settings.
        folder: Where its log is, and the files that change its network's behaviour.
    """

    def __init__(self, assignments: list[str], folder: Path) -> None:
        import httpx

        self.folder = folder
        self.log = folder / "service.log"
        flags = [part for text in assignments for part in ("--set", text)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LRPGUARD_")}
        environment |= {FOLDER_VARIABLE: str(folder), "PYTHONPATH": str(ROOT)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lrpguard", "serve", *flags],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its workers can be ended with it
            )
        self.url = ""
        wait_until(lambda: self._find_url() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        wait_until(lambda: httpx.get(f"{self.url}/v2/health/ready").status_code == 200)

    def _find_url(self) -> bool:
        import json

        for line in self.log.read_text().splitlines():
            if '"listening"' in line:
                self.url = json.loads(line)["url"]
        return bool(self.url)

    def entries(self, message: str) -> list[dict[str, Any]]:
        """Return the entries of its log with that message."""
        import json

        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]
        return [line for line in lines if line["message"] == message]

    def end(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
