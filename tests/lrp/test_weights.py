"""The cache of modified weights: made once, never stale, holding no model alive."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from lrpguard.lrp import COMPOSITES, relevance
from lrpguard.lrp.weights import WeightCache
from tests.nets import TinyResNet, images, plain_cnn, randomized

PLUS = COMPOSITES["epsilon-plus"]


class Counted:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


def test_makes_once() -> None:
    cache, make, weight = WeightCache(), Counted(), torch.rand(3)
    assert [cache.get("up", (weight, None), make) for _ in range(3)] == [1, 1, 1]
    assert cache.get("down", (weight, None), make) == 2


def test_notices_a_write_in_place() -> None:
    cache, make, weight = WeightCache(), Counted(), nn.Parameter(torch.rand(3))
    cache.get("up", (weight,), make)
    with torch.no_grad():
        weight.add_(1)
    assert cache.get("up", (weight,), make) == 2


def test_notices_other_memory() -> None:
    cache, make, weight = WeightCache(), Counted(), nn.Parameter(torch.rand(3))
    cache.get("up", (weight,), make)
    weight.data = torch.rand(3)
    assert cache.get("up", (weight,), make) == 2


def test_forgets_what_was_made_from_tensors_that_are_gone() -> None:
    cache, make = WeightCache(), Counted()
    for _ in range(50):
        cache.get("up", (torch.rand(3),), make)
    assert make.calls == 50
    assert len(cache._made) <= 1


def test_keeps_nothing_of_inference_tensors() -> None:
    cache, make = WeightCache(), Counted()
    with torch.inference_mode():
        weight = torch.rand(3)
    assert [cache.get("up", (weight,), make) for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("change", ["weight", "running_var", "state_dict", "exchanged"])
def test_relevance_is_never_stale(change: str, composite: str) -> None:
    model, x, cache = randomized(TinyResNet()), images(2), WeightCache()
    rule = COMPOSITES[composite]
    relevance(model, x, composite=rule, cache=cache)
    other = randomized(TinyResNet(), seed=5)
    if change == "weight":
        with torch.no_grad():
            model.blocks[0].conv1.weight.mul_(-1)  # type: ignore[union-attr, operator]
    elif change == "running_var":
        model.bn.running_var.mul_(2)  # type: ignore[union-attr]
    elif change == "state_dict":
        model.load_state_dict(other.state_dict())
    else:
        model.stem, model.bn = other.stem, other.bn
    ours = relevance(model, x, composite=rule, cache=cache)
    assert torch.equal(ours.relevance, relevance(model, x, composite=rule).relevance)


def test_a_cache_gives_the_same_bits() -> None:
    model, x, cache = randomized(plain_cnn(), dtype=torch.float32), images(2).float(), WeightCache()
    alone = relevance(model, x, composite=PLUS)
    for _ in range(2):
        cached = relevance(model, x, composite=PLUS, cache=cache)
        assert torch.equal(cached.relevance, alone.relevance)


def test_holds_no_model_alive() -> None:
    model, cache = randomized(TinyResNet()), WeightCache()
    relevance(model, images(1), composite=PLUS, cache=cache)
    weight = weakref.ref(model.stem.weight)
    del model
    gc.collect()
    assert weight() is None
