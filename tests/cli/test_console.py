"""What is printed where, on a real terminal, and what an interruption leaves behind."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from lrpguard.cli.console import INTERRUPTED, Console, to_json
from lrpguard.demo.digits import load_digit_splits
from tests.cli.conftest import MODEL, write_digits

LIMIT = 240.0
"""Seconds after which a command is given up."""


def _hear_interrupts() -> None:
    """Undo what a background job of a shell inherits: interrupts that are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command whose output and errors go to a terminal of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self.seen = ""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        self._ours = ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lrpguard", *map(str, arguments)],
            stdout=theirs,
            stderr=theirs,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_hear_interrupts,
            env=os.environ | {"TERM": "xterm-256color", "FORCE_COLOR": "1", "OMP_NUM_THREADS": "1"},
        )
        os.close(theirs)

    def read(self, until: str | None = None) -> str:
        """Read to the end, or until a text is seen."""
        end = time.monotonic() + LIMIT
        while until is None or until not in self.seen:
            assert time.monotonic() < end, self.seen
            if not select.select([self._ours], [], [], 1)[0]:
                continue
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            self.seen += part.decode("utf-8", "replace")
        return self.seen

    def finish(self) -> int:
        """Read the rest; return the exit code."""
        self.read()
        os.close(self._ours)
        return self.process.wait(LIMIT)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand digits, and so some seconds of work."""
    images = load_digit_splits().calibration.images
    return write_digits(
        tmp_path_factory.mktemp("many") / "digits", images.repeat(4, 1, 1, 1)[:1000]
    )


def test_a_terminal_shows_progress_and_no_colours(calibration: Path, clean_folder: Path) -> None:
    terminal = Terminal(
        "check", "--model", MODEL, "--data", clean_folder, "--calibration", calibration
    )
    assert terminal.finish() == 0
    assert "check:" in terminal.seen
    assert "/40" in terminal.seen
    assert "image/s" in terminal.seen
    assert "\x1b[3" not in terminal.seen  # no colour, whatever FORCE_COLOR says
    assert "039.png" in terminal.seen


@pytest.mark.parametrize(
    ("json", "quiet", "terminal"),
    [(True, False, True), (False, True, True), (False, False, False)],
)
def test_no_bar_where_none_is_wanted_or_seen(
    json: bool, quiet: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with Console(json, quiet).bar("check", 3) as bar:
        assert bar.disable


def test_an_interrupted_check_keeps_its_verdicts(
    calibration: Path, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "verdicts.jsonl"
    command = ("check", "--model", MODEL, "--data", many, "--calibration", calibration)
    terminal = Terminal(*command, "--out", out)
    terminal.read(until="040.png")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == INTERRUPTED
    assert "Traceback" not in terminal.seen
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert 40 < len(kept) < 1000
    assert f"interrupted: {len(kept)} of 1000 images are judged. {out}" in terminal.seen


def test_an_interrupted_explanation_keeps_its_pictures(many: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs lrpguard[plots]")
    terminal = Terminal("explain", "--model", MODEL, "--data", many, "--n", "2", "--out", tmp_path)
    terminal.read(until="003.png")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == INTERRUPTED
    assert "Traceback" not in terminal.seen
    assert "of 1000 images are explained. Their pictures are in" in terminal.seen
    assert len(list(tmp_path.glob("003*.png"))) == 1


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    digits = load_digit_splits().calibration
    data = tmp_path / "digits.npz"
    np.savez(data, images=digits.images[:270].numpy(), labels=digits.labels[:270].numpy())
    out = tmp_path / "evaluation"
    command = (
        *("evaluate", "--model", MODEL, "--data", data, "--out", out, "--cache", out / "cache"),
        *("--calibration-pool", "220", "--test", "40", "--n", "4", "--sigma", "0.1"),
        *("--attacks", "deepfool,jpeg"),
    )
    terminal = Terminal(*command)
    terminal.read(until="attack 1/2 deepfool")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == INTERRUPTED
    assert "Traceback" not in terminal.seen
    assert "the same command again to go on from there" in terminal.seen.replace("\r\n", " ")
    rows = (out / "rows.jsonl").read_text().splitlines()
    assert len(rows) >= 41
    again = Terminal(*command)
    assert again.finish() == 0
    assert (out / "rows.jsonl").read_text().splitlines()[: len(rows)] == rows


def test_a_log_is_not_flooded(tmp_path: Path) -> None:
    code = "import os, sys; sys.argv = ['lrpguard']; from lrpguard.cli import main\n"
    code += "try:\n    main()\nfinally:\n    print(os.environ.get('TQDM_MININTERVAL'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "30"


def test_words_and_records(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (Console(json=False), Console(json=True, quiet=True)):
        console.line("line")
        console.say("said")
        console.step("step")
        console.record({"a": float("nan")})
    seen = capsys.readouterr()
    assert seen.out == 'line\nsaid\n{"a": null}\n'
    assert seen.err == "... step\nsaid\n"


def test_json_is_strict() -> None:
    assert to_json({"a": [float("inf"), (1, {"b": float("nan")})]}) == (
        '{"a": [null, [1, {"b": null}]]}'
    )
