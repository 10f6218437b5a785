"""The plan holds what it promises, in its order."""

from __future__ import annotations

from dataclasses import replace

import torch

from lrpguard.attacks.adaptive import Trace
from lrpguard.redteam.plan import BLACK, GREY, KNOWS, TRANSFER, WHITE, Target, plan, sweeps
from tests.attacks.adaptive.conftest import KEY, Toy, band_model


def target_of(toy: Toy, count: int) -> Target:
    torch.manual_seed(0)
    return Target(
        guard=toy.guard,
        key=KEY,
        images=toy.images[:count],
        labels=toy.labels[:count],
        donors=toy.donors,
        substitute=band_model(),
        seed=0,
    )


def test_attackers_and_levels() -> None:
    entries = list(plan((2, 8), substitute=True, n=16, quick=False))
    assert {entry.knows for entry in entries} == set(KNOWS)
    assert {entry.levels for entry in entries} == {2, 8}
    assert entries[0].knows == "static"
    assert entries[1].knows == GREY
    (white,) = [entry for entry in entries if entry.knows == WHITE]
    assert white.copies == 16
    alone = list(plan((2, 8), substitute=False, n=16, quick=False))
    assert TRANSFER not in {entry.knows for entry in alone}
    names = [(e.attack, e.levels, e.steps, e.copies) for e in (*entries, *sweeps((2, 8)))]
    assert len(set(names)) == len(names)
    assert all(entry.sweep or "selective" in entry.attack for entry in sweeps((2, 8)))


def test_every_attack_runs(toy: Toy) -> None:
    target = target_of(toy, 2)
    entries = [*plan((24,), substitute=True, n=4, quick=True), *sweeps((24,))]
    for entry in entries:
        if entry.knows == BLACK or entry.steps > 20:
            continue  # the same code at more length, and test_queries' own
        images, queries = entry.run(target, Trace())
        assert images.shape == target.images.shape
        assert (images - target.images).abs().max() <= 24 / 255 + 1e-6
        assert queries is None


def test_the_key_is_used_where_it_is_known(toy: Toy) -> None:
    entries = list(plan((24,), substitute=False, n=4, quick=True))
    (known,) = [entry for entry in entries if entry.knows == WHITE]
    (other,) = [entry for entry in entries if "another key" in entry.attack]
    target = target_of(toy, 2)
    mine, theirs = known.run(target, Trace())[0], other.run(target, Trace())[0]
    assert not torch.equal(mine, theirs)
    moved = replace(target, key=b"elsewhere" * 4)
    assert not torch.equal(mine, known.run(moved, Trace())[0])
    assert torch.equal(theirs, other.run(moved, Trace())[0])
