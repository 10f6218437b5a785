"""Every tutorial runs as it stands, on the packaged digits, without a network."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import agrees, free_port, lrpguard, python, shell
from tests.docs.pages import DOCS, blocks

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
MOST_LINES = 40
"""Lines of Python that a tutorial asks for."""

pytest.importorskip("sklearn", reason="needs lrpguard[demo]")


def run_lines(script: str) -> None:
    for line in script.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "lrpguard", f"mark the block `sh server`, or run it otherwise: {line}"
        lrpguard(arguments)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_and_prints_what_it_says(page: Path, here: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    port = str(free_port())
    printed = ""
    for block in blocks(page):
        if block.kind == "python":
            printed = python(block.text, names)
        elif block.kind == "text":
            assert agrees(block.text, printed), f"expected\n{block.text}\ngot\n{printed}"
        elif block.kind == "toml":
            name = block.text.split("\n")[0].removeprefix("# ")
            (here / name).write_text(block.text.replace("8000", port))
        elif block.kind == "sh server":
            pytest.importorskip("fastapi", reason="needs lrpguard[serve]")
            if shutil.which("curl") is None:
                pytest.skip("no curl here")
            answer = shell(block.text.replace("8000", port), here)
            assert '"flagged"' in answer
        else:
            assert block.kind == "sh", f"a block of {block.kind!r} is not run"
            run_lines(block.text)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_is_short(page: Path) -> None:
    code = [line for b in blocks(page) if b.kind == "python" for line in b.text.splitlines()]
    assert len([line for line in code if line.strip()]) <= MOST_LINES
    assert max(map(len, code)) <= 110


def test_outputs_are_compared() -> None:
    assert agrees("a ... c\n", "a b c\n")
    assert not agrees("a b\n", "a c\n")
