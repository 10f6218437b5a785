from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lrpguard
from lrpguard.cli.explain import find_class
from lrpguard.demo.digits import load_digits_model
from lrpguard.errors import ConfigurationError
from lrpguard.figures import DPI, RELEVANCE_SIZE
from lrpguard.loading import Preprocessing, load_data

MODEL = "lrpguard.demo.digits:load_digits_model"

Run = Callable[..., Any]


def explain(run: Run, data: Path, *options: str | Path) -> Any:
    return run("explain", "--model", MODEL, "--data", data, "--n", "4", *options)


def test_each_image_gets_a_picture(run: Run, some_digits: Path, tmp_path: Path) -> None:
    (some_digits / "deep").mkdir()
    (some_digits / "deep" / "000.png").write_bytes((some_digits / "000.png").read_bytes())
    out = tmp_path / "pictures"
    done = explain(run, some_digits, "--out", out)
    assert done.code == 0
    names = sorted(file.name for file in out.iterdir())
    expected = ["000-relevance-2.png", "000-relevance.png", "001-relevance.png"]
    assert names == [*expected, "002-relevance.png"]
    for file in out.iterdir():
        with Image.open(file) as picture:
            assert picture.size == tuple(round(DPI * side) for side in RELEVANCE_SIZE)
            low, high = picture.convert("L").getextrema()
            assert (low, high) == (0, 255)
    assert len(done.out.splitlines()) == 4
    assert f"wrote {out / '001-relevance.png'}" in done.out


def test_the_numbers_are_those_of_explain(run: Run, some_digits: Path) -> None:
    done = explain(run, some_digits, "--json", "--sigma", "0.1", "--seed", "7")
    assert (done.code, done.err) == (0, "")
    image = load_data(some_digits, preprocessing=Preprocessing(channels=1))[1].image
    assert image is not None
    evidence = lrpguard.explain(load_digits_model(), image[None], n=4, sigma=0.1, seed=7)
    found = json.loads(done.out.splitlines()[1])
    assert found["name"] == "001.png"
    assert found["label"] == found["predicted"] == int(evidence.label)
    assert found["logit"] == pytest.approx(float(evidence.explained_logit), rel=1e-5)
    assert found["relevance_sum"] == pytest.approx(float(evidence.relevance_mean.sum()), rel=1e-4)
    variance = float(evidence.relevance_variance.mean())
    assert found["mean_variance"] == pytest.approx(variance, rel=1e-4)
    assert 0 <= found["conservation_residual"] < 1e-10
    assert found["conservation_precision"] == "float64"
    assert found["file"] is None


def test_another_class_can_be_explained(run: Run, some_digits: Path) -> None:
    done = explain(run, some_digits / "000.png", "--json", "--class", "3")
    found = json.loads(done.out)
    assert found["label"] == 3
    assert found["predicted"] == 0
    assert found["logit"] < 0
    refused = explain(run, some_digits / "000.png", "--json", "--class", "10")
    assert refused.code == 2
    assert "the model has classes 0 … 9" in refused.err


def test_a_class_is_found_by_name() -> None:
    names = ("tench", "Egyptian cat", "crane", "crane")
    assert find_class(None, names) is None
    assert find_class("2", None) == 2
    assert find_class("egyptian CAT", names) == 1
    with pytest.raises(ConfigurationError, match=r"several classes, \[2, 3\]"):
        find_class("crane", names)
    with pytest.raises(ConfigurationError, match="Close to it: tench"):
        find_class("tensh", names)
    with pytest.raises(ConfigurationError, match="names of this model's classes are not known"):
        find_class("tench", None)


def test_a_broken_image_is_told_and_the_rest_goes_on(
    run: Run, some_digits: Path, tmp_path: Path
) -> None:
    (some_digits / "001.png").write_bytes(b"broken")
    done = explain(run, some_digits, "--out", tmp_path / "pictures")
    assert done.code == 1
    assert "001.png: broken: cannot decode the image" in done.out
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_without_out_and_json_there_is_nothing_to_do(run: Run, some_digits: Path) -> None:
    done = explain(run, some_digits)
    assert done.code == 2
    assert "give --out DIR for pictures, --json for numbers, or both" in done.err


def test_without_matplotlib_the_error_names_the_extra(
    run: Run, some_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = explain(run, some_digits, "--out", tmp_path / "pictures")
    assert done.code == 1
    assert done.err.startswith("error: MissingDependencyError: figures need matplotlib")
    assert "pip install 'lrpguard[plots]'" in done.err
    assert explain(run, some_digits, "--json").code == 0  # numbers need none
