"""Convolutions with modified weights, and their input gradient: the library's, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lrpguard.lrp.convolution import Convolution, halves
from tests.nets import rel_l2


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, c: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, c)[0]


def geometry_of(x: Tensor, weight: Tensor, **options: Any) -> Convolution:
    geometry = Convolution.of(x, weight, **options)
    assert geometry is not None
    return geometry


CONVOLUTIONS: list[tuple[Any, tuple[int, ...], dict[str, Any]]] = [
    (F.conv2d, (6, 4, 3, 3), {}),
    (F.conv2d, (6, 4, 3, 3), {"stride": 2, "padding": (1, 0)}),
    (F.conv2d, (8, 2, 3, 3), {"groups": 2, "dilation": 2}),
    (F.conv2d, (4, 1, 5, 3), {"groups": 4, "padding": "same"}),
    (F.conv2d, (6, 4, 3, 3), {"padding": "valid"}),
    (F.conv2d, (6, 2, 1, 1), {"groups": 2}),
    (F.conv2d, (6, 4, 1, 1), {"padding": 1}),
    (F.conv1d, (6, 4, 3), {"stride": (2,), "padding": 1}),
    (F.conv3d, (6, 4, 2, 1, 3), {"stride": (1, 2, 1)}),
]

PRODUCTS: list[tuple[Any, tuple[int, ...], dict[str, Any]]] = [
    (F.conv1d, (6, 4, 1), {}),
    (F.conv1d, (6, 4, 1), {"stride": 2}),
    (F.conv2d, (6, 4, 1, 1), {}),
    (F.conv2d, (6, 4, 1, 1), {"stride": (2, 3)}),
    (F.conv2d, (6, 4, 1, 1), {"stride": 2, "dilation": 2, "padding": "valid"}),
    (F.conv3d, (6, 4, 1, 1, 1), {"stride": (1, 2, 1)}),
]
"""Convolutions that are run as a matrix product on a CPU."""


class TestConvolution:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("function", "shape", "options"), CONVOLUTIONS)
    def test_is_the_library_s_gradient(
        self,
        function: Callable[..., Tensor],
        shape: tuple[int, ...],
        options: dict[str, Any],
        dtype: torch.dtype,
    ) -> None:
        torch.manual_seed(2)
        x = torch.randn(2, 4, *(9,) * (len(shape) - 2), dtype=dtype)
        weight = torch.randn(shape, dtype=dtype)
        run = partial(function, weight=weight, **options)
        c = torch.randn_like(run(x))
        geometry = geometry_of(x, weight, **options)
        assert torch.equal(geometry.gradient(c, weight, x.shape), gradient(run, x, c))
        assert geometry.product(x, weight, None) is None

    @pytest.mark.parametrize("size", [3, 13], ids=["few places", "many"])
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize(("function", "shape", "options"), PRODUCTS)
    def test_kernel_of_one_place(
        self,
        function: Callable[..., Tensor],
        shape: tuple[int, ...],
        options: dict[str, Any],
        channels_last: bool,
        size: int,
    ) -> None:
        torch.manual_seed(4)
        x = torch.randn(2, 4, *(size,) * (len(shape) - 2), dtype=torch.float64)
        if channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(shape, dtype=x.dtype), torch.randn(shape[0], dtype=x.dtype)
        run = partial(function, weight=weight, bias=bias, **options)
        geometry = geometry_of(x, weight, **options)
        ours = geometry.product(x, weight, bias)
        assert ours is not None
        assert rel_l2(ours, run(x)) <= 1e-14
        without = geometry.product(x, weight, None)
        assert without is not None
        assert rel_l2(without, run(x, bias=None)) <= 1e-14
        c = torch.randn_like(run(x))
        found = geometry.gradient(c, weight, x.shape)
        assert rel_l2(found, gradient(run, x, c)) <= 1e-14
        assert found.stride() == (x.stride() if x.ndim == 4 else found.contiguous().stride())

    def test_channels_last(self) -> None:
        torch.manual_seed(3)
        x = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(16, 8, 3, 3).contiguous(memory_format=torch.channels_last)
        c = torch.randn_like(F.conv2d(x, weight))
        ours = geometry_of(x, weight).gradient(c, weight, x.shape)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert rel_l2(ours, gradient(lambda x: F.conv2d(x, weight), x, c)) <= 1e-6

    def test_leaves_to_autograd_what_it_cannot_describe(self) -> None:
        weight = torch.randn(4, 4, 2, 2)
        assert Convolution.of(torch.randn(1, 4, 9, 9), weight, padding="same") is None
        assert Convolution.of(torch.randn(4, 9, 9), weight) is None


@pytest.mark.parametrize("channels_last", [False, True])
def test_halves(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    both = halves(x)
    assert torch.equal(both, torch.cat((x.clamp_min(0), x.clamp_max(0)), 1))
    assert both.is_contiguous(memory_format=layout)
