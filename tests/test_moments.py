"""Streamed moments against two passes of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrpguard.moments import RunningMoments


def stream(chunks: list[Tensor]) -> RunningMoments:
    moments = RunningMoments()
    for chunk in chunks:
        moments.update(chunk)
    return moments


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    offset=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_equals_two_passes(sizes: list[int], offset: float, scale: float, seed: int) -> None:
    values = offset + scale * np.random.default_rng(seed).standard_normal((sum(sizes), 2, 3))
    moments = stream(list(torch.from_numpy(values).split(sizes)))

    assert moments.count == len(values)
    rounding = 1e-12 * (abs(offset) + scale)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12, atol=rounding)
    if len(values) > 1:
        wanted = values.var(0, ddof=1)
        np.testing.assert_allclose(moments.variance, wanted, rtol=1e-9, atol=10 * rounding**2)


def test_small_numbers_by_hand() -> None:
    moments = stream([torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
    assert moments.count == 3
    assert moments.mean.tolist() == [3.0]
    assert moments.variance.tolist() == [7.0]  # (4 + 1 + 9) / 2


def test_large_offset_in_float32_keeps_the_variance() -> None:
    # Sum of squares minus square of sums would lose every digit here.
    values = 4096 + torch.arange(8, dtype=torch.float32)[:, None]
    moments = stream(list(values.split(3)))
    assert moments.variance.item() == pytest.approx(6.0, rel=1e-12)
    assert moments.mean.item() == pytest.approx(4099.5, rel=1e-12)


def test_constant_has_no_variance() -> None:
    moments = stream(list(torch.full((10, 4), 0.1).split(3)))
    assert moments.variance.tolist() == [0.0] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_accumulates_in_float64(dtype: torch.dtype) -> None:
    values = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    moments = stream(list(values.split(7)))
    assert moments.mean.dtype == moments.variance.dtype == torch.float64
    torch.testing.assert_close(moments.mean, values.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.variance, values.double().var(0), rtol=1e-12, atol=0)


def test_one_value_has_no_variance() -> None:
    moments = stream([torch.ones(1, 2, 3)])
    assert moments.variance.shape == (2, 3)
    assert bool(moments.variance.isnan().all())


def test_leaves_its_input_alone() -> None:
    values = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    moments = stream([values, values])
    assert torch.equal(values, before)
    values.zero_()  # a caller may reuse its buffer
    torch.testing.assert_close(moments.mean, before.mean(0))


def test_nan_and_infinity_are_not_hidden() -> None:
    values = torch.tensor([[1.0, 1.0], [torch.nan, torch.inf], [1.0, 1.0]])
    moments = stream(list(values.split(1)))
    assert not bool(torch.isfinite(moments.mean).any())
    assert not bool(torch.isfinite(moments.variance).any())
