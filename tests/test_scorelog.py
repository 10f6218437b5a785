"""The checkpoint file: what survives, what is refused, and that nothing else is destroyed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lrpguard.errors import CalibrationError, CalibrationMismatchError
from lrpguard.scorelog import ScoreLog

HEADER = {"version": "1", "n": 4, "composite": {"name": "epsilon", "parameters": {"e": 1e-9}}}
SCORES = {"aa": [0.1, -2.0], "bb": [1e-300, 1 / 3], "cc": [5.0, 6.0]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of three images."""
    path = tmp_path / "log.jsonl"
    with ScoreLog(path, HEADER) as log:
        log.add(SCORES)
    return path


def read(path: Path) -> dict[str, list[float]]:
    with ScoreLog(path, HEADER) as log:
        return log.scores


def test_keeps_scores_to_the_last_bit(path: Path) -> None:
    assert read(path) == SCORES


def test_is_one_line_an_image_after_the_header(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"run": HEADER}
    assert lines[1:] == [{"key": digest, "scores": values} for digest, values in SCORES.items()]


def test_writes_as_it_goes(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path / "log.jsonl", HEADER)
    for digest, values in SCORES.items():
        log.add({digest: values})
        assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["key"] == digest
    log.close()
    log.close()  # twice does no harm


def test_goes_on_where_it_stopped(path: Path) -> None:
    with ScoreLog(path, HEADER) as log:
        assert log.scores == SCORES
        log.add({"dd": [7.0, 8.0]})
    assert read(path) == SCORES | {"dd": [7.0, 8.0]}
    assert len(path.read_text().splitlines()) == 5


def test_cut_off_anywhere_keeps_the_whole_lines(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = read(path)
        lines = max(whole[:length].count(b"\n") - 1, 0)
        assert kept == dict(list(SCORES.items())[:lines])
        with ScoreLog(path, HEADER) as log:  # and can be gone on with
            log.add({d: v for d, v in SCORES.items() if d not in log.scores})
        assert read(path) == SCORES
        assert path.read_bytes() == whole


def test_closes_and_keeps_after_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def interrupted() -> None:
        with ScoreLog(path, HEADER) as log:
            log.add({"aa": SCORES["aa"]})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read(path) == {"aa": SCORES["aa"]}


def test_damage_in_the_middle_drops_what_follows(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + b"\0garbage\n" + lines[3])
    assert read(path) == {"aa": SCORES["aa"]}


def test_nan_survives_to_be_refused_later(tmp_path: Path) -> None:
    with ScoreLog(tmp_path / "log", HEADER) as log:
        log.add({"aa": [math.nan, math.inf]})
    values = read(tmp_path / "log")["aa"]
    assert math.isnan(values[0])
    assert values[1] == math.inf


@pytest.mark.parametrize("change", [{"n": 5}, {"version": "2"}, {"extra": 1}])
def test_another_run_is_refused_and_its_file_left_alone(
    path: Path, change: dict[str, object]
) -> None:
    before = path.read_bytes()
    with pytest.raises(CalibrationMismatchError, match=r"log\.jsonl.*name another file"):
        ScoreLog(path, HEADER | change)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"file,label\ncat.png,3\n",
        b'{\n  "labels": {}\n}\n',
        b"[1, 2]\n",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"no end of line",
    ],
)
def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(CalibrationError):
        ScoreLog(path, HEADER)
    assert path.read_bytes() == content


def test_a_json_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious.jsonl"
    path.write_text('{"key": "aa", "scores": [1.0]}\n')
    with pytest.raises(CalibrationMismatchError):
        ScoreLog(path, HEADER)
    assert path.read_text() == '{"key": "aa", "scores": [1.0]}\n'


def test_an_empty_file_is_a_new_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.touch()
    assert read(path) == {}
    assert json.loads(path.read_text()) == {"run": HEADER}


def test_without_a_file_keeps_scores_in_memory() -> None:
    with ScoreLog(None, HEADER) as log:
        log.add(SCORES)
        assert log.scores == SCORES
