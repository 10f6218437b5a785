"""The scripts of the paper's figures: their defaults and errors, and pictures of real images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from lrpguard.evaluation.paper.setup import load_labelled
from scripts import figure1, figure2, figure3

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LRPGUARD_DATA", ROOT.parent / "shared" / "data"))
SCRIPTS = (figure1, figure2, figure3)

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA} (set LRPGUARD_DATA)"
)


@pytest.fixture
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRPGUARD_DATA", str(DATA))


@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults_are_squeezenet_and_the_papers_copies(script: ModuleType) -> None:
    args = script.parse([])
    assert (args.model, args.n, args.sigma) == ("squeezenet1_1", 50, 0.05)
    assert args.out.parent == Path("build")


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs_from_anywhere(script: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(script.__file__), "--help"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "python scripts/figure" in found.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_data_the_error_says_what_to_give(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("LRPGUARD_DATA", raising=False)
    assert script.main(["--out", str(tmp_path / "a" / "f.png")]) == 1
    assert "LoadingError: --weights is not given" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


@needs_data
@pytest.mark.usefixtures("_data")
@pytest.mark.parametrize(
    ("script", "options"),
    [
        (figure1, ["--image", "[7]", "--colors", "seismic"]),
        (figure2, ["--images", "3"]),
        (figure3, ["--tries", "1"]),
    ],
    ids=["figure1", "figure2", "figure3"],
)
def test_a_picture_of_real_images(script: ModuleType, options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "f.png"
    assert script.main(["--model", "resnet20", "--n", "2", "--out", str(out), *options]) == 0
    with Image.open(out) as picture:
        assert min(picture.size) > 500
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert len(colours) > 1000


@needs_data
@pytest.mark.usefixtures("_data")
def test_what_cannot_be_drawn_is_a_clear_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    common = ["--model", "resnet20", "--n", "2", "--out", str(tmp_path / "f.png")]
    assert figure1.main([*common, "--image", "zebra.jpg"]) == 1
    assert "no image's name has 'zebra.jpg' in it; there are 5000" in capsys.readouterr().err
    assert figure2.main([*common, "--images", "1", "--colors", "rainbows"]) == 1
    assert "matplotlib knows no colour map 'rainbows'" in capsys.readouterr().err


@needs_data
@pytest.mark.usefixtures("_data")
def test_the_image_of_figure_1_is_the_next_best_to_the_papers_castle() -> None:
    _, data = load_labelled("squeezenet1_1")
    assert "palace" in figure1.chosen(data, None).name
    _, small = load_labelled("resnet20")
    assert figure1.chosen(small, None).index == 0
