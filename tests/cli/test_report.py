"""``lrpguard report``: from the command line to the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lrpguard.demo.digits import load_digit_splits
from tests.cli.conftest import MODEL, Outcome


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = load_digit_splits().calibration
    path = tmp_path_factory.mktemp("labelled") / "digits.npz"
    np.savez(path, images=digits.images[:250].numpy(), labels=digits.labels[:250].numpy())
    return path


@pytest.fixture(scope="module")
def evaluation(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    done = Outcome(
        *("evaluate", "--model", MODEL, "--data", data, "--out", out, "--cache", out / "cache"),
        *("--calibration-pool", "220", "--test", "20", "--n", "4", "--sigma", "0.1", "--quiet"),
        *("--attacks", "pgd_8_10,deepfool"),
    )
    assert done.code == 0, done.err
    return out


def test_a_page_with_pictures(data: Path, evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = Outcome(
        *("report", evaluation, "--out", out, "--json", "--model", MODEL, "--data", data),
        *("--cache", evaluation / "cache"),
    )
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["cases"] > 0
    assert record["file"] == str(out)
    page = out.read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') >= 3 * record["cases"]
    assert str(tmp_path) not in page


def test_a_page_without_pictures(evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = Outcome("report", evaluation, "--out", out, "--requests-per-day", "777")
    assert (done.code, done.out) == (0, f"wrote {out}\n")
    assert "777 requests a day" in out.read_text(encoding="utf-8")


def test_a_calibration(calibration: Path, tmp_path: Path) -> None:
    done = Outcome("report", calibration, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "What is usual for clean images" in (tmp_path / "page.html").read_text()


def test_pictures_of_other_images_or_models_are_refused(
    data: Path, evaluation: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.npz"
    digits = load_digit_splits().test
    np.savez(other, images=digits.images[:300].numpy(), labels=digits.labels[:300].numpy())
    out = ("--out", tmp_path / "page.html")
    done = Outcome("report", evaluation, *out, "--model", MODEL, "--data", other)
    assert done.code == 2
    assert "--data holds other images" in done.err
    odd = ("--model", MODEL, "--mean", "0.5", "--std", "0.5")
    done = Outcome("report", evaluation, *out, *odd, "--data", data)
    assert done.code == 2
    assert "--model is not the model of the evaluation" in done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--model", MODEL), "--data and --model belong together"),
        (("--model", MODEL, "--data", "x"), "for the folder of an evaluation"),
        (("--prevalence", "2"), "--prevalence 0.0001"),
        (("--out", "missing/page.html"), "there is no folder"),
    ],
)
def test_wrong_options(calibration: Path, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    out = () if "--out" in more else ("--out", tmp_path / "page.html")
    done = Outcome("report", calibration, *out, *more)
    assert done.code == 2
    assert said in done.err
