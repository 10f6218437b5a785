"""Rows in a file: kept, resumed, refused."""

from pathlib import Path

import pytest

from lrpguard.errors import ConfigurationError
from lrpguard.rowlog import RowLog


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    with RowLog(path, {"run": 1, "pair": (1, 2)}) as log:
        log.add("a", {"x": 1.5})
        log.add("b", {"x": None})

    with RowLog(path, {"run": 1, "pair": (1, 2)}) as again:
        assert again.rows == {"a": {"x": 1.5}, "b": {"x": None}}


def test_a_row_cut_off_is_dropped_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowLog(path, {}) as log:
        log.add("a", {"x": 1})
        log.add("b", {"x": 2})
    path.write_bytes(path.read_bytes()[:-4])

    with RowLog(path, {}) as log:
        assert log.rows == {"a": {"x": 1}}
        log.add("b", {"x": 3})

    with RowLog(path, {}) as log:
        assert log.rows == {"a": {"x": 1}, "b": {"x": 3}}


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowLog(path, {}) as log:
        log.add("a", {"x": 1})
        assert len(path.read_text().splitlines()) == 2


def test_the_rows_of_another_run_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowLog(path, {"seed": 0}).close()
    before = path.read_bytes()

    with pytest.raises(ConfigurationError, match="rows of another run"):
        RowLog(path, {"seed": 1})
    assert path.read_bytes() == before


def test_without_a_path_rows_stay_in_memory() -> None:
    log = RowLog(None, {})
    log.add("a", {"x": 1})

    assert log.rows == {"a": {"x": 1}}


def test_not_a_number_is_no_row(tmp_path: Path) -> None:
    with RowLog(tmp_path / "rows.jsonl", {}) as log, pytest.raises(ValueError, match="JSON"):
        log.add("a", {"x": float("nan")})
