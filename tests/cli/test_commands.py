"""What all commands have in common: help, version, exit codes, errors without a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrpguard import __version__
from lrpguard.cli.commands import app
from lrpguard.smoothing import PAPER_N, PAPER_SIGMA

COMMANDS = (
    "demo",
    "calibrate",
    "check",
    "explain",
    "doctor",
    "evaluate",
    "attack",
    "report",
    "serve",
    "selftest",
)
MODEL = "lrpguard.demo.digits:load_digits_model"

Run = Callable[..., Any]


def test_the_commands_are_those_of_the_readme() -> None:
    assert tuple(info.callback.__name__ for info in app.registered_commands if info.callback) == (
        COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_stands_as_written(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0
    *_, example = done.out.split("Example:\n")
    assert re.fullmatch(rf"    lrpguard {command}(.|\n)*", example)
    assert "--json" in done.out


def test_help_states_the_defaults_of_the_noise(run: Run) -> None:
    words = " ".join(run("explain", "--help").out.split())
    assert f"[default: {PAPER_N}, the paper's]" in words
    assert f"[default: {PAPER_SIGMA}, the paper's]" in words


def test_alone_it_shows_the_five_commands_one_needs_first(run: Run) -> None:
    done = run()
    assert done.code == 0
    shown = re.findall(r"^  lrpguard (\w+)  ", done.out, re.MULTILINE)
    assert shown == ["demo", "doctor", "calibrate", "check", "serve"]
    assert max(map(len, done.out.splitlines())) <= 100


def test_help_shows_all_commands(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(f"\n  {command} " in done.out for command in COMMANDS)
    assert done.out.rstrip().endswith("lrpguard calibrate --help")


def test_a_misspelt_command_is_told_the_right_one(run: Run) -> None:
    assert "Did you mean 'check'?" in run("chek").err


@pytest.mark.parametrize(
    ("words", "expected"),
    [("lrpguard re", {"report", "recalibrate"}), ("lrpguard report --pre", {"--prevalence"})],
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    environment = {
        "_LRPGUARD_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "lrpguard"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("command", ["demo", "calibrate", "check", "explain", "evaluate", "report"])
def test_what_shows_progress_can_be_quiet(run: Run, command: str) -> None:
    assert "--quiet" in run(command, "--help").out


def test_version(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.out) == (0, f"lrpguard {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("check", "--frobnicate"),
        ("calibrate", "--model", MODEL),  # --data and --out are missing
        ("explain", "--model", MODEL, "--data", "x", "--weights", "missing.safetensors"),
        ("check", "--model", MODEL, "--data", "x", "--calibration", "missing.safetensors"),
        ("check", "--model", MODEL, "--data", "x", "--key-file", "missing.key"),
        ("explain", "--model", MODEL, "--data", "x", "--n", "1"),
    ],
)
def test_a_wrong_option_is_a_usage_error(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Error" in done.err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--model", "resnet18"), "LoadingError: the model 'resnet18' is not understood"),
        (("--model", "torchvision:resnet99"), "LoadingError: torchvision has no classifier"),
        (("--model", MODEL, "--data", "nowhere"), "LoadingError: there is no file or folder"),
        (("--model", MODEL, "--mean", "a"), "ConfigurationError: --mean is 'a'; expected numbers"),
        (("--model", MODEL, "--mean", "0.5"), "ConfigurationError: std is not given"),
        (("--model", MODEL, "--image-size", "8x8"), "ConfigurationError: --image-size is '8x8'"),
        (("--model", MODEL, "--device", "abacus"), "ConfigurationError: --device is 'abacus'"),
        (("--model", MODEL, "--sigma", "-1"), "ConfigurationError: sigma is -1.0"),
    ],
)
def test_an_error_of_the_options_is_one_line_without_traceback(
    run: Run, some_digits: Path, arguments: tuple[str, ...], error: str
) -> None:
    done = run("explain", "--json", "--data", some_digits, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith(f"error: {error}")
    assert done.err.count("\n") == 1


def test_the_key_comes_from_the_file_or_from_the_environment(
    run: Run, some_digits: Path, tmp_path: Path
) -> None:
    key = bytes(range(32))
    file = tmp_path / "secret.key"
    file.write_bytes(key)
    command = ("explain", "--model", MODEL, "--data", some_digits / "000.png", "--n", "4", "--json")
    public = json.loads(run(*command).out)
    from_file = json.loads(run(*command, "--key-file", file).out)
    from_environment = json.loads(run(*command, environment={"LRPGUARD_KEY": key.hex()}).out)
    assert from_file == from_environment
    assert from_file["mean_variance"] != public["mean_variance"]


@pytest.mark.parametrize(
    ("key", "error"), [("no hex", "is not hexadecimal"), ("abcd", "the secret key has 2 bytes")]
)
def test_a_bad_key_is_refused(run: Run, some_digits: Path, key: str, error: str) -> None:
    command = ("explain", "--model", MODEL, "--data", some_digits, "--json")
    done = run(*command, environment={"LRPGUARD_KEY": key})
    assert done.code == 2
    assert error in done.err


def test_the_output_of_an_unwritable_place_is_refused_before_the_work(
    run: Run, clean_folder: Path, calibration: Path, tmp_path: Path
) -> None:
    out = tmp_path / "missing" / "file"
    data = ("--model", MODEL, "--data", clean_folder)
    for command in (
        ("demo", "--out", out),
        ("calibrate", *data, "--out", out),
        ("check", *data, "--calibration", calibration, "--out", out),
    ):
        done = run(*command)
        assert done.code == 2
        assert "there is no folder" in done.err
    assert not out.parent.exists()


def test_python_dash_m_runs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lrpguard", "explain", "--json", "--model", "x", "--data", "."]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: LoadingError: the model 'x' is not understood")
    assert "Traceback" not in done.stderr
