"""Every command in README and docs runs here, or is left out by name with the reason."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer.main
from PIL import Image

from lrpguard.cli import app
from lrpguard.demo.digits import load_digit_splits
from tests.cli.conftest import write_digits
from tests.docs.conftest import MODEL, lrpguard, python
from tests.docs.pages import PAGES, ROOT, blocks, commands

LEFT_OUT = {
    "pip install": "downloads; scripts/test installs every extra",
    "bash scripts/demo": "makes .venv anew; CI runs it from a clean checkout",
    "bash scripts/test": "runs this test; CI runs it from a clean checkout",
    "lrpguard serve": "runs until it is stopped; tutorials/serve.md and tests/serving start it",
    "curl": "needs a running service; tutorials/serve.md asks one",
    "until curl": "waits for a running service, in tutorials/serve.md",
    "kill": "ends the service of tutorials/serve.md",
    "lrpguard attack": "a budget of minutes; tests/cli/test_attack.py runs it in small",
    "mkdocs build": "tests/docs/test_site.py builds the site, with the same settings",
    "lrpguard demo": "takes half a minute; tests/demo run it in small",
    "openssl rand": "makes a key",
    "lrpguard selftest": "needs guard.toml; tutorials/serve.md and tests/cli run it",
    "lrpguard audit": "needs a trail; tutorials/serve.md and tests/cli run it",
    "lrpguard recalibrate": "needs a trail, and a person; tests/cli run it",
    "lrpguard evaluate --name": "needs real images and weights, and takes half an hour",
    "python scripts/": "needs data and weights, or takes minutes; tests/scripts run each in small",
}
"""Beginning of the commands that are not run here, and why."""

SIZES = {
    "demo": ["--n", "4"],
    "calibrate": ["--n", "4", "--sigma", "0.1", "--detector", "paper"],
    "doctor": ["--n", "4"],
    "explain": ["--n", "4"],
    "evaluate": ["--attacks", "fgsm_8", "--calibration-pool", "220", "--test", "10", "--n", "4"],
}
"""What makes a command of README quick on digits."""

EVERY = [(page, words) for page in PAGES for words in commands(page)]


def left_out(words: list[str]) -> bool:
    if "--engine" in words:  # needs Ray and a shared disk; the tests of --engine ray run it
        return True
    return any(shlex.join(words).startswith(start) for start in LEFT_OUT)


def in_a_tutorial(page: Path) -> bool:
    return page.parent.name == "tutorials"


def on_digits(words: list[str]) -> list[str]:
    """Return the arguments of a command, on the packaged model and in small."""
    arguments = [MODEL if word.startswith("torchvision:") else word for word in words[1:]]
    if "--weights" in arguments:
        place = arguments.index("--weights")
        del arguments[place : place + 2]
    return [*arguments, *SIZES.get(arguments[0], [])]


def test_every_command_is_run_or_left_out() -> None:
    assert len(EVERY) > 30
    for page, words in EVERY:
        known = in_a_tutorial(page) or left_out(words) or words[0] == "lrpguard"
        assert known, f"{page.name}: {shlex.join(words)}"


def test_nothing_is_left_out_in_vain() -> None:
    said = [shlex.join(words) for _, words in EVERY]
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for start in LEFT_OUT:
        assert start in text or any(line.startswith(start) for line in said), start


def test_every_lrpguard_command_has_the_options_it_is_given() -> None:
    root = typer.main.get_command(app)
    for page, words in EVERY:
        if words[0] != "lrpguard":
            continue
        found, arguments = root, words[1:]
        while hasattr(found, "commands"):
            name, *arguments = arguments
            assert name in found.commands, f"{page.name}: {shlex.join(words)}"
            found = found.commands[name]
        options = {option for p in found.params for option in (*p.opts, *p.secondary_opts)}
        given = {word.split("=")[0] for word in arguments if word.startswith("--")}
        assert given <= options | {"--help"}, f"{page.name}: {shlex.join(words)}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "operating.md"])
def test_the_commands_of_a_page_run_one_after_another(page: Path, here: Path) -> None:
    pytest.importorskip("sklearn", reason="needs lrpguard[demo]")
    pytest.importorskip("matplotlib", reason="needs lrpguard[plots]")
    digits = load_digit_splits()
    write_digits(here / "clean", digits.calibration.images[:40])
    write_digits(here / "new", digits.test.images[:3])
    write_digits(here / "labelled", digits.calibration.images[:240])
    for number, label in enumerate(digits.calibration.labels[:240].tolist()):
        (here / "labelled" / f"{number:03d}.png").rename(
            here / "labelled" / f"{label}_{number:03d}.png"
        )
    Image.open(here / "new" / "000.png").save(here / "photo.jpg")
    (here / "secret.key").write_bytes(bytes(range(32)))
    ran = 0
    for words in commands(page):
        if words[0] == "lrpguard" and not left_out(words):
            lrpguard(on_digits(words))
            ran += 1
    assert ran


def test_the_example_of_readme_runs(here: Path) -> None:
    (block,) = [b for b in blocks(ROOT / "README.md") if b.kind == "python"]
    digits = load_digit_splits()
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )
    clean = digits.calibration.images[:200].repeat(1, 3, 1, 1)
    names = {"my_network": network, "clean_loader": clean.split(50), "images": clean[:2]}
    python(block.text.replace("progress=True", "progress=False"), names)
    assert (here / "guard.safetensors").is_file()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
