"""The sections hold every number of their cards."""

from __future__ import annotations

from typing import Any

from lrpguard.redteam.hardening_page import HEAD, hardening_section, robust_section
from lrpguard.redteam.page import threat_page

ROW = {
    "variant": "several sigmas",
    "levels": 8,
    "own_5%": (10, 25),
    "own_1%": (11, 25),
    "sr_5%": (15, 25),
    "sr_1%": (20, 25),
    "saved_5%": (9, 25),
    "saved_1%": (4, 25),
    "passes": 12,
    "taken": 33.5,
}
CARD: dict[str, Any] = {
    "kind": "hardening",
    "model": "net",
    "command": "python scripts/harden.py",
    "data": "images.npz",
    "guard_n": 400,
    "fit_n": 160,
    "calibration_n": 240,
    "test": 27,
    "right": 25,
    "seed": 0,
    "n": 16,
    "sigma": 0.02,
    "steps": 40,
    "copies": 2,
    "manners": ["joint", "selective"],
    "minutes": 3.5,
    "version": "0.1.0",
    "torch": "2.0",
    "clean": {"several sigmas": {"flagged_5%": (2, 27), "flagged_1%": (0, 27)}},
    "rows": [{"variant": "model alone", "levels": 8, "sr": (24, 25)}, ROW],
}
ROBUST: dict[str, Any] = {
    "kind": "robust_classifier",
    "model": "module:resnet8",
    "command": "python scripts/train_robust.py",
    "train": "some images",
    "test": "others",
    "attack": "PGD, 20 steps",
    "levels": 8,
    "seed": 0,
    "clean": (60, 100),
    "robust": (30, 100),
    "epochs": [{}, {}],
    "minutes": 12.0,
}


def test_the_table_is_whole() -> None:
    lines = hardening_section(CARD)
    model, hardened = (line for line in lines if line.startswith("| 8/255"))
    assert model.count("|") == hardened.count("|") == HEAD.count("|")
    assert "0.96 (0.80-0.99)" in model
    for number in ("0.40 (0.23-0.59)", "0.60 (0.41-0.77)", "0.80 (0.61-0.91)", "9/25", "2/27"):
        assert number in hardened
    assert hardened.endswith("| 12 | 33.5 |")


def test_all_kinds_stand_on_one_page() -> None:
    text = threat_page([CARD, ROBUST])
    assert "## Hardening: net" in text
    assert "classifier: resnet8" in text
    assert "60.0 % (50.2-69.1), 60/100" in "\n".join(robust_section(ROBUST))
