"""The search: its settings, its three manners, and what it notes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrpguard.attacks.adaptive.descent import (
    Effort,
    Sight,
    Trace,
    _gradient,
    chunk_length,
    descend,
)
from lrpguard.errors import ConfigurationError

CLEAN = torch.full((2, 1, 2, 2), 0.5)


def above(images: Tensor, rows: Tensor) -> Sight:
    """Want the mean pixel of the model above 0.52, and that of the guard's first row small."""
    lacking = (0.52 - images.mean((1, 2, 3))).clamp(min=0)
    return Sight(lacking, images[:, :, 0].mean((1, 2)), lacking.detach() == 0)


@pytest.mark.parametrize(
    "wrong", [{"eps": 8.0}, {"eps": 0.1, "steps": -1}, {"eps": 0.1, "copies": 0}]
)
def test_refuses_a_senseless_effort(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Effort(**{"steps": 1, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("manner", ["joint", "selective", "orthogonal"])
def test_reaches_what_can_be_reached(manner: str) -> None:
    effort = Effort(eps=20 / 255, steps=40)
    found = descend(above, CLEAN, effort, manner=manner, weight=0.1)  # type: ignore[arg-type]
    sight = above(found, torch.arange(2))
    assert sight.won.all()
    # The lower row alone does it, by some 4/255 on average, and the upper one is free to fall.
    assert (found[:, :, 0] < found[:, :, 1]).all()


def test_without_steps_there_is_the_start_alone() -> None:
    found = descend(above, CLEAN, Effort(eps=0.1, steps=0))
    assert not torch.equal(found, CLEAN)
    assert (found - CLEAN).abs().max() <= 0.1 + 1 / 255


def test_orthogonal_gradients_leave_the_other_loss_alone() -> None:
    change = torch.zeros(2, 1, 2, 2, requires_grad=True)
    along, other = torch.rand(2, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    sight = Sight(
        (change * along).sum((1, 2, 3)),
        (change * other).sum((1, 2, 3)),
        torch.tensor([True, False]),
    )
    found = _gradient(sight, change, "orthogonal", 1.0)
    assert abs(float((found[0] * along[0]).sum())) < 1e-6  # won: the guard's, past the model's
    assert abs(float((found[1] * other[1]).sum())) < 1e-6
    assert float((found[0] * other[0]).sum()) > 0
    assert float((found[1] * along[1]).sum()) > 0


def test_the_trace_counts_steps_without_a_gradient() -> None:
    def flat(images: Tensor, rows: Tensor) -> Sight:
        lost = 1 + 0 * images.sum((1, 2, 3))
        return Sight(lost, 0 * lost, torch.zeros(len(images), dtype=torch.bool))

    blind, seeing = Trace(), Trace()
    descend(flat, CLEAN, Effort(eps=0.1, steps=5), trace=blind)
    descend(above, CLEAN, Effort(eps=0.1, steps=5), manner="selective", trace=seeing)
    assert (blind.blind, blind.seen, blind.blind_share) == (10, 10, 1.0)
    assert not blind.fell
    assert seeing.blind == 0
    assert seeing.fell


def test_an_image_with_nothing_left_to_gain_is_done() -> None:
    asked: list[list[int]] = []

    def first_is_easy(images: Tensor, rows: Tensor) -> Sight:
        asked.append(rows.tolist())
        loss = images.mean((1, 2, 3)) * (rows > 0)
        return Sight(loss, 0 * loss, loss.detach() == 0)

    trace = Trace()
    found = descend(first_is_easy, CLEAN, Effort(eps=0.1, steps=4), trace=trace)
    assert asked == [[0, 1], [1], [1], [1], [1]]
    assert trace.taken == [0, 4]
    assert trace.seen == 5
    assert found[1].mean() < found[0].mean()


def test_chunks_shrink_with_what_is_looked_at() -> None:
    shape = torch.Size((3, 32, 32))
    assert chunk_length(shape, 7) > chunk_length(shape, 45) >= 1
    assert chunk_length(torch.Size((3, 224, 224)), 45) == 1
