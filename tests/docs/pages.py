"""What stands in the pages of the documentation: blocks of code, and commands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))

PROGRAMS = ("lrpguard", "pip", "python", "bash", "curl", "openssl", "until", "kill", "mkdocs")
"""What a line of a code block begins with where it is a command."""

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)((?:    [^\n]*\n|\n)+)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: What stands behind the fence, e.g. ``"python"``.
        text: What it holds.
    """

    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(kind.strip(), text) for kind, text in found]


def commands(page: Path) -> list[list[str]]:
    """Return the commands in the code blocks of a page, as words."""
    text = page.read_text(encoding="utf-8")
    shells = [b.text for b in blocks(page) if b.kind.split(" ")[0] in ("sh", "bash")]
    indented = _INDENTED.findall(_FENCE.sub("", text))
    lines = "\n".join([*shells, *indented]).replace("\\\n", " ").splitlines()
    return [
        shlex.split(line, comments=True)
        for line in (line.strip() for line in lines)
        if line.split(" ")[0] in PROGRAMS
    ]
