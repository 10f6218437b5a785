"""Operators whose result is ignored because they work in place: later readers see the new value."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import Between, Body, assert_exact, assert_same, images, randomized


def rewriting(write: Callable[[Any, Tensor], object], read: Body) -> Body:
    """Write into the output of a convolution, and go on with that tensor."""

    def body(net: Any, t: Tensor) -> Tensor:
        write(net, t)
        return read(net, t)

    return body


def assert_reads_what_was_written(written: Body, plain: Body) -> None:
    model = randomized(Between(written, bn=nn.BatchNorm2d(4)), seed=5)
    other = copy.deepcopy(model)
    other.body = plain
    assert_exact(model, images())
    assert_same(model, other, images())


READS: dict[str, Body] = {
    "itself": lambda net, t: t,
    "comparison": lambda net, t: t * 2 - (t == 0).to(t.dtype),
    "winner": lambda net, t: t.gather(1, (-t).argmax(1, keepdim=True)).expand_as(t) + t,
    "batch norm": lambda net, t: F.relu(net.bn(t)),
    "batch norm and a skip": lambda net, t: net.bn(t) + t,
    "view": lambda net, t: F.relu(t.view(t.shape[0], -1) - 0.1),
    "two halves": lambda net, t: F.relu(t[:, :2]).repeat(1, 2, 1, 1) + t,
}


@pytest.mark.parametrize("read", READS)
def test_read_after_an_in_place_relu(read: str) -> None:
    assert_reads_what_was_written(
        rewriting(lambda net, t: F.relu_(t), READS[read]),
        lambda net, t: READS[read](net, F.relu(t)),
    )


@pytest.mark.parametrize("read", READS)
def test_read_after_an_in_place_scale_of_one_half(read: str) -> None:
    """The write goes through a view of the tensor that is read."""

    def scaled(net: Any, t: Tensor) -> Tensor:
        factor = t.new_ones(1, 4, 1, 1)
        factor[:, :2] = -2
        return READS[read](net, t * factor)

    assert_reads_what_was_written(rewriting(lambda net, t: t[:, :2].mul_(-2), READS[read]), scaled)


@pytest.mark.parametrize("read", READS)
def test_a_view_follows_its_base(read: str) -> None:
    def body(net: Any, t: Tensor) -> Tensor:
        view = t.view(t.shape)
        F.relu_(t)
        return READS[read](net, view)

    assert_reads_what_was_written(body, lambda net, t: READS[read](net, F.relu(t)))
