"""The load beyond the capacity, for as long as CI has time for, and its checks."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from scripts import soak

GOOD: dict[str, object] = {
    "statuses": {"200": 50, "429": 50},
    "lost_audit_lines": 0,
    "deadline_ms": 2000,
    "admitted_p99_ms": 100.0,
    "memory_first_mib": 300.0,
    "memory_last_mib": 310.0,
}


def test_a_minute_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Where other work lets up after the capacity was measured, thrice that may be no overload.

    Then nothing is shed, and all else must hold all the same.
    """
    load = ["--seconds", "60", "--times", "3", "--images", "160", "--deadline-ms", "20000"]
    soak.main(["load", *load])
    figures = json.loads(capsys.readouterr().out)
    assert set(figures["failed"]) <= {"nothing was shed: no overload"}, figures
    assert figures["requests"] == int(60 * figures["offered_per_second"])
    assert sum(figures["statuses"].values()) == figures["requests"]
    assert figures["statuses"]["200"] > 0


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"statuses": {"200": 9, "429": 9, "0": 1}}, "neither answered nor shed"),
        ({"statuses": {"200": 9, "429": 9, "500": 1}}, "neither answered nor shed"),
        ({"statuses": {"200": 9}}, "nothing was shed: no overload"),
        ({"lost_audit_lines": 1}, "audit lines lost"),
        ({"admitted_p99_ms": 1e5}, "p99 above the deadline"),
        ({"memory_last_mib": 340.0}, "memory grows"),
    ],
)
def test_each_check_can_fail(change: dict[str, object], failure: str) -> None:
    assert soak.failures(GOOD) == []
    assert soak.failures(GOOD | change) == [failure]
