"""The engine in every mode that a caller, and in every precision that a model, may be in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrpguard
from lrpguard.lrp import conservation, relevance
from lrpguard.lrp.engine import saved_bytes
from tests.nets import (
    TinyResNet,
    Whole,
    epsilon,
    gradient_times_input,
    images,
    plain_cnn,
    randomized,
    rel_l2,
)


def inference() -> AbstractContextManager[object]:
    return torch.inference_mode()


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": inference,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "enable_grad in no_grad": torch.enable_grad,
}


class TestCallersModes:
    @pytest.mark.parametrize("mode", MODES)
    def test_the_callers_mode_changes_nothing(self, mode: str) -> None:
        model, x = randomized(TinyResNet(), dtype=torch.float32), images(dtype=torch.float32)
        expected = relevance(model, x, composite=epsilon(0.1))
        law = conservation(model, x, composite=epsilon(0.1))
        size = saved_bytes(model, x)
        with MODES[mode]():
            enabled = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            ours = relevance(model, x, composite=epsilon(0.1))
            assert conservation(model, x, composite=epsilon(0.1)) == law
            assert saved_bytes(model, x) == size
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == enabled
        assert torch.equal(ours.relevance, expected.relevance)
        assert torch.equal(ours.logits, expected.logits)

    @pytest.mark.parametrize("normalized", [False, True])
    def test_images_and_models_made_in_inference_mode(self, normalized: bool) -> None:
        def build() -> tuple[nn.Module, Tensor]:
            model: nn.Module = randomized(TinyResNet())
            if normalized:
                model = lrpguard.normalized(model, [0.5] * 3, [0.25] * 3)
            return model, images()

        expected = relevance(*build(), composite=epsilon(0.1)).relevance
        with torch.inference_mode():
            model, x = build()
            assert x.is_inference()
            inside = relevance(model, x, composite=epsilon(0.1)).relevance
        outside = relevance(model, x, composite=epsilon(0.1)).relevance
        assert torch.equal(inside, expected)
        assert torch.equal(outside, expected)

    def test_autocast_inside_the_model_is_the_models_own(self) -> None:
        def forward(self: Any, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits: Tensor = self.net(x)
            return logits.float()

        model = randomized(Whole(forward, net=plain_cnn()), dtype=torch.float32)
        x = images(dtype=torch.float32)
        ours = relevance(model, x, composite=epsilon(0))
        with torch.no_grad():
            assert torch.equal(ours.logits, model(x))
        assert rel_l2(ours.relevance, gradient_times_input(model, x)) < 1e-6

    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)]
    )
    @pytest.mark.parametrize("stabilizer", [0, 1e-9, 0.1])
    def test_low_precision_models(
        self, dtype: torch.dtype, tolerance: float, stabilizer: float
    ) -> None:
        model, x = randomized(TinyResNet(), dtype=dtype), images(4).to(dtype)
        ours = relevance(model, x, composite=epsilon(stabilizer))
        assert ours.relevance.dtype == ours.logits.dtype == dtype
        assert ours.relevance.isfinite().all()
        with torch.no_grad():
            assert torch.equal(ours.logits, model(x))
        target = ours.logits.argmax(1)
        exact = relevance(model.float(), x.float(), target, composite=epsilon(stabilizer))
        assert rel_l2(ours.relevance.float(), exact.relevance) < tolerance

    def test_a_model_compiled_in_place_runs_eagerly(self) -> None:
        model, x = randomized(TinyResNet()), images()
        expected = relevance(model, x, composite=epsilon(0.1)).relevance
        calls: list[object] = []

        def backend(graph: Any, inputs: Any) -> Any:
            calls.append(graph)
            return graph.forward

        model.compile(backend=backend)
        wrapped = lrpguard.normalized(model, [0.0] * 3, [1.0] * 3)
        for compiled in (model, wrapped):
            ours = relevance(compiled, x, composite=epsilon(0.1)).relevance
            assert torch.equal(ours, expected)
        assert not calls
        assert model._compiled_call_impl is not None
