"""Extreme inputs, unknown operators, long use: nothing is NaN, unseen, or left behind."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.overrides
from torch import Tensor, nn

from lrpguard.errors import LrpGuardError
from lrpguard.lrp import (
    COMPOSITES,
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    LayerRule,
    Rule,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
    conservation,
    relevance,
)
from tests.nets import TinyResNet, Whole, epsilon, images, plain_cnn, randomized

ANYWHERE: tuple[Rule, ...] = (Zero(), Epsilon(), Epsilon(0.1), Gamma(), ZPlus(), AlphaBeta())
FIRST: tuple[Rule, ...] = (Flat(), WSquare(), ZBox())
EVERY = {
    **{str(rule): Composite("x", rule) for rule in ANYWHERE},
    **{str(rule): Composite("x", Zero(), (LayerRule(rule, first=True),)) for rule in FIRST},
    **COMPOSITES,
}
EXTREME: dict[str, Callable[[Tensor], Tensor]] = {
    "black": torch.zeros_like,
    "white": torch.ones_like,
    "grey": lambda x: torch.full_like(x, 0.5),
    "saturated": torch.round,
    "negative": lambda x: -x,
    "far outside": lambda x: x * 1e4,
    "tiny": lambda x: x * 1e-30,
    "one pixel": lambda x: x * (x == x.max()),
}


def dead() -> nn.Module:
    """Return a network in which every activation is zero: each stabilizer is all that is left."""
    model = randomized(plain_cnn())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "make",
    [lambda: randomized(plain_cnn()), lambda: randomized(TinyResNet()), dead],
    ids=["plain", "resnet", "dead"],
)
def test_no_nan(make: Callable[[], nn.Module], name: str) -> None:
    for dtype in (torch.float64, torch.float32):
        model = make().to(dtype)
        for kind, change in EXTREME.items():
            x = change(images(1, dtype=dtype))
            found = relevance(model, x, composite=EVERY[name])
            assert found.relevance.isfinite().all(), kind
            assert found.logits.isfinite().all(), kind


def unary_operators() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every function of torch that a mode sees, by a name for the message."""
    seen = set()
    for function in torch.overrides.get_testing_overrides():
        name = torch.overrides.resolve_name(function) or repr(function)
        if name not in seen and "__set__" not in name and "backward" not in name:
            seen.add(name)
            yield name, function


LOW_PRECISION = ("bfloat16", "float", "half")
"""Casts, after which rounding is all that the books do not account for."""


def network(function: Callable[..., Any]) -> nn.Module:
    """Return a network whose logits are sums of an operator's outputs, of one image."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = function(net.conv(x))
        y = y[0] if isinstance(y, (tuple, list)) else y
        total = y.sum()
        return torch.stack([total, -total])[None]

    return randomized(Whole(forward, conv=nn.Conv2d(3, 4, 1)), seed=2)


def differentiable(model: nn.Module, x: Tensor) -> bool:
    """Say whether an operator runs on one activation alone, and gives something to explain."""
    leaf = x.clone().requires_grad_()
    try:
        torch.manual_seed(0)
        logits = model(leaf * 1)
        (gradient,) = torch.autograd.grad(logits[0, 0], leaf, allow_unused=True)
    except Exception:  # it wants other arguments, or another type
        return False
    return gradient is not None and bool(logits.isfinite().all()) and bool(gradient.any())


@pytest.mark.filterwarnings("ignore")
def test_no_operator_of_torch_passes_silently() -> None:
    """Each either conserves relevance, by the books, or is refused by an error of ours."""
    x, passed, refused = images(1, 4), [], []
    wrong = []
    for name, function in unary_operators():
        model = network(function)
        if not differentiable(model, x):
            continue
        try:
            books = conservation(model, x, torch.tensor([0]), composite=epsilon(0))
        except LrpGuardError:
            refused.append(name)
            continue
        passed.append(name)
        if books.residual > (1e-2 if name.split(".")[-1] in LOW_PRECISION else 1e-9):
            wrong.append((name, books))
    assert not wrong
    assert len(passed) > 30, passed
    assert len(refused) > 60, refused
    assert "torch.cosh" in refused
    assert "torch.relu" in passed


CALLS = 1000

MEASURE = f"""
import gc, json
from pathlib import Path
import torch
from torch import nn
from lrpguard.lrp import COMPOSITES, relevance

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 13 * 13, 10),
).eval()
image = torch.rand(1, 3, 32, 32)
presets = list(COMPOSITES.values())

def kilobytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

def calls(n):
    for i in range(n):
        relevance(model, image, composite=presets[i % len(presets)])

gc.disable()  # what a ring of references would hold back stays
calls(200)
before, objects = kilobytes(), len(gc.get_objects())
calls({CALLS})
print(json.dumps([kilobytes() - before, len(gc.get_objects()) - objects]))
"""


@pytest.mark.skipif(not os.access("/proc/self/status", os.R_OK), reason="no /proc to measure by")
def test_memory_is_flat_over_a_thousand_calls() -> None:
    """One map is 12 kB and one pass holds 150 kB, so that anything kept of each call shows."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    grown, objects = json.loads(run.stdout)
    assert objects < CALLS / 10, f"{objects} objects more after {CALLS} calls"
    assert grown < 4 * CALLS, f"{grown} kB more after {CALLS} calls"


def tensors_held() -> int:
    gc.collect()
    return sum(issubclass(type(held), Tensor) for held in gc.get_objects())


def test_a_refusal_holds_nothing() -> None:
    model, x = (
        randomized(Whole(lambda n, x: n.f(x.cosh().flatten(1)), f=nn.Linear(768, 3))),
        images(),
    )

    def refuse() -> None:
        with pytest.raises(LrpGuardError):
            relevance(model, x)

    refuse()
    before = tensors_held()
    for _ in range(20):
        refuse()
    assert tensors_held() <= before + 2
