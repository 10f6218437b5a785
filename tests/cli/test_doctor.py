from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpguard.cli.audit import ConservationAudit
from lrpguard.demo.digits import load_digits_model

MODEL = "lrpguard.demo.digits:load_digits_model"
CHECKS = ["versions", "extras", "device", "model", "output", "engine", "memory", "latency"]

Run = Callable[..., Any]


def failed(text: str) -> dict[str, str]:
    """Name and detail of each failed check."""
    report = json.loads(text)
    assert report["ok"] == all(check["ok"] for check in report["checks"])
    return {check["name"]: check["detail"] for check in report["checks"] if not check["ok"]}


def test_a_sound_installation_is_all_well(run: Run) -> None:
    done = run("doctor", "--n", "4")
    assert (done.code, done.err) == (0, "")
    *lines, last = done.out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in CHECKS]
    assert last == "all well"
    assert "relevance is conserved to" in done.out


def test_the_findings_for_programs(run: Run, calibration: Path, clean_folder: Path) -> None:
    options = ("--calibration", calibration, "--data", clean_folder, "--json")
    done = run("doctor", "--model", MODEL, *options)
    assert done.code == 0
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert checks["engine"]["residual"] < 1e-10
    assert checks["calibration"]["n"] == 40
    assert checks["calibration"]["age_days"] == 0
    assert checks["calibration"]["way"] == {"memory_format": "contiguous", "chunk": None}
    assert checks["calibration"]["detail"].endswith("copies run contiguous")
    assert checks["output"]["classes"] == 10
    assert checks["latency"]["factor"] > 1
    assert checks["memory"]["copies"] == 4  # those of the calibration
    assert checks["memory"]["bytes_per_copy"] > 0


def test_a_calibration_of_another_model_fails(run: Run, calibration: Path) -> None:
    other = ("--mean", "0.5", "--std", "0.5", "--image-size", "8")
    done = run("doctor", "--model", MODEL, "--calibration", calibration, *other, "--json")
    assert done.code == 1
    assert "CalibrationMismatchError" in failed(done.out)["calibration"]


def test_a_model_that_does_not_load_fails_and_nothing_follows(run: Run) -> None:
    done = run("doctor", "--model", "torchvision:resnet99")
    assert done.code == 1
    *_, line, last = done.out.splitlines()
    assert line.startswith("FAIL  model        LoadingError: torchvision has no classifier")
    assert last == "1 of 4 FAILED"


def test_an_operator_without_a_rule_fails(run: Run, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / "odd_model.py").write_text(
            "import torch\n"
            "class Odd(torch.nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.linear = torch.nn.Linear(12, 3)\n"
            "    def forward(self, x):\n"
            "        return self.linear(torch.cosh(x).flatten(1))\n"
        )
        done = run("doctor", "--model", "odd_model:Odd", "--image-size", "2,2", "--json")
    assert done.code == 1
    assert failed(done.out)["engine"].startswith("UnsupportedOperatorError:")


def test_an_unknown_image_size_is_asked_for(run: Run) -> None:
    done = run("doctor", "--model", MODEL, "--json")
    assert done.code == 1
    assert "Give --image-size H,W, or --data" in failed(done.out)["output"]


def test_a_device_that_is_not_there_fails(run: Run) -> None:
    done = run("doctor", "--device", "abacus", "--json")
    assert done.code == 1
    assert list(failed(done.out)) == ["device"]


class SinglePrecision(nn.Module):
    """A model whose forward works in float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.float().flatten(1))
        return logits


def test_conservation_is_measured_on_a_copy() -> None:
    model = load_digits_model()
    before = [p.clone() for p in model.parameters()]
    residual = ConservationAudit(model).measure(torch.rand(2, 1, 8, 8))
    assert residual.precision == "float64"
    assert residual.is_rounding
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert next(model.parameters()).dtype == torch.float32


def test_a_model_of_fixed_precision_is_measured_in_it() -> None:
    residual = ConservationAudit(SinglePrecision().eval()).measure(torch.rand(2, 1, 2, 2))
    assert residual.precision == "float32"
    assert residual.is_rounding


class TestService:
    @pytest.fixture
    def config(self, tmp_path: Path, calibration: Path) -> Path:
        file = tmp_path / "guard.toml"
        file.write_text(
            f'[model]\nspec = "{MODEL}"\nimage_size = [8, 8]\n'
            f'[guard]\ncalibration = "{calibration}"\nselftest = "test.safetensors"\n'
            '[audit]\nfolder = "audit"\n'
        )
        return file

    def test_its_model_calibration_selftest_and_trail_are_checked(
        self, run: Run, config: Path, clean_folder: Path
    ) -> None:
        assert run("selftest", "--config", config, "--data", clean_folder).code == 0
        done = run("doctor", "--config", config, "--json")
        assert done.code == 0, done.out
        checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
        assert checks["calibration"]["n"] == 40
        assert checks["selftest"]["difference"] == 0
        assert checks["audit"]["lines"] == 0
        assert checks["latency"]["factor"] > 1

    def test_a_selftest_that_is_missing_fails(self, run: Run, config: Path) -> None:
        done = run("doctor", "--config", config, "--json")
        assert done.code == 1
        assert "lrpguard selftest" in failed(done.out)["selftest"]
