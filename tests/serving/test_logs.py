"""Logs: one JSON object a line, whatever stands in it."""

from __future__ import annotations

import json
import logging

from lrpguard.serving.logs import JsonFormatter


def formatted(message: str, **extra: object) -> dict[str, object]:
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": message, **extra})
    text = JsonFormatter().format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_extras_stand_beside_the_message() -> None:
    entry = formatted("request", request_id="a", stages_ms={"guard": 1.5})
    assert entry["message"] == "request"
    assert (entry["request_id"], entry["stages_ms"]) == ("a", {"guard": 1.5})
    assert entry["level"] == "info"


def test_a_line_break_cannot_forge_an_entry() -> None:
    assert formatted('x"}\n{"message": "forged')["message"] == 'x"}\n{"message": "forged'


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("inside")
    except ValueError as error:
        entry = formatted("failed", exc_info=(type(error), error, error.__traceback__))
    assert "ValueError: inside" in str(entry["traceback"])
