"""Running what the pages say, in a folder of its own."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lrpguard.cli import app

MODEL = "lrpguard.demo.digits:load_digits_model"


def lrpguard(arguments: list[str]) -> str:
    """Run a command of lrpguard within this process; return what it printed."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{shlex.join(arguments)}\n{result.output}"
    return result.output


def python(code: str, names: dict[str, Any]) -> str:
    """Run code as a script's; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<tutorial>", "exec", dont_inherit=True), names)
    return printed.getvalue()


def shell(script: str, folder: Path) -> str:
    """Run a script in bash, with this Python's commands on the path; return what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-m", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PATH": path},
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def agrees(expected: str, printed: str) -> bool:
    """Say whether a page's output is what was printed; ``...`` stands for anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(expected, printed, flags)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRPGUARD_CACHE", str(tmp_path / "cache"))
    return tmp_path
