"""The folder of parts: whole files or none, and of one job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lrpguard.cluster.parts import JOB_FILE, PartFolder
from lrpguard.errors import ConfigurationError

parquet = pytest.importorskip("pyarrow.parquet")


def record(index: int, status: str = "clean", **values: Any) -> dict[str, Any]:
    return {"index": index, "name": f"{index}.png", "status": status, **values}


@pytest.fixture
def folder(tmp_path: Path) -> PartFolder:
    folder = PartFolder(tmp_path / "parts")
    folder.begin({"model": "a", "images": 3})
    return folder


def test_a_part_is_read_back_with_its_counts(folder: PartFolder) -> None:
    rows = [record(0, p_value=0.1, label=7), record(1), record(2, "broken", error="no image")]
    assert folder.counts(0) is None
    assert folder.write(0, rows) == folder.counts(0) == {"clean": 2, "broken": 1}
    found = parquet.read_table(folder.path).to_pylist()
    assert [{k: v for k, v in row.items() if v is not None} for row in found] == rows


def test_a_part_that_is_cut_off_is_not_done(folder: PartFolder) -> None:
    folder.write(1, [record(0)])
    (file,) = folder.path.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    assert folder.counts(1) is None


def test_a_write_that_fails_leaves_no_part(folder: PartFolder) -> None:
    with pytest.raises(Exception, match=r"convert|int"):
        folder.write(0, [record(0, label="seven")])
    assert folder.counts(0) is None
    assert not list(folder.path.glob("*.parquet"))


def test_leftovers_of_killed_workers_are_no_parts_and_are_tidied(folder: PartFolder) -> None:
    folder.write(0, [record(0)])
    (folder.path / ".part-abc.tmp").write_bytes(b"PAR1")
    assert len(parquet.read_table(folder.path)) == 1
    folder.tidy()
    assert sorted(file.name for file in folder.path.iterdir()) == [JOB_FILE, "part-000000.parquet"]


def test_the_same_job_goes_on_and_another_is_refused(folder: PartFolder) -> None:
    folder.begin({"model": "a", "images": 3})
    with pytest.raises(ConfigurationError, match="another job: images, model differ\\."):
        folder.begin({"model": "b", "images": 4})
    assert json.loads((folder.path / JOB_FILE).read_text()) == {"model": "a", "images": 3}
    (folder.path / JOB_FILE).write_text("{")
    with pytest.raises(ConfigurationError, match="another job"):
        folder.begin({"model": "a", "images": 3})


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigurationError, match="holds files, but not those of a job"):
        PartFolder(tmp_path).begin({"model": "a"})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
