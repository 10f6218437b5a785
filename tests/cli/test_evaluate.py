"""``lrpguard evaluate``: from the command line to the card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lrpguard.baselines import attack_free
from lrpguard.cli.evaluate import _baselines
from lrpguard.cli.evaluate_command import shown_command
from lrpguard.demo.digits import load_digit_splits
from lrpguard.evaluation.candidates import CANDIDATES
from lrpguard.evaluation.tables import run_facts
from tests.cli.conftest import MODEL, Outcome
from tests.support import times


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = load_digit_splits().calibration
    path = tmp_path_factory.mktemp("labelled") / "digits.npz"
    np.savez(path, images=digits.images[:240].numpy(), labels=digits.labels[:240].numpy())
    return path


def evaluate(data: Path, out: Path, *more: str) -> Outcome:
    sizes = ("--calibration-pool", "220", "--test", "12", "--n", "4", "--sigma", "0.1")
    return Outcome(
        *("evaluate", "--model", MODEL, "--data", data, "--out", out, "--cache", out / "cache"),
        *(*sizes, "--quiet", *more),
    )


def test_writes_card_and_rows_and_prints_tables(data: Path, tmp_path: Path) -> None:
    done = evaluate(data, tmp_path, "--attacks", "fgsm_8,jpeg", "--baselines", "max-softmax")

    assert done.code == 0, done.err
    assert "| FGSM 8/255 |" in done.out
    assert "JPEG, quality 75" in done.out
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["model"] == MODEL
    assert card["data"] == "digits.npz"
    assert card["results"]["clean"]["n"] == 12
    assert list(card["restorations"]) == [c.name for c in CANDIDATES if c.free]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) > 24


def test_a_run_that_goes_on_keeps_to_its_way(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times(monkeypatch, 0.5)
    assert evaluate(data, tmp_path, "--attacks", "jpeg", "--prepare").code == 0
    rows = (tmp_path / "rows.jsonl").read_bytes()
    times(monkeypatch, 2.0)
    done = evaluate(data, tmp_path, "--attacks", "jpeg", "--prepare")
    assert done.code == 0, done.err
    assert (tmp_path / "rows.jsonl").read_bytes() == rows
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["guard"]["way"].startswith("channels_last, at most")
    assert f"copies {card['guard']['way']}." in run_facts(card)


def test_all_stands_for_the_baselines_that_see_no_attack() -> None:
    assert _baselines(None) == ()
    assert _baselines("all") == attack_free()
    assert _baselines("energy,all,lid") == (
        "energy",
        *(name for name in attack_free() if name != "energy"),
        "lid",
    )


def test_unknown_names_are_usage_errors(data: Path, tmp_path: Path) -> None:
    assert evaluate(data, tmp_path, "--attacks", "pdg").code == 2
    wrong = evaluate(data, tmp_path, "--baselines", "nothing")
    assert wrong.code == 2
    assert "no baseline is named 'nothing'" in wrong.err
    wrong = evaluate(data, tmp_path, "--restorations", "prayer")
    assert wrong.code == 2
    assert "no restoration is named 'prayer'" in wrong.err


def test_too_many_images_asked_for(data: Path, tmp_path: Path) -> None:
    wrong = evaluate(data, tmp_path, "--test", "500")

    assert wrong.code == 2
    assert "there are 240" in wrong.err


def test_the_shown_command_has_no_folders_of_this_machine() -> None:
    shown = shown_command(["evaluate", "--data", "/somewhere/private/test.npz", "--out", "build/x"])

    assert shown == "lrpguard evaluate --data test.npz --out build/x"
