"""The policies, over real HTTP: flags, failures, overload, deadline, shadow."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lrpguard import Guard
from lrpguard.serving.chain import records
from tests.serving.conftest import Files, png, running, small_config, wait_until
from tests.serving.models import Behaviour

httpx = pytest.importorskip("httpx")

PREDICT = "/predict"


def predict(url: str, image: Any) -> Any:
    return httpx.post(url + PREDICT, content=png(image), timeout=60)


class TestFlag:
    def test_annotate_lets_the_models_answer_stand(
        self, files: Files, guard: Guard, tmp_path: Path
    ) -> None:
        with running(small_config(files)) as url:
            answer = predict(url, files.odd[0]).json()
        expected = guard(files.odd)
        assert answer["flagged"] is True
        assert answer["label"] == answer["model_label"] == int(expected.label[0])
        assert answer["logits"] == expected.logits[0].tolist()

    def test_restore_puts_the_restored_answer_in_its_place(
        self, files: Files, guard: Guard
    ) -> None:
        with running(small_config(files, "policy.on_flag=restore")) as url:
            flagged = predict(url, files.odd[0]).json()
            clean = predict(url, files.clean[0]).json()
        expected = guard(files.odd)
        label = int(expected.restored_label[0])
        assert flagged["label"] == (None if label == -1 else label)
        assert flagged["logits"] == expected.restored_logits[0].tolist()
        assert flagged["model_label"] == int(expected.label[0])
        assert clean["label"] == clean["model_label"]

    def test_reject_refuses_and_records(self, files: Files, tmp_path: Path) -> None:
        audit = f"audit.folder={tmp_path / 'audit'}"
        with running(small_config(files, "policy.on_flag=reject", audit)) as url:
            answer = predict(url, files.odd[0])
            assert predict(url, files.clean[0]).status_code == 200
        assert answer.status_code == 422
        assert "label" not in answer.json()
        lines = list(records(tmp_path / "audit", key=b""))
        assert [line["flagged"] for line in lines] == [True, False]


class TestFailure:
    def test_fail_closed_gives_no_answer_and_no_inside(
        self, files: Files, behaviour: Behaviour
    ) -> None:
        with running(small_config(files)) as url:
            behaviour.noisy_error = RuntimeError("secret inside")
            answer = predict(url, files.clean[0])
            behaviour.noisy_error = None
            assert predict(url, files.clean[0]).status_code == 200
        assert answer.status_code == 500
        assert answer.json()["code"] == "guard_failure"
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text

    def test_fail_open_answers_and_says_so(
        self, files: Files, guard: Guard, behaviour: Behaviour, tmp_path: Path
    ) -> None:
        audit = f"audit.folder={tmp_path / 'audit'}"
        config = small_config(files, "policy.on_failure=fail_open", audit)
        with running(config) as url:
            behaviour.noisy_error = RuntimeError("secret inside")
            answer = predict(url, files.clean[0])
        behaviour.noisy_error = None
        assert answer.status_code == 200
        told = answer.json()
        assert (told["unguarded"], told["status"]) == (True, "unguarded")
        assert told["reason"] == "guard_failure"
        assert told["label"] == int(guard(files.clean[:1]).label[0])
        (line,) = records(tmp_path / "audit", key=b"")
        assert (line["status"], line["reason"], line["score"]) == (
            "unguarded",
            "guard_failure",
            None,
        )

    @pytest.mark.parametrize("policy", ["fail_open", "fail_closed"])
    def test_nan_logits_are_no_answer_under_either(
        self, files: Files, behaviour: Behaviour, policy: str
    ) -> None:
        with running(small_config(files, f"policy.on_failure={policy}")) as url:
            behaviour.nan = True
            answer = predict(url, files.clean[0])
            behaviour.nan = False
            assert predict(url, files.clean[0]).status_code == 200
        assert answer.status_code == 500
        assert "NaN" not in answer.text.replace("NaN or infinite logits", "")

    @pytest.mark.parametrize("policy", ["fail_open", "fail_closed"])
    def test_a_model_that_fails_itself_has_no_answer(
        self, files: Files, behaviour: Behaviour, policy: str
    ) -> None:
        with running(small_config(files, f"policy.on_failure={policy}")) as url:
            behaviour.error = RuntimeError("secret inside")
            answer = predict(url, files.clean[0])
        assert answer.status_code == 500
        assert "secret" not in answer.text


class Clients:
    """Requests that are sent side by side."""

    def __init__(self, url: str, image: Any) -> None:
        self._pool = ThreadPoolExecutor(16)
        self._send = lambda: predict(url, image)

    def send(self, count: int) -> list[Future[Any]]:
        return [self._pool.submit(self._send) for _ in range(count)]

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def held(behaviour: Behaviour) -> Iterator[Behaviour]:
    """The guard's thread is held at its next run, until ``gate`` is set."""
    yield behaviour
    behaviour.gate.set()


def gauge(url: str, name: str) -> float:
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    return 0.0


def hold(behaviour: Behaviour, url: str, clients: Clients, depth: int) -> list[Future[Any]]:
    """Fill the guard's queue to a depth."""
    behaviour.gate.clear()
    sent = clients.send(depth)
    wait_until(lambda: gauge(url, "lrpguard_queue_depth") == depth)
    return sent


class TestOverload:
    def test_shed_answers_429_at_once(self, files: Files, held: Behaviour) -> None:
        with running(small_config(files, "limits.queue=1")) as url:
            clients = Clients(url, files.clean[0])
            sent = hold(held, url, clients, depth=2)
            answer = predict(url, files.clean[0])
            held.gate.set()
            assert [f.result().status_code for f in sent] == [200, 200]
            clients.close()
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1

    def test_bypass_answers_unguarded(
        self, files: Files, guard: Guard, held: Behaviour, tmp_path: Path
    ) -> None:
        audit = f"audit.folder={tmp_path / 'audit'}"
        config = small_config(files, "limits.queue=1", "policy.on_overload=bypass", audit)
        with running(config) as url:
            clients = Clients(url, files.clean[0])
            sent = hold(held, url, clients, depth=2)
            answer = predict(url, files.clean[0]).json()
            held.gate.set()
            assert [f.result().json()["unguarded"] for f in sent] == [False, False]
            clients.close()
        assert (answer["unguarded"], answer["reason"]) == (True, "overload")
        assert answer["label"] == int(guard(files.clean[:1]).label[0])
        reasons = [line["reason"] for line in records(tmp_path / "audit", key=b"")]
        assert sorted(reasons, key=str) == [None, None, "overload"]

    def test_block_waits_for_room(self, files: Files, held: Behaviour) -> None:
        with running(small_config(files, "limits.queue=0", "policy.on_overload=block")) as url:
            clients = Clients(url, files.clean[0])
            first = hold(held, url, clients, depth=1)
            later = clients.send(3)
            time.sleep(0.3)
            assert not any(f.done() for f in later)
            held.gate.set()
            assert [f.result().status_code for f in (*first, *later)] == [200] * 4
            clients.close()

    def test_block_waits_no_longer_than_the_deadline(self, files: Files, held: Behaviour) -> None:
        settings = ("limits.queue=0", "policy.on_overload=block", "limits.deadline_ms=2000")
        with running(small_config(files, *settings)) as url:
            clients = Clients(url, files.clean[0])
            hold(held, url, clients, depth=1)
            assert predict(url, files.clean[0]).status_code == 429
            held.gate.set()
            clients.close()


class TestDeadline:
    def test_fail_closed_gives_up(self, files: Files, held: Behaviour) -> None:
        with running(small_config(files, "limits.deadline_ms=500")) as url:
            held.gate.clear()
            answer = predict(url, files.clean[0])  # comes while the guard is held
            held.gate.set()
        assert answer.status_code == 504

    def test_what_waits_until_its_deadline_is_shed(self, files: Files, held: Behaviour) -> None:
        """It was let in, since nothing was known yet of how long a run takes."""
        with running(small_config(files, "limits.deadline_ms=2000")) as url:
            clients = Clients(url, files.clean[0])
            begun = hold(held, url, clients, depth=1)[0]
            waiting = predict(url, files.clean[1])
            assert begun.result().status_code == 504
            held.gate.set()
            clients.close()
        assert waiting.status_code == 429
        assert int(waiting.headers["retry-after"]) >= 1

    def test_a_run_that_was_given_up_is_counted_until_it_ends(
        self, files: Files, held: Behaviour
    ) -> None:
        with running(small_config(files, "limits.deadline_ms=2000")) as url:
            held.gate.clear()
            assert predict(url, files.clean[0]).status_code == 504
            assert gauge(url, "lrpguard_queue_depth") == 1
            held.gate.set()
            wait_until(lambda: gauge(url, "lrpguard_queue_depth") == 0)

    def test_fail_open_answers_unguarded_in_time(self, files: Files, held: Behaviour) -> None:
        settings = ("limits.deadline_ms=2000", "policy.on_failure=fail_open")
        with running(small_config(files, *settings)) as url:
            held.gate.clear()
            answers = []

            def answered() -> bool:  # a tenth of 2 s can be too little on a busy machine
                answers.append(predict(url, files.clean[0]))
                return bool(answers[-1].status_code == 200)

            wait_until(answered, seconds=60)
            held.gate.set()
        assert answers[-1].json()["reason"] == "deadline"
        assert {answer.status_code for answer in answers[:-1]} <= {429, 504}

    def test_a_jump_of_the_wall_clock_moves_no_deadline(
        self, files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        audit = f"audit.folder={tmp_path / 'audit'}"
        real = time.time
        with running(small_config(files, audit)) as url:
            for jump in (0.0, 86_400.0, -86_400.0):
                monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
                assert predict(url, files.clean[0]).status_code == 200
            monkeypatch.undo()
        lines = list(records(tmp_path / "audit", key=b""))
        assert [line["seq"] for line in lines] == [1, 2, 3]
        days = [line["time"][:10] for line in lines]
        assert days[2] < days[0] < days[1]


class TestShadow:
    def test_the_answer_is_the_bare_models_and_the_verdict_is_recorded(
        self, files: Files, guard: Guard, tmp_path: Path
    ) -> None:
        audit = f"audit.folder={tmp_path / 'audit'}"
        with running(small_config(files, "policy.shadow=true", audit)) as url:
            answer = predict(url, files.odd[0]).json()
        assert (answer["unguarded"], answer["reason"]) == (True, "shadow")
        assert answer["flagged"] is False
        (line,) = records(tmp_path / "audit", key=b"")
        assert (line["flagged"], line["shadow"]) == (True, True)
        assert line["score"] == float(guard(files.odd).score[0])


def leave_while_waiting(url: str, image: Any, *, depth: int) -> None:
    """Send a request; leave as soon as that many runs wait or run."""
    body = png(image)
    host, port = url.removeprefix("http://").split(":")
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: gauge(url, "lrpguard_queue_depth") == depth)


class TestLeavingClients:
    def test_a_run_whose_client_has_left_is_not_begun(
        self, files: Files, held: Behaviour, tmp_path: Path
    ) -> None:
        audit = f"audit.folder={tmp_path / 'audit'}"
        with running(small_config(files, audit)) as url:
            clients = Clients(url, files.clean[0])
            first = hold(held, url, clients, depth=1)
            leave_while_waiting(url, files.clean[1], depth=2)
            wait_until(lambda: gauge(url, "lrpguard_inflight") == 1)
            held.gate.set()
            assert first[0].result().status_code == 200
            wait_until(lambda: gauge(url, "lrpguard_queue_depth") == 0)
            assert predict(url, files.clean[2]).status_code == 200
            clients.close()
        assert len(list(records(tmp_path / "audit", key=b""))) == 2
