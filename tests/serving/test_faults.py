"""What breaks a service from outside: killed workers, full disks, wrong files, slow clients."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpguard import Guard
from lrpguard.demo.digits import load_digits_model
from lrpguard.serving.chain import file_name, records, verify
from tests.serving.conftest import (
    SMOOTHING,
    Files,
    Process,
    png,
    running,
    settings,
    small_config,
    wait_until,
)
from tests.serving.models import Behaviour

httpx = pytest.importorskip("httpx")

DRIPS = 300
"""Pieces that a slow client would send, if it were let: a minute's worth."""


def predict(url: str, image: Any, **options: Any) -> Any:
    return httpx.post(f"{url}/predict", content=png(image), timeout=60, **options)


@pytest.fixture(scope="module")
def workers(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The service with two workers, in processes of its own."""
    pytest.importorskip("uvicorn")
    folder = tmp_path_factory.mktemp("workers")
    audit = f"audit.folder={folder / 'audit'}"
    process = Process(settings(files, "server.workers=2", audit), folder)
    wait_until(lambda: len(process.entries("ready")) == 2)
    yield process
    process.close()


def served(url: str, image: Any, count: int) -> list[str]:
    """Send requests, each on a connection of its own; return the ids of those answered."""
    answered = []
    for _ in range(count):
        try:
            answer = predict(url, image)
        except httpx.TransportError:  # of a worker that was killed
            continue
        assert answer.status_code == 200, answer.text
        answered.append(answer.json()["request_id"])
    return answered


def total(url: str, start: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(start))


class TestWorkers:
    """In order: each goes on with the service the one before left."""

    def test_metrics_count_what_all_workers_did(self, workers: Process, files: Files) -> None:
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(served, workers.url, files.clean[0], 6) for _ in range(4)]
            answered = [name for job in jobs for name in job.result()]
        assert len(answered) == 24
        # Whichever worker answers, and however the requests were shared out.
        for _ in range(4):
            assert total(workers.url, "lrpguard_requests_total") == 24
            assert total(workers.url, "lrpguard_stage_duration_seconds_count") >= 24
            assert total(workers.url, "lrpguard_ready ") == 2

    def test_a_worker_killed_in_a_request_loses_no_audit_line(
        self, workers: Process, files: Files
    ) -> None:
        before = {r["request"] for r in records(workers.folder / "audit", key=b"")}
        pids = children(workers.process.pid)
        assert len(pids) == 2
        (workers.folder / "slow").touch()
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(served, workers.url, files.clean[0], 1) for _ in range(4)]
            wait_until(lambda: total(workers.url, "lrpguard_inflight ") == 4)
            os.kill(pids[0], signal.SIGKILL)
            (workers.folder / "slow").unlink()
            answered = {name for job in jobs for name in job.result()}
        wait_until(lambda: len(workers.entries("ready")) == 3)  # a new one has taken its place
        answered |= set(served(workers.url, files.clean[0], 8))
        lines = {r["request"] for r in records(workers.folder / "audit", key=b"")} - before
        assert answered <= lines
        assert len(answered) >= 8
        wait_until(lambda: total(workers.url, "lrpguard_ready ") == 2)
        assert total(workers.url, "lrpguard_inflight ") == 0  # the dead worker's count is gone

    def test_out_of_memory_is_one_requests_failure(self, workers: Process, files: Files) -> None:
        (workers.folder / "huge").touch()
        answer = predict(workers.url, files.clean[0])
        (workers.folder / "huge").unlink()
        assert answer.status_code == 500
        assert answer.json()["code"] == "guard_failure"
        assert "alloc" not in answer.text
        assert predict(workers.url, files.clean[0]).status_code == 200

    def test_sigterm_answers_what_is_open_and_ends_well(
        self, workers: Process, files: Files
    ) -> None:
        (workers.folder / "slow").touch()
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(predict, workers.url, files.clean[0]) for _ in range(2)]
            wait_until(lambda: total(workers.url, "lrpguard_inflight ") == 2)
            workers.process.terminate()
            wait_until(lambda: not takes_connections(workers.url))
            assert not any(job.done() for job in jobs)
            (workers.folder / "slow").unlink()
            code = workers.end()
            answers = [job.result() for job in jobs]
        assert code == 0
        assert [answer.status_code for answer in answers] == [200, 200]
        lines = {r["request"] for r in records(workers.folder / "audit", key=b"")}
        assert {answer.json()["request_id"] for answer in answers} <= lines
        heads = workers.entries("audit trail closed")
        head = max(heads, key=lambda entry: int(entry["audit_lines"]))
        verify(workers.folder / "audit", key=b"", known=head["audit_head"])
        with pytest.raises(httpx.TransportError):
            predict(workers.url, files.clean[0])


def takes_connections(url: str) -> bool:
    """Return whether new requests are answered."""
    try:
        return bool(httpx.get(f"{url}/v2/health/live", timeout=2).status_code == 200)
    except httpx.TransportError:
        return False


def children(pid: int) -> list[int]:
    """Return the worker processes; not the tracker that Python itself starts."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if parent == pid and b"resource_tracker" not in command:
            found.append(int(folder.name))
    return found


class TestAuditDisk:
    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not let root mount a file system")
        yield disk
        subprocess.run(["umount", str(disk)], check=True)

    def test_refuse_gives_no_answer_that_is_not_recorded(
        self, files: Files, small_disk: Path
    ) -> None:
        with running(small_config(files, f"audit.folder={small_disk}")) as url:
            answers = [predict(url, files.clean[i % 20]) for i in range(20)]
            statuses = [answer.status_code for answer in answers]
            assert set(statuses) == {200, 503}
            assert httpx.get(f"{url}/v2/health/ready").json() == {"ready": False, "reason": "audit"}
            lines = [r["request"] for r in records(small_disk, key=b"")]
            told = [a.json()["request_id"] for a in answers if a.status_code == 200]
            assert lines == told
            assert answers[-1].json()["code"] == "audit"
            subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
            assert httpx.get(f"{url}/v2/health/ready").status_code == 200
            assert predict(url, files.clean[0]).status_code == 200
        verify(small_disk, key=b"")

    def test_continue_answers_and_counts_what_was_lost(
        self, files: Files, small_disk: Path
    ) -> None:
        settings = (f"audit.folder={small_disk}", "audit.on_error=continue")
        with running(small_config(files, *settings)) as url:
            answers = [predict(url, files.clean[i % 20]) for i in range(20)]
            assert {answer.status_code for answer in answers} == {200}
            kept = len(list(records(small_disk, key=b"")))
            assert total(url, "lrpguard_audit_failures_total") == 20 - kept > 0
            assert httpx.get(f"{url}/v2/health/ready").status_code == 200


class TestAuditRemoved:
    def test_refuse_gives_no_answer_that_no_file_keeps(self, files: Files, tmp_path: Path) -> None:
        folder = tmp_path / "audit"
        with running(small_config(files, f"audit.folder={folder}")) as url:
            assert predict(url, files.clean[0]).status_code == 200
            (folder / file_name(1)).rename(tmp_path / "kept")
            answer = predict(url, files.clean[0])
            assert (answer.status_code, answer.json()["code"]) == (503, "audit")
            assert httpx.get(f"{url}/v2/health/ready").json() == {"ready": False, "reason": "audit"}
            (tmp_path / "kept").rename(folder / file_name(1))
            assert httpx.get(f"{url}/v2/health/ready").status_code == 200
            assert predict(url, files.clean[0]).status_code == 200
        assert verify(folder, key=b"").head.seq == 2


class TestWrongFiles:
    """The service lives, says why it is not ready, and answers nothing."""

    def refuses(self, files: Files, reason: str, *changes: str) -> None:
        with running(small_config(files, *changes), ready=False) as url:
            wait_until(lambda: httpx.get(f"{url}/v2/health/ready").json()["reason"] != "loading")
            ready = httpx.get(f"{url}/v2/health/ready")
            assert (ready.status_code, ready.json()["reason"]) == (503, reason)
            assert httpx.get(f"{url}/v2/health/live").status_code == 200
            answer = predict(url, files.clean[0])
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")

    def test_a_truncated_calibration(self, files: Files, tmp_path: Path) -> None:
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(files.calibration.read_bytes()[:-100])
        self.refuses(files, "CalibrationFileError", f"guard.calibration={cut}")

    def test_an_altered_calibration(self, files: Files, tmp_path: Path) -> None:
        altered = tmp_path / "altered.safetensors"
        content = bytearray(files.calibration.read_bytes())
        content[-3] ^= 0x10
        altered.write_bytes(content)
        self.refuses(files, "CalibrationFileError", f"guard.calibration={altered}")

    def test_another_models_calibration(self, files: Files, tmp_path: Path) -> None:
        guard = Guard(load_digits_model(), smoothing=SMOOTHING)
        images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        guard.calibrate([images], alpha=0.1, detector="paper").save(tmp_path / "other.safetensors")
        other = f"guard.calibration={tmp_path / 'other.safetensors'}"
        self.refuses(files, "CalibrationMismatchError", other)

    def test_another_calibration_of_the_same_model(
        self, files: Files, guard: Guard, tmp_path: Path
    ) -> None:
        again = Guard(guard.model, smoothing=SMOOTHING)
        again.calibrate([files.clean], alpha=0.1, detector="paper")
        assert again.calibration is not None
        again.calibration.save(tmp_path / "other.safetensors")
        selftest = files.calibration.with_name("guard.selftest.safetensors")
        shutil.copy(selftest, tmp_path / "other.selftest.safetensors")
        other = f"guard.calibration={tmp_path / 'other.safetensors'}"
        self.refuses(files, "SelfTestError", other)

    def test_no_selftest(self, files: Files, tmp_path: Path) -> None:
        shutil.copy(files.calibration, tmp_path / "alone.safetensors")
        alone = f"guard.calibration={tmp_path / 'alone.safetensors'}"
        self.refuses(files, "SelfTestError", alone)

    def test_an_audit_trail_of_another_key(self, files: Files, tmp_path: Path) -> None:
        (tmp_path / file_name(1)).write_text('{"hash":"00","prev":"00","seq":1}\n')
        self.refuses(files, "AuditError", f"audit.folder={tmp_path}")

    def test_no_such_model(self, files: Files) -> None:
        self.refuses(files, "LoadingError", "model.spec=nowhere:model")


class TestSlowClients:
    @pytest.fixture(scope="class", name="url")
    @staticmethod
    def slow_url(files: Files) -> Iterator[str]:
        limits = ("limits.header_seconds=0.4", "limits.body_seconds=0.6")
        with running(small_config(files, *limits)) as address:
            yield address

    def conversation(self, url: str, *pieces: bytes, pause: float) -> tuple[bytes, bool]:
        """Send pieces with pauses; return what comes back, and whether it took them all.

        Where the service does not end it after that, it is an error.
        """
        host, port = url.removeprefix("http://").split(":")
        sent = 0
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            back = b""
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    sent += 1
                    if select.select([connection], [], [], pause)[0]:
                        back += connection.recv(65536)
                while part := connection.recv(65536):
                    back += part
            except ConnectionError:
                pass
        return back, sent == len(pieces)

    def test_a_connection_that_says_nothing_is_closed(self, url: str) -> None:
        assert self.conversation(url, pause=0) == (b"", True)

    def test_headers_that_drip_are_cut_off(self, url: str) -> None:
        drips = [b"POST /predict HTTP/1.1\r\n"] + [b"X-Drip: 1\r\n"] * DRIPS
        assert self.conversation(url, *drips, pause=0.2) == (b"", False)

    def test_headers_that_drip_on_a_used_connection_are_cut_off(self, url: str) -> None:
        whole = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        drips = [b"G"] + [b"E"] * DRIPS
        back, took_all = self.conversation(url, whole, *drips, pause=0.2)
        assert back.count(b"HTTP/1.1 200") == 1
        assert not took_all

    def test_a_body_that_drips_is_refused(self, url: str) -> None:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        back, took_all = self.conversation(url, head, *[b"x"] * DRIPS, pause=0.2)
        assert b"408" in back.split(b"\r\n")[0]
        assert not took_all

    def test_the_service_still_answers(self, url: str, files: Files) -> None:
        assert predict(url, files.clean[0]).status_code == 200

    def test_huge_headers_are_refused(self, url: str) -> None:
        head = b"GET / HTTP/1.1\r\nX-Huge: " + b"x" * 100_000
        back, _ = self.conversation(url, head, pause=0)
        assert back.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")) or back == b""


def test_more_connections_than_the_limit_are_turned_away(
    files: Files, behaviour: Behaviour
) -> None:
    with running(small_config(files, "limits.connections=4")) as url:
        host, port = url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(4)]
        wait_until(lambda: httpx.get(f"{url}/v2/health/live").status_code == 503)
        for connection in idle:
            connection.close()
        wait_until(lambda: httpx.get(f"{url}/v2/health/live").status_code == 200)
