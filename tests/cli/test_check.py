from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lrpguard import Guard
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.loading import Preprocessing, load_data

MODEL = "lrpguard.demo.digits:load_digits_model"

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, calibration: Path) -> Path:
    """An .npz of ten digits, of which the guard flags the first three."""
    test = load_digit_splits().test
    guard = Guard(load_digits_model(), calibration=calibration, restoration=None)
    flagged = guard(test.images).flagged
    rows = torch.cat([flagged.nonzero().flatten()[:3], (~flagged).nonzero().flatten()[:7]])
    file = tmp_path_factory.mktemp("mixed") / "mixed.npz"
    np.savez(file, images=test.images[rows].numpy(), labels=test.labels[rows].numpy())
    return file


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def check(run: Run, data: Path, calibration: Path, *options: str | Path) -> Any:
    return run("check", "--model", MODEL, "--data", data, "--calibration", calibration, *options)


def test_the_records_are_the_guards_verdict(run: Run, mixed: Path, calibration: Path) -> None:
    done = check(run, mixed, calibration, "--json", "--batch-size", "4")
    assert done.code == 0
    found = records(done.out)
    source = load_data(mixed, preprocessing=Preprocessing(channels=1))
    images = torch.stack([item.image for item in source if item.image is not None])
    verdict = Guard(load_digits_model(), calibration=calibration)(images)
    assert [r["status"] for r in found] == list(verdict.status)
    assert [r["label"] for r in found] == verdict.label.tolist()
    assert [r["p_value"] for r in found] == verdict.p_value.tolist()
    assert [r["flagged"] for r in found] == verdict.flagged.tolist()
    restored = [r["restored_label"] for r in found]
    assert restored == [None if r == -1 else r for r in verdict.restored_label.tolist()]
    assert [r["true_label"] for r in found] == [item.label for item in source]
    assert [r["name"] for r in found] == [f"mixed.npz[{i}]" for i in range(10)]
    assert done.err.startswith("10 images, 3 flagged, ")
    assert done.err.endswith(" restored, 0 broken\n")


def test_lines_for_people_and_a_file_for_programs(
    run: Run, mixed: Path, calibration: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    done = check(run, mixed, calibration, "--out", out)
    assert done.code == 0
    head, *lines, summary = done.out.splitlines()
    rows = records(out.read_text())
    assert head.split() == ["image", "class", "confidence", "p-value", "status"]
    assert len(lines) == len(rows) == 10
    for line, row in zip(lines, rows, strict=True):
        name, label, confidence, p_value, status = line.split()[:5]
        assert (name, label) == (row["name"], str(row["label"]))
        assert float(confidence) == pytest.approx(row["confidence"], abs=6e-4)
        assert float(p_value) == pytest.approx(row["p_value"], abs=6e-5)
        assert status.rstrip(":") == row["status"]
    assert summary.endswith(f"wrote {out}")


def test_fail_on_flag_makes_the_exit_code(
    run: Run, mixed: Path, calibration: Path, tmp_path: Path
) -> None:
    assert check(run, mixed, calibration).code == 0
    assert check(run, mixed, calibration, "--fail-on-flag").code == 1
    with np.load(mixed) as arrays:
        np.savez(tmp_path / "quiet.npz", images=arrays["images"][3:])
    done = check(run, tmp_path / "quiet.npz", calibration, "--fail-on-flag")
    assert done.code == 0
    assert " 0 flagged" in done.out


def test_without_restoration_an_image_is_only_flagged(
    run: Run, mixed: Path, calibration: Path
) -> None:
    done = check(run, mixed, calibration, "--no-restore", "--json")
    statuses = [r["status"] for r in records(done.out)]
    assert statuses == ["flagged"] * 3 + ["clean"] * 7


def test_a_broken_file_is_told_in_its_place_and_the_rest_goes_on(
    run: Run, some_digits: Path, calibration: Path
) -> None:
    (some_digits / "001-broken.png").write_bytes(b"broken")
    (some_digits / "zzz.png").write_bytes(b"broken")
    done = check(run, some_digits, calibration, "--json")
    assert done.code == 1
    found = records(done.out)
    assert [r["name"] for r in found] == [
        "000.png",
        "001-broken.png",
        "001.png",
        "002.png",
        "zzz.png",
    ]
    assert [r["status"] == "broken" for r in found] == [False, True, False, False, True]
    assert "cannot decode the image" in found[1]["error"]
    assert found[1]["label"] is None
    assert all(set(r) == set(found[0]) for r in found)
    assert "2 broken" in done.err

    for_people = check(run, some_digits, calibration)
    assert for_people.code == 1
    assert "broken: cannot decode the image" in for_people.out.splitlines()[2]


def test_an_image_of_another_size_stops_no_other(
    run: Run, some_digits: Path, calibration: Path
) -> None:
    Image.new("L", (9, 9)).save(some_digits / "001-large.png")
    done = check(run, some_digits, calibration, "--json")
    assert done.code == 1
    found = records(done.out)
    assert [r["status"] == "broken" for r in found] == [False, True, False, False]
    assert found[1]["error"].startswith("InputShapeError: images have [C, H, W] = [1, 9, 9]")


def test_a_calibration_of_another_model_is_refused(
    run: Run, some_digits: Path, calibration: Path
) -> None:
    done = check(run, some_digits, calibration, "--mean", "0.5", "--std", "0.5")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: CalibrationMismatchError: the model's fingerprint is")


def test_a_damaged_calibration_is_refused(
    run: Run, some_digits: Path, calibration: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(calibration.read_bytes()[:-4])
    done = check(run, some_digits, damaged)
    assert done.code == 1
    assert done.err.startswith("error: CalibrationFileError:")
    assert "Traceback" not in done.err


def test_on_failure_says_whether_a_failing_guard_stops(
    run: Run, some_digits: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no more relevance")

    monkeypatch.setattr("lrpguard.guard.CopyRun", fail)
    done = check(run, some_digits, calibration, "--on-failure", "fail_open", "--json")
    assert done.code == 1
    found = records(done.out)
    assert [r["status"] for r in found] == ["unguarded"] * 3
    assert found[0]["error"] == "RuntimeError: no more relevance"
    assert found[0]["p_value"] is None
    assert "3 unguarded" in done.err
    with pytest.raises(RuntimeError, match="no more relevance"):
        check(run, some_digits, calibration, "--on-failure", "fail_closed")
