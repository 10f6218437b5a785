"""The documentation builds as a site, warnings being errors, with the public names in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lrpguard
from tests.docs.pages import ROOT

pytest.importorskip("mkdocs", reason="needs lrpguard[docs]")
pytest.importorskip("mkdocstrings", reason="needs lrpguard[docs]")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "-f", str(ROOT / "scripts" / "mkdocs.yml"), "-d", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    api = "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "site" / "api").glob("*.html"))
    documented = {name for name in lrpguard.__all__ if f'id="lrpguard.{name}"' in api}
    assert set(lrpguard.__all__) - documented == {"__version__"}
    assert 'id="lrpguard.scores.SCORES"' in api
