from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lrpguard import Calibration, Guard, Smoothing
from lrpguard.demo.digits import load_digits_model
from lrpguard.loading import Preprocessing, load_data
from tests.support import times

MODEL = "lrpguard.demo.digits:load_digits_model"
PAPER = ("--detector", "paper", "--n", "4", "--sigma", "0.1")

Run = Callable[..., Any]


def read_all(folder: Path) -> torch.Tensor:
    source = load_data(folder, preprocessing=Preprocessing(channels=1))
    return torch.stack([item.image for item in source if item.image is not None])


def test_the_file_is_the_guards_own_calibration(clean_folder: Path, calibration: Path) -> None:
    found = Calibration.load(calibration)
    guard = Guard(load_digits_model(), smoothing=Smoothing(n=4, sigma=0.1))
    expected = guard.calibrate([read_all(clean_folder)], alpha=0.05, detector="paper")
    assert torch.allclose(found.anomalies, expected.anomalies, rtol=1e-5)
    assert (found.n, found.fit_n, found.alpha) == (40, 0, 0.05)
    assert found.fingerprint == expected.fingerprint
    assert not list(calibration.parent.glob("*.partial.jsonl"))


def test_the_report_for_people(run: Run, clean_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.safetensors"
    done = run("calibrate", "--model", MODEL, "--data", clean_folder, *PAPER, "--out", out)
    assert done.code == 0
    low, high = (f"{100 * end:.1f}" for end in Calibration.load(out).fpr_band())
    assert f"alpha      0.05: {low} to {high} % of clean images" in done.out
    assert "images     40 calibrate, 1 x 8 x 8 pixels" in done.out
    assert "copies keep their label" in done.out
    assert f"wrote      {out}" in done.out
    assert "3/3" in done.err  # the progress bar: 40 images in batches of 16


def test_the_report_for_programs(run: Run, clean_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.safetensors"
    done = run(
        "calibrate", "--model", MODEL, "--data", clean_folder, *PAPER, "--out", out, "--json"
    )
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    saved = Calibration.load(out)
    assert report["file"] == str(out)
    assert report["threshold"] == saved.threshold
    assert report["fpr_band_95"] == list(saved.fpr_band())
    assert (report["n_fit"], report["n_calibration"], report["copies"]) == (0, 40, 4)
    guard = Guard(load_digits_model(), smoothing=saved.smoothing)
    evidence = guard.evidence(read_all(clean_folder))
    kept = (evidence.noisy_logits.argmax(2) == evidence.label[:, None]).double().mean()
    assert report["label_kept"] == pytest.approx(float(kept))


def test_a_broken_image_is_left_out_and_told(run: Run, clean_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for file in sorted(clean_folder.iterdir())[:30]:
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "data" / "005.png").write_bytes(b"broken")
    out = tmp_path / "c.safetensors"
    done = run("calibrate", "--model", MODEL, "--data", tmp_path / "data", *PAPER, "--out", out)
    assert done.code == 1
    assert "skipped 005.png: cannot decode the image" in done.err
    assert "1 of the files could not be read" in done.out
    assert Calibration.load(out).n == 29


def test_too_few_images_are_refused_and_their_scores_kept(
    run: Run, clean_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.safetensors"
    command = ("calibrate", "--model", MODEL, "--data", clean_folder, *PAPER, "--out", out)
    refused = run(*command, "--alpha", "0.01", "--quiet")
    assert refused.code == 1
    assert "error: CalibrationSizeError: 40 calibration images for alpha = 0.01" in refused.err
    assert not out.exists()

    again = run(*command, "--alpha", "0.05", "--quiet")
    assert again.code == 0
    assert again.err == f"resuming: {out}.partial.jsonl holds the scores of 40 images.\n"
    assert not Path(f"{out}.partial.jsonl").exists()


def test_an_impossible_alpha_is_a_usage_error(run: Run, clean_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.safetensors"
    command = ("calibrate", "--model", MODEL, "--data", clean_folder, "--out", out)
    assert run(*command, "--alpha", "2").code == 2
    assert run(*command, "--detector", "oracle").code == 2
    assert list(tmp_path.iterdir()) == []


def test_images_of_several_sizes_are_refused_with_the_option_that_mends_it(
    run: Run, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i in range(24):
        Image.new("L", (8, 8 + i % 2), 10 * i).save(mixed / f"{i}.png")
    out = tmp_path / "c.safetensors"
    command = ("calibrate", "--model", MODEL, "--data", mixed, *PAPER, "--quiet", "--out", out)
    refused = run(*command)
    assert refused.code == 1
    assert "On the command line: --image-size H,W." in refused.err

    before = run("calibrate", "--model", MODEL, "--data", mixed, "--quiet", "--out", out)
    assert before.code == 1  # before the noise is chosen, too
    assert "[1, 8, 8] and [1, 9, 8]" in before.err
    assert "--image-size H,W" in before.err

    Path(f"{out}.partial.jsonl").unlink()
    mended = run(*command, "--image-size", "8,8")
    assert mended.code == 0
    assert Calibration.load(out).image_shape == (1, 8, 8)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is sent as on POSIX")
def test_an_interrupted_run_goes_on_where_it_stopped(
    run: Run, clean_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.safetensors"
    partial = Path(f"{out}.partial.jsonl")
    settings = ("--detector", "paper", "--n", "300", "--sigma", "0.1", "--batch-size", "2")
    command = ["calibrate", "--model", MODEL, "--data", str(clean_folder), *settings]
    process = subprocess.Popen(
        [sys.executable, "-m", "lrpguard", *command, "--out", str(out), "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell that runs the tests in the background lets them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for(lambda: partial.exists() and partial.read_bytes().count(b"\n") > 4, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    scored = partial.read_bytes().count(b"\n") - 1
    assert process.returncode == 130
    assert told.startswith(f"interrupted. The scores of {scored} images are kept in {partial}: run")
    assert told.count("\n") == 1
    assert 4 <= scored < 40
    assert not out.exists()

    resumed = run(*command, "--out", out, "--quiet")
    assert resumed.code == 0, resumed.err
    assert resumed.err == f"resuming: {partial} holds the scores of {scored} images.\n"
    whole = tmp_path / "whole.safetensors"
    assert run(*command, "--out", whole, "--quiet").code == 0
    assert torch.equal(Calibration.load(out).anomalies, Calibration.load(whole).anomalies)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds, for at most a minute."""
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def test_looks_are_calibrated_where_they_are_asked_for(
    run: Run, clean_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.safetensors"
    noise = ("--detector", "paper", "--n", "20", "--sigma", "0.1")
    options = ("--model", MODEL, "--data", clean_folder, *noise, "--looks", "--out", out)
    done = run("calibrate", *options)
    assert done.code == 0
    assert "looks at [2, 4, 8, 20]" in done.out
    assert Calibration.load(out).copies == (2, 4, 8, 20)


def test_the_fastest_way_is_kept_to_where_it_is_asked_for(
    run: Run, clean_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c.safetensors"
    command = ("calibrate", "--model", MODEL, "--data", clean_folder, *PAPER, "--prepare")
    times(monkeypatch, 0.5)
    done = run(*command, "--out", out)
    assert done.code == 0
    assert "on cpu: channels_last, at most" in done.err
    assert "way        channels_last, at most" in done.out
    assert Calibration.load(out).smoothing.way.memory_format == "channels_last"


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_a_run_that_goes_on_keeps_to_its_way(
    run: Run, clean_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    out = tmp_path / "c.safetensors"
    partial = Path(f"{out}.partial.jsonl")
    command = ("calibrate", "--model", MODEL, "--data", clean_folder, *PAPER, "--prepare")
    times(monkeypatch, 0.5)
    assert run(*command, "--alpha", "0.01", "--out", out).code == 1  # too few images
    times(monkeypatch, 2.0)
    if broken:
        partial.write_text("{broken\n{}\n", encoding="utf-8")
        refused = run(*command, "--out", out)
        assert refused.code == 1
        assert "Traceback" not in refused.err
        return
    done = run(*command, "--out", out)
    assert done.code == 0, done.err
    assert "holds the scores of 40 images" in done.err
    assert Calibration.load(out).smoothing.way.memory_format == "channels_last"
