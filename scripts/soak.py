"""Load the service at twice its capacity, or measure what it adds to the library's call.

    python scripts/soak.py load --seconds 1800     # the bar; the tests run a minute
    python scripts/soak.py overhead                # p50 of a request, less p50 of guard(image)

Both serve the packaged digits model by ``lrpguard serve`` on a free port of loopback, and print
one JSON object. ``load`` measures the capacity first, with as many requests in flight as can be
admitted, and then sends twice that rate, whether answers come or not. It exits 1 where a check
fails: a crash, a request that is neither answered nor shed with 429, an answer without its audit
line, a p99 of the admitted requests above the deadline, or memory that grows.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from lrpguard import Guard, __version__
from lrpguard.cli.serve import calibrate_demo, demo_assignments
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.serving.chain import records, verify

QUEUE = 4
WARM_SECONDS = 10.0
GROWTH = 0.1
"""Largest growth of the memory, from the first quarter of the load to the last, that is flat."""

MIB = 2**20


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        status: HTTP status; 0 where there was no answer.
        id: Name of the request, where answered.
        seconds: Until the answer.
    """

    status: int
    id: str
    seconds: float


@dataclass(frozen=True)
class Served:
    """A service that runs.

    Attributes:
        url: Its address.
        pid: Its process.
        folder: Where its files are: the calibration, the audit trail and the log.
    """

    url: str
    pid: int
    folder: Path

    @property
    def calibration(self) -> Path:
        """Its calibration file."""
        return self.folder / "digits.safetensors"


@contextmanager
def service(images: int, deadline_ms: int) -> Iterator[Served]:
    """Serve the packaged model; fail where the service does not end well."""
    with tempfile.TemporaryDirectory(prefix="lrpguard-soak-") as name:
        folder = Path(name)
        calibration = folder / "digits.safetensors"
        calibrate_demo(calibration, key=None, images=images)
        assignments = [
            *demo_assignments(calibration),
            "server.port=0",
            "telemetry.log_format=json",
            f"audit.folder={folder / 'audit'}",
            f"limits.deadline_ms={deadline_ms}",
            f"limits.queue={QUEUE}",
            "audit.rotate_bytes=1000000",
        ]
        flags = [part for text in assignments for part in ("--set", text)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lrpguard", "serve", *flags], stdout=log, stderr=log
            )
        try:
            yield Served(_wait(folder / "log", process), process.pid, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        if code != 0:
            raise SystemExit(
                f"the service ended with {code}: {(folder / 'log').read_text()[-2000:]}"
            )


def _wait(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the service's address, once it is ready."""
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"listening"' in line:
                url = str(json.loads(line)["url"])
                if _ready(url):
                    return url
        time.sleep(0.1)
    raise SystemExit(f"the service did not start: {log.read_text()[-2000:]}")


def _ready(url: str) -> bool:
    """Say whether the service is ready; it names its address before it takes connections."""
    try:
        return httpx.get(f"{url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def pictures() -> list[bytes]:
    """Return the test digits as PNG files."""
    files = []
    for image in load_digit_splits().test.images:
        file = io.BytesIO()
        Image.fromarray((image[0] * 255).round().numpy().astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


class Client:
    """Sends requests, and keeps what became of them.

    Args:
        url: The service.
    """

    def __init__(self, url: str) -> None:
        # Idle connections are let go before the service closes them, or a request may meet that.
        limits = httpx.Limits(
            max_connections=256, max_keepalive_connections=256, keepalive_expiry=2
        )
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=30)
        self._files = pictures()
        self._sent = 0
        self.answers: list[Answer] = []

    async def send(self) -> Answer:
        """Send one."""
        content = self._files[self._sent % len(self._files)]
        self._sent += 1
        begun = time.perf_counter()
        try:
            reply = await self._http.post("/predict", content=content)
            status = reply.status_code
            name = str(reply.json()["request_id"])
        except (httpx.HTTPError, ValueError):
            status, name = 0, ""
        answer = Answer(status, name, time.perf_counter() - begun)
        self.answers.append(answer)
        return answer

    async def closed_loop(self, seconds: float, clients: int) -> float:
        """Send as fast as answers come; return the answered requests a second."""
        until = time.perf_counter() + seconds
        answered = 0

        async def one() -> None:
            nonlocal answered
            while time.perf_counter() < until:
                answer = await self.send()  # apart: += would read the sum before it waits
                answered += answer.status == 200

        await asyncio.gather(*(one() for _ in range(clients)))
        return answered / seconds

    async def open_loop(self, seconds: float, rate: float) -> None:
        """Send at a rate, whether answers come or not, and wait for the last."""
        begun = time.perf_counter()
        tasks: set[asyncio.Task[Answer]] = set()
        for number in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            task = asyncio.create_task(self.send())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


def resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def load(served: Served, seconds: float, deadline_ms: int, times: float) -> dict[str, object]:
    """Load the service at some times its capacity; return the figures."""
    client = Client(served.url)
    await client.closed_loop(WARM_SECONDS, clients=QUEUE)
    capacity = await client.closed_loop(WARM_SECONDS, clients=QUEUE)
    before = len(client.answers)
    memory: list[int] = []

    async def watch() -> None:
        while True:
            memory.append(resident(served.pid))
            await asyncio.sleep(min(1.0, seconds / 40))

    watching = asyncio.create_task(watch())
    await client.open_loop(seconds, times * capacity)
    watching.cancel()
    loaded = client.answers[before:]
    admitted = [answer.seconds for answer in loaded if answer.status == 200]
    lines = Counter(str(record["request"]) for record in records(served.folder / "audit", key=b""))
    verify(served.folder / "audit", key=b"")
    answered = Counter(answer.id for answer in client.answers if answer.status == 200)
    quarter = max(1, len(memory) // 4)
    first, last = statistics.median(memory[:quarter]), statistics.median(memory[-quarter:])
    await client.close()
    return {
        "seconds": seconds,
        "capacity_per_second": capacity,
        "offered_per_second": times * capacity,
        "requests": len(loaded),
        "statuses": dict(Counter(str(answer.status) for answer in loaded)),
        "lost_audit_lines": sum((answered - lines).values()),
        "deadline_ms": deadline_ms,
        "admitted_p50_ms": 1e3 * float(np.quantile(admitted, 0.5)),
        "admitted_p99_ms": 1e3 * float(np.quantile(admitted, 0.99)),
        "memory_first_mib": first / MIB,
        "memory_last_mib": last / MIB,
    }


def failures(figures: dict[str, object]) -> list[str]:
    """Return the checks that fail."""
    statuses, p99 = figures["statuses"], figures["admitted_p99_ms"]
    first, last = figures["memory_first_mib"], figures["memory_last_mib"]
    deadline = figures["deadline_ms"]
    assert isinstance(statuses, dict)
    assert isinstance(deadline, int)
    assert isinstance(p99, float)
    assert isinstance(first, float)
    assert isinstance(last, float)
    checks = {
        "neither answered nor shed": not set(statuses) <= {"200", "429"},
        "nothing was shed: no overload": "429" not in statuses,
        "audit lines lost": figures["lost_audit_lines"] != 0,
        "p99 above the deadline": p99 > deadline,
        "memory grows": last > (1 + GROWTH) * first,
    }
    return [name for name, failed in checks.items() if failed]


@dataclass(frozen=True)
class Overhead:
    """What the service adds, in milliseconds.

    Attributes:
        requests: Requests, and calls of the library, in turn.
        service_p50_ms: Median time of a request.
        library_p50_ms: Median time of ``guard(image)`` in this process.
        overhead_p50_ms: Difference of the medians.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
    """

    requests: int
    service_p50_ms: float
    library_p50_ms: float
    overhead_p50_ms: float
    low: float
    high: float


def overhead(served: Served, count: int) -> Overhead:
    """Time requests and calls in turn, of the same unflagged images, on one thread each."""
    guard = Guard(load_digits_model(), calibration=served.calibration)
    images = torch.round(load_digit_splits().test.images * 255) / 255
    files = pictures()
    plain = [i for i in range(60) if not bool(guard(images[i : i + 1]).flagged[0])]
    service_ms, library_ms = [], []
    with httpx.Client(base_url=served.url) as client:
        for number in range(-10, count):
            i = plain[number % len(plain)]
            begun = time.perf_counter()
            client.post("/predict", content=files[i]).raise_for_status()
            middle = time.perf_counter()
            guard(images[i : i + 1])
            ended = time.perf_counter()
            if number >= 0:
                service_ms.append(1e3 * (middle - begun))
                library_ms.append(1e3 * (ended - middle))
    generator = np.random.default_rng(0)
    both = np.array([service_ms, library_ms])
    rows = generator.integers(0, count, size=(2000, count))
    medians = np.median(both[:, rows], axis=2)
    low, high = np.quantile(medians[0] - medians[1], [0.025, 0.975])
    middle_of = np.median(both, axis=1)
    return Overhead(
        count,
        float(middle_of[0]),
        float(middle_of[1]),
        float(middle_of[0] - middle_of[1]),
        float(low),
        float(high),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the load or the measurement, and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["load", "overhead"])
    parser.add_argument("--seconds", type=float, default=1800, help="of load (default 1800)")
    parser.add_argument("--times", type=float, default=2, help="the capacity (default 2)")
    parser.add_argument("--deadline-ms", type=int, default=2000, help="default 2000")
    parser.add_argument("--requests", type=int, default=300, help="of overhead (default 300)")
    parser.add_argument("--images", type=int, default=600, help="to calibrate with (default 600)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    about = {"version": __version__, "torch": torch.__version__, "cores": os.cpu_count()}
    with service(args.images, args.deadline_ms) as served:
        if args.what == "overhead":
            print(json.dumps({**asdict(overhead(served, args.requests)), **about}))
            return 0
        figures = asyncio.run(load(served, args.seconds, args.deadline_ms, args.times))
    failed = failures(figures)
    print(json.dumps({**figures, "failed": failed, **about}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
