"""``lrpguard attack``: from the command line to the card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lrpguard.cli import attack
from lrpguard.demo.digits import load_digit_splits
from tests.cli.conftest import MODEL, Outcome


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = load_digit_splits().calibration
    path = tmp_path_factory.mktemp("attacked") / "digits.npz"
    np.savez(path, images=digits.images[:240].numpy(), labels=digits.labels[:240].numpy())
    return path


def attacked(data: Path, out: Path, *more: str | Path) -> Outcome:
    sizes = ("--test", "6", "--levels", "51", "--quick", "--quiet", "--budget", "0.05")
    return Outcome("attack", "--model", MODEL, "--data", data, "--out", out, *sizes, *more)


def test_calibrates_attacks_and_writes_a_card(data: Path, tmp_path: Path) -> None:
    noise = ("--n", "4", "--sigma", "0.1", "--calibration-pool", "220")
    done = attacked(data, tmp_path / "first", *noise, "--other-model", MODEL)

    assert done.code == 0, done.err
    assert "| PGD | static | 51/255 | 20 |" in done.out
    assert "### Left out, the time being spent" in done.out
    card = json.loads((tmp_path / "first" / "card.json").read_text())
    assert card["kind"] == "red_team"
    assert card["data"] == "digits.npz"
    assert card["rows"][0]["fooled"][1] == card["right"] <= 6

    calibration = tmp_path / "first" / "guard.safetensors"
    again = attacked(data, tmp_path / "again", "--calibration", calibration, "--json")
    assert again.code == 0, again.err
    second = json.loads(again.out)
    assert second["calibration"] == card["calibration"]
    assert second["rows"][0]["sr_5%"] == card["rows"][0]["sr_5%"]
    assert attacked(data, tmp_path, "--calibration", calibration, "--n", "4").code == 2


def test_wrong_options_are_usage_errors(data: Path, tmp_path: Path) -> None:
    wrong = attacked(data, tmp_path, "--levels", "8/255")
    assert wrong.code == 2
    assert "whole levels of 255" in wrong.err
    assert attacked(data, tmp_path, "--levels", "0").code == 2
    assert attacked(data, tmp_path, "--budget", "0").code == 2


def test_a_key_for_repetition_differs_by_seed() -> None:
    assert attack._key(0) == attack._key(0) != attack._key(1)
