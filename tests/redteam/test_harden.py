"""A whole measurement on the toy: what is counted, and of what."""

from __future__ import annotations

import json

import torch

from lrpguard import Smoothing
from lrpguard.evaluation.protocol import ImageSet, Splits
from lrpguard.redteam.harden import Sizes, harden
from lrpguard.redteam.hardening import VARIANTS
from tests.attacks.adaptive.conftest import Toy, bands


def test_counts(toy: Toy) -> None:
    splits = Splits(pool=ImageSet.of(*bands(340, 1)), test=ImageSet.of(*bands(5, 2)))
    sizes = Sizes(guard=160, steps=2, levels=(24,))
    card = harden(toy.model, splits, Smoothing(n=2, sigma=0.02), sizes, seed=0)
    assert (card["guard_n"], card["fit_n"], card["calibration_n"]) == (160, 72, 108)
    rows = card["rows"]
    assert [row["variant"] for row in rows] == ["model alone", *(v.name for v in VARIANTS)]
    fooled, n = rows[0]["sr"]
    assert n == card["right"]
    for row in rows[1:]:
        for rate in ("1%", "5%"):
            own, some, saved = (row[f"{kind}_{rate}"][0] for kind in ("own", "sr", "saved"))
            assert own <= some == fooled - saved
    assert set(card["clean"]) == {variant.name for variant in VARIANTS}
    json.dumps(card, allow_nan=False)
    torch.manual_seed(1)
    again = harden(toy.model, splits, Smoothing(n=2, sigma=0.02), sizes, seed=0)
    assert again["rows"] == rows
