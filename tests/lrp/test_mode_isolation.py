"""Threads do not see each other's explanation, and a model is left as it was."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpguard.errors import UnsupportedOperatorError
from lrpguard.lrp import Composite, Epsilon, Gamma, Rule, ZPlus, conservation, relevance
from lrpguard.lrp.engine import saved_bytes
from tests.nets import TinyResNet, Whole, epsilon, images, plain_cnn, randomized


class TestThreads:
    @pytest.mark.parametrize("rule", [Epsilon(0.1), Gamma(0.25), ZPlus()])
    def test_sixteen_threads_on_one_model_equal_the_sequential_run(self, rule: Rule) -> None:
        model = randomized(TinyResNet(), dtype=torch.float32)
        own = Composite("own", rule)
        jobs = [
            (images(1 + i % 3, seed=i, dtype=torch.float32), own if i % 2 else epsilon(0))
            for i in range(32)
        ]
        expected = [relevance(model, x, composite=c) for x, c in jobs]
        start = threading.Barrier(16)

        def work(thread: int) -> list[tuple[int, Tensor, Tensor]]:
            torch.set_num_threads(1)
            start.wait()
            order = range(thread, thread + len(jobs))
            results = []
            for i in (j % len(jobs) for j in order):
                x, composite = jobs[i]
                result = relevance(model, x, composite=composite)
                results.append((i, result.relevance, result.logits))
            return results

        with ThreadPoolExecutor(16) as pool:
            for results in pool.map(work, range(16)):
                for i, ours, logits in results:
                    assert torch.equal(ours, expected[i].relevance)
                    assert torch.equal(logits, expected[i].logits)

    def test_a_plain_forward_in_another_thread_is_untouched(self) -> None:
        """While one thread explains, an operator without a rule runs freely in another."""
        inside, done = threading.Event(), threading.Event()

        def forward(net: Any, x: Tensor) -> Tensor:
            inside.set()
            assert done.wait(30)
            logits: Tensor = net.net(x)
            return logits

        model = randomized(Whole(forward, net=plain_cnn()))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(relevance, model, images())
            assert inside.wait(30)
            x = torch.ones(2, requires_grad=True)
            try:
                assert not x.cosh().detach().requires_grad
            finally:
                done.set()
            assert running.result().relevance.isfinite().all()


def fingerprint(model: nn.Module) -> dict[str, object]:
    """Everything about a model that a guard must leave as it was."""
    state: dict[str, object] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        grad = tensor.grad
        state[name] = (
            id(tensor),
            tensor._version,
            tensor.data_ptr(),
            tensor.device,
            tensor.dtype,
            tensor.requires_grad,
            None if grad is None else (id(grad), grad.sum().item()),
            tensor.detach().double().sum().item(),
            tuple(sorted(vars(tensor))),
            len(tensor._backward_hooks or ()),
        )
    for name, module in model.named_modules():
        state[f"{name}:module"] = (
            id(module),
            module.training,
            tuple(sorted(vars(module))),
            *(
                tuple(getattr(module, kind))
                for kind in vars(module)
                if kind.endswith("_hooks") or kind.endswith("_hooks_with_kwargs")
            ),
        )
    return state


class BreaksOffError(Exception):
    """Raised by a model of the user's."""


def breaking(error: BaseException) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        net.net(x)
        raise error

    return Whole(forward, net=plain_cnn())


class TestModelIsLeftAsItWas:
    @staticmethod
    def prepared(model: nn.Module) -> nn.Module:
        """Half frozen, with gradients and with hooks of the user's own."""
        model = randomized(model)
        for i, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(i % 2 == 0)
            if i % 2 == 0:
                parameter.grad = torch.ones_like(parameter)
        return model

    def test_after_success(self) -> None:
        model = self.prepared(TinyResNet())
        calls: list[str] = []
        model.register_forward_hook(lambda *_: calls.append("forward"))
        model.register_forward_pre_hook(lambda *_: calls.append("before"))
        before = fingerprint(model)
        for composite in (epsilon(0), epsilon(0.1)):
            relevance(model, images(), composite=composite)
            conservation(model, images(), composite=composite)
            saved_bytes(model, images(), composite=composite)
        assert fingerprint(model) == before
        assert calls == ["before", "forward"] * 6

    @pytest.mark.parametrize(
        "error", [BreaksOffError("x"), RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)]
    )
    def test_after_an_exception(self, error: BaseException) -> None:
        model = self.prepared(breaking(error))
        before = fingerprint(model)
        good, x = randomized(TinyResNet()), images()
        expected = relevance(good, x).relevance
        for function in (relevance, conservation, saved_bytes):
            with pytest.raises(type(error)) as caught:
                function(model, images(), composite=epsilon(0.1))
            assert caught.value is error
            assert fingerprint(model) == before
            leaf = torch.ones(2, requires_grad=True)
            assert leaf.cosh().detach().sum() > 0  # no mode is left behind
            assert torch.equal(relevance(good, x).relevance, expected)

    def test_after_a_refusal(self) -> None:
        model = self.prepared(nn.Sequential(plain_cnn(), nn.Softmax(1)))
        before = fingerprint(model)
        with torch.inference_mode(), pytest.raises(UnsupportedOperatorError):
            relevance(model, images())
        assert fingerprint(model) == before
