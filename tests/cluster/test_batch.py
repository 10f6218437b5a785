"""``check --engine ray`` on two nodes, whose workers and driver are killed in the middle."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpguard import Guard
from lrpguard.checking import Checker
from lrpguard.cli.options import PACKAGED_MODEL
from lrpguard.demo.digits import load_digit_splits
from lrpguard.loading import Preprocessing, load_data, load_model
from tests.cli.conftest import Outcome, write_digits
from tests.serving.conftest import ROOT, Files, wait_until
from tests.serving.models import BEHAVIOUR, FOLDER_VARIABLE, SPEC

parquet = pytest.importorskip("pyarrow.parquet")

PART_SIZE, PARTS = 3, 7


@pytest.fixture(scope="module")
def images(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nineteen digits, one flagged, and two broken files."""
    digits = load_digit_splits().test.images[:18]
    folder = write_digits(tmp_path_factory.mktemp("images") / "all", torch.cat([digits, files.odd]))
    (folder / "004-broken.png").write_bytes(b"broken")
    (folder / "zzz.png").write_bytes(b"broken")
    return folder


def arguments(files: Files, images: Path) -> list[str]:
    model = ["--model", SPEC, "--image-size", "8,8", "--device", "cpu"]
    return ["check", *model, "--data", str(images), "--calibration", str(files.calibration)]


def on_cluster(out: Path) -> list[str]:
    return ["--engine", "ray", "--workers", "2", "--part-size", str(PART_SIZE), "--out", str(out)]


@pytest.fixture(scope="module")
def expected(files: Files, images: Path) -> list[dict[str, Any]]:
    """What one process says."""
    done = Outcome(*arguments(files, images), "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert len(found) == 21
    assert {record["status"] for record in found} > {"clean", "broken"}
    return found


def written(out: Path) -> list[dict[str, Any]]:
    table = parquet.read_table(out)
    rows: list[dict[str, Any]] = table.sort_by("index").to_pylist()
    return rows


def parts(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in out.glob("*.parquet")}


def test_a_worker_killed_in_a_part_loses_nothing(
    cluster: str,
    files: Files,
    images: Path,
    expected: list[dict[str, Any]],
    behaviour_folder: Path,
    tmp_path: Path,
) -> None:
    (behaviour_folder / "kill").touch()
    out = tmp_path / "verdicts"

    done = Outcome(*arguments(files, images), *on_cluster(out))

    assert done.code == 1, done.err  # two files are broken
    assert not (behaviour_folder / "kill").exists(), "no worker was killed"
    assert written(out) == expected
    assert len(parts(out)) == PARTS
    assert sorted(file.name for file in out.iterdir() if file.suffix != ".parquet") == ["_job.json"]
    assert done.out.splitlines()[-1].startswith("21 images, ")
    assert "2 broken; wrote" in done.out

    before = parts(out)
    again = Outcome(*arguments(files, images), *on_cluster(out))
    assert (again.code, again.out.splitlines()[-1]) == (1, done.out.splitlines()[-1])
    assert parts(out) == before, "what was done is not done again"


def test_a_job_whose_driver_is_killed_goes_on_where_it_was(
    cluster: str,
    files: Files,
    images: Path,
    expected: list[dict[str, Any]],
    behaviour_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # One process's runs for all images: enough for a worker to end a part, not for two to end all.
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    BEHAVIOUR.__init__()  # type: ignore[misc]
    Outcome(*arguments(files, images))
    monkeypatch.delenv(FOLDER_VARIABLE)
    (behaviour_folder / "hold").write_text(str(BEHAVIOUR.runs * 2 * PART_SIZE // len(expected)))
    out = tmp_path / "verdicts"
    driver = subprocess.Popen(
        [sys.executable, "-m", "lrpguard", *arguments(files, images), *on_cluster(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        wait_until(lambda: len(parts(out)) > 0 or driver.poll() is not None)
    finally:
        driver.kill()
        driver.wait()
    (behaviour_folder / "hold").unlink()
    before = parts(out)
    assert 0 < len(before) < PARTS

    done = Outcome(*arguments(files, images), *on_cluster(out))

    assert done.code == 1, done.err
    assert written(out) == expected
    assert before.items() <= parts(out).items(), "what was done is not done again"


def test_a_calibration_of_another_model_is_named_by_the_worker(
    files: Files, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    from lrpguard.cluster.batch import PartJudge
    from lrpguard.cluster.parts import PartFolder

    def open_checker() -> Checker:
        loaded = load_model(PACKAGED_MODEL)  # another class than the calibrated one
        return Checker(Guard(loaded.model, calibration=files.calibration), loaded, 4)

    source = load_data(images, preprocessing=Preprocessing(channels=1, image_size=(8, 8)))
    judge = PartJudge(open_checker, PartFolder(tmp_path))
    found = judge({"part": [0], "source": [pickle.dumps(source.part(0, 3))]})
    assert found["error"][0].startswith("CalibrationMismatchError: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--no-restore"], "holds the parts of another job: restore differs."),
        (["--part-size", "4"], "part_size differs"),
        (["--device", "cuda:1"], "Ray gives each worker a GPU of its own"),
    ],
)
def test_other_settings_are_no_continuation(
    files: Files, images: Path, tmp_path: Path, changes: list[str], words: str
) -> None:
    from lrpguard.cluster.parts import PartFolder

    pytest.importorskip("ray")
    out = tmp_path / "verdicts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrpguard.cli.check_cluster.judge_parts", lambda *_, **__: iter(()))
        Outcome(*arguments(files, images), *on_cluster(out))
        done = Outcome(*arguments(files, images), *on_cluster(out), *changes)
    assert done.code == 2
    assert words in done.err
    assert PartFolder(out).counts(0) is None
