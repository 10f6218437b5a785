"""Lean backward passes: the library's gradients, bit for bit, with less kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrpguard.lrp import COMPOSITES, EPSILON, Composite, conservation, relevance
from lrpguard.lrp.engine import held_for_backward, relevance_under, saved_bytes
from lrpguard.lrp.lean import max_pool2d, pack_bits, relu, unpack_bits
from lrpguard.lrp.mode import LrpMode
from tests.nets import (
    TinyResNet,
    gradient_times_input,
    images,
    plain_cnn,
    randomized,
    rel_l2,
    torchvision_net,
)


def lean(composite: Composite) -> Callable[[nn.Module], LrpMode]:
    return partial(LrpMode, composite=composite, lean=True)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, c: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf.clone()), leaf, c)[0]


class TestBits:
    @pytest.mark.parametrize("shape", [(1,), (8,), (3, 5, 7), (2, 4, 8), (0,)])
    def test_round_trip(self, shape: tuple[int, ...]) -> None:
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
        bits = pack_bits(mask)
        assert len(bits) == -(-mask.numel() // 8)
        assert torch.equal(unpack_bits(bits, shape), mask)

    def test_each_bit_alone(self) -> None:
        assert torch.equal(unpack_bits(pack_bits(torch.eye(8) > 0), (8, 8)), torch.eye(8) > 0)


class TestRelu:
    @pytest.mark.parametrize("in_place", [False, True])
    def test_is_the_library_s(self, in_place: bool) -> None:
        torch.manual_seed(4)
        x, c = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
        x[0] = 0
        ours = gradient(partial(relu, in_place=in_place), x, c)
        assert torch.equal(ours, gradient(F.relu, x, c))

    def test_in_place_it_is_the_same_tensor(self) -> None:
        leaf = torch.randn(4).requires_grad_()
        x = leaf.clone()
        assert relu(x, in_place=True) is x


POOLS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)},
    {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2},
    {"kernel_size": 16},
]


class TestMaxPool:
    @pytest.mark.parametrize("options", POOLS)
    def test_is_the_library_s(self, options: dict[str, Any]) -> None:
        torch.manual_seed(5)
        x = torch.randn(2, 3, 17, 20).relu()  # with ties
        y = F.max_pool2d(x, **options)
        c = torch.randn_like(y)
        found = max_pool2d(x.clone().requires_grad_(), **options)
        assert found is not None
        assert torch.equal(found.detach(), y)

        def ours(x: Tensor) -> Tensor:
            pooled = max_pool2d(x, **options)
            assert pooled is not None
            return pooled

        theirs = gradient(lambda x: F.max_pool2d(x, **options), x, c)
        assert torch.equal(gradient(ours, x, c), theirs)

    def test_leaves_a_large_window_to_autograd(self) -> None:
        assert max_pool2d(torch.randn(1, 1, 20, 20), 17) is None
        assert max_pool2d(torch.randn(1, 20, 20), 2) is None


class TestWholePass:
    @pytest.mark.parametrize("composite", COMPOSITES)
    @pytest.mark.parametrize("make", [plain_cnn, TinyResNet])
    def test_equals_the_pass_that_keeps_activations(
        self, make: Callable[[], nn.Module], composite: str
    ) -> None:
        model, x = randomized(make(), dtype=torch.float32), images(3, dtype=torch.float32)
        ours = relevance_under(lean(COMPOSITES[composite]), model, x, None)
        theirs = relevance(model, x, composite=COMPOSITES[composite])
        assert torch.equal(ours.logits, theirs.logits)
        assert rel_l2(ours.relevance, theirs.relevance) <= 1e-6

    @pytest.mark.parametrize("name", ["vgg16", "resnet50", "densenet121", "googlenet"])
    def test_is_as_near_the_truth_as_plain_autograd(self, name: str) -> None:
        """In float32 the two round apart where a normalisation is merged; the truth is float64."""
        model, x = torchvision_net(name), images(1, 64)
        truth = gradient_times_input(model, x)
        target = relevance(model, x).logits.argmax(1)
        model, x = model.float(), x.float()
        ours = relevance_under(lean(EPSILON), model, x, target)
        plain = rel_l2(gradient_times_input(model, x, target).double(), truth)
        assert rel_l2(ours.relevance.double(), truth) <= max(1e-6, 1.5 * plain)

    @pytest.mark.parametrize("name", ["vgg16", "resnet50"])
    def test_keeps_a_fifth_of_what_plain_autograd_keeps(self, name: str) -> None:
        model, x = torchvision_net(name, dtype=torch.float32), images(1, 64, dtype=torch.float32)
        model.requires_grad_(False)
        with held_for_backward(model) as plain:
            model(x.clone().requires_grad_().clone())
        assert 5 * saved_bytes(model, x, lean=True) <= sum(plain.values())

    def test_keeps_the_books(self) -> None:
        """The ledger's pass is the same code: it must hold in the lean form, too."""
        model, x = randomized(TinyResNet()), images(2)
        for composite in COMPOSITES.values():
            books = conservation(model, x, composite=composite)
            ours = relevance_under(lean(composite), model, x, None)
            assert books.input == pytest.approx(float(ours.relevance.sum()), rel=1e-9)

    def test_sixteen_threads_give_the_sequential_result(self) -> None:
        model = randomized(TinyResNet(), dtype=torch.float32)
        batches = [images(2, seed=i, dtype=torch.float32) for i in range(16)]
        composite = COMPOSITES["epsilon-plus"]
        expected = [relevance_under(lean(composite), model, x, None) for x in batches]
        found: dict[int, Tensor] = {}

        def work(i: int) -> None:
            found[i] = relevance_under(lean(composite), model, batches[i], None).relevance

        threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found[i], expected[i].relevance) for i in range(16))

    def test_in_place_on_a_view(self) -> None:
        """Autograd rewrites no view by a function of ours; its own ReLU works there."""

        class Halves(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 6)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(x)
                F.relu_(x[:, :2])
                logits: Tensor = self.head(x.flatten(1))
                return logits

        model, x = randomized(Halves()), images(2)
        ours = relevance_under(lean(EPSILON), model, x, None)
        assert rel_l2(ours.relevance, relevance(model, x).relevance) <= 1e-12

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    @pytest.mark.parametrize("composite", COMPOSITES)
    def test_on_a_gpu(self, composite: str) -> None:
        model, x = randomized(TinyResNet()), images(2)
        ours = relevance(model.cuda(), x.cuda(), composite=COMPOSITES[composite])
        theirs = relevance(model.cpu(), x, composite=COMPOSITES[composite])
        assert rel_l2(ours.relevance.cpu(), theirs.relevance) <= 1e-10
