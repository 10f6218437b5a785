"""Digits as PNG files, a calibration of them, and a way to run a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from lrpguard.cli import app
from lrpguard.demo.digits import load_digit_splits

MODEL = "lrpguard.demo.digits:load_digits_model"


class Outcome:
    """What a command printed, and its exit code; an exception that it let through is raised."""

    def __init__(self, *arguments: str | Path, environment: dict[str, str] | None = None) -> None:
        result = CliRunner().invoke(
            app, [str(argument) for argument in arguments], env=environment or {}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code = result.exit_code
        self.out = result.stdout
        self.err = result.stderr


@pytest.fixture(scope="session")
def run() -> Callable[..., Outcome]:
    return Outcome


def write_digits(folder: Path, images: Tensor) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        pixels = (image[0] * 255).round().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def clean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits of the calibration split."""
    images = load_digit_splits().calibration.images[:40]
    return write_digits(tmp_path_factory.mktemp("data") / "clean", images)


@pytest.fixture
def some_digits(tmp_path: Path) -> Path:
    """Three digits of the test split, of the tester's own."""
    return write_digits(tmp_path / "digits", load_digit_splits().test.images[:3])


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory, clean_folder: Path) -> Path:
    """A calibration of the paper's detector on the forty digits."""
    out = tmp_path_factory.mktemp("calibration") / "digits.safetensors"
    arguments = ("--detector", "paper", "--n", "4", "--sigma", "0.1", "--quiet", "--out", out)
    done = Outcome("calibrate", "--model", MODEL, "--data", clean_folder, *arguments)
    assert done.code == 0, done.err
    return out
