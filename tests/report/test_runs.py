"""What a path holds, and what is said where it holds something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lrpguard.errors import AuditError, CalibrationFileError, EvaluationError, LoadingError
from lrpguard.report.runs import (
    AuditRun,
    EvaluationRun,
    RedTeamRun,
    read_run,
)
from lrpguard.serving.audit import AuditTrail
from lrpguard.serving.chain import chain_key


def copied(evaluation: Path, folder: Path) -> Path:
    copy = folder / "copy"
    copy.mkdir()
    for name in ("card.json", "rows.jsonl"):
        shutil.copy(evaluation / name, copy)
    return copy


def test_an_evaluation_with_its_rows(run: EvaluationRun) -> None:
    assert run.judged is not None
    assert [attack.name for attack in run.judged.attacks] == list(run.card["results"]["attacks"])
    for attack in run.judged.attacks:
        found = run.card["results"]["attacks"][attack.name]
        assert int(attack.fooled.sum()) == found["success"]["successes"]
    assert run.judged.indices == tuple(run.card["splits"]["test"]["indices"])


def test_rows_of_other_attacks_do_not_count(evaluation: Path, tmp_path: Path) -> None:
    copy = copied(evaluation, tmp_path)
    with (copy / "rows.jsonl").open("a") as file:
        for line in (evaluation / "rows.jsonl").read_text().splitlines()[1:]:
            row = json.loads(line)
            row["key"] = f"other-{row['key']}"
            file.write(json.dumps(row) + "\n")
    found = read_run(copy)
    assert isinstance(found, EvaluationRun)
    assert found.judged is not None
    assert len(found.judged.clean.labels) == 30


def test_a_card_alone(evaluation: Path, tmp_path: Path) -> None:
    card = tmp_path / "evaluation_digits.json"
    shutil.copy(evaluation / "card.json", card)
    shutil.copy(evaluation / "rows.jsonl", tmp_path)  # not its own
    found = read_run(card)
    assert isinstance(found, EvaluationRun)
    assert found.judged is None


def test_rows_that_are_missing(evaluation: Path, tmp_path: Path) -> None:
    copy = copied(evaluation, tmp_path)
    lines = (copy / "rows.jsonl").read_text().splitlines()
    (copy / "rows.jsonl").write_text("\n".join(lines[:-40]) + "\n")
    with pytest.raises(LoadingError, match=r"rows of patch; its card counts .* again"):
        read_run(copy)
    (copy / "rows.jsonl").write_text(lines[0] + "\n")
    with pytest.raises(EvaluationError):
        read_run(copy)


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"key": 3}', '{"run": 1}'])
def test_rows_that_are_none(evaluation: Path, tmp_path: Path, line: str) -> None:
    copy = copied(evaluation, tmp_path)
    lines = (copy / "rows.jsonl").read_text().splitlines()
    lines[0 if "run" in line else 5] = line
    (copy / "rows.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(LoadingError, match="is no row"):
        read_run(copy)


def test_rows_of_other_images(evaluation: Path, tmp_path: Path) -> None:
    copy = copied(evaluation, tmp_path)
    card = json.loads((copy / "card.json").read_text())
    card["splits"]["test"]["digest"] = "another"
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(LoadingError, match="other images"):
        read_run(copy)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("card.json", "{", "cannot be read"),
        ("card.json", "[" * 100_000, "cannot be read"),
        ("card.json", "[]", "its kind is None"),
        ("card.json", '{"kind": "stopping"}', "its kind is 'stopping'"),
        ("card.json", '{"kind": "evaluation", "schema": 99}', "schema 2"),
        ("notes.txt", "", "is not understood"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(LoadingError, match=said):
        read_run(path)


def test_other_places(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match="holds neither"):
        read_run(tmp_path)
    with pytest.raises(LoadingError, match="no file or folder"):
        read_run(tmp_path / "missing")
    (tmp_path / "x.safetensors").write_text("no calibration")
    with pytest.raises(CalibrationFileError):
        read_run(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "card",
    [
        {"kind": "red_team", "rows": []},
        {"rows": [{"attack": "PGD", "knows": "static", "sr_5%": [1, 2]}]},
    ],
)
def test_a_red_team(tmp_path: Path, card: dict[str, Any]) -> None:
    (tmp_path / "red.json").write_text(json.dumps(card))
    assert isinstance(read_run(tmp_path / "red.json"), RedTeamRun)


def test_an_audit_trail(tmp_path: Path) -> None:
    key = chain_key(b"k" * 32)
    folder = tmp_path / "audit"
    trail = AuditTrail(folder, fsync="never", rotate_bytes=10**6, key=key)
    trail.append([{"event": "verdict", "time": "now"}, {"event": "monitor"}])
    trail.close()
    found = read_run(folder, key=key)
    assert isinstance(found, AuditRun)
    assert (found.keyed, found.chain.head.seq, len(found.records)) == (True, 2, 2)
    with pytest.raises(AuditError, match="another key"):
        read_run(folder)
    (folder / "audit-00000001.jsonl").write_text("")
    with pytest.raises(AuditError, match="nothing to report on"):
        read_run(folder)
