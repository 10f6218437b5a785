"""What a classifier's layers were given, against its own modules."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpguard import normalized
from lrpguard.baselines.base import finite_logits
from lrpguard.baselines.features import activations
from lrpguard.errors import ModelOutputError, UnsupportedModelError
from tests.nets import CLASSES, TinyResNet, images, randomized, torchvision_net
from tests.support import state_of


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def test_penultimate_layer_of_a_residual_network_is_what_its_head_is_given() -> None:
    net = randomized(TinyResNet())
    model = normalized(net, [0.4] * 3, [0.2] * 3)
    batch = images(3)
    state = state_of(model)

    got = activations(model, batch)

    assert state_of(model) == state
    with torch.no_grad():
        body = net.blocks(functional.relu(net.bn(net.stem(model.normalize(batch)))))
        torch.testing.assert_close(got.penultimate, pooled(body), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.logits, model(batch), rtol=0, atol=0)
    assert [layer.shape[1] for layer in got.layers] == [4, 4, 4, 8, 8, 16, 16]
    torch.testing.assert_close(got.layers[-1], got.penultimate, rtol=0, atol=0)


def test_head_may_be_a_convolution_that_is_pooled_after_it() -> None:
    net = torchvision_net("squeezenet1_1")
    batch = images(2, 64)

    got = activations(net, batch)

    with torch.no_grad():
        features = net.get_submodule("features")(batch)
    torch.testing.assert_close(got.penultimate, pooled(features), rtol=1e-12, atol=1e-12)
    assert len(got.layers) == 1 + 8 * 3  # a fire module has three convolutions, and the head


def test_tokens_are_averaged_and_the_head_is_the_last_of_its_width() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, CLASSES)  # as many outputs as there are classes
            self.head = nn.Linear(CLASSES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.first(x.flatten(2).transpose(1, 2))
            logits: Tensor = self.head(input=tokens).mean(1)
            return logits

    net = randomized(Tokens())
    batch = images(2, 4)
    got = activations(net, batch)
    with torch.no_grad():
        wanted = net.first(batch.flatten(2).transpose(1, 2)).mean(1)
    torch.testing.assert_close(got.penultimate, wanted, rtol=1e-12, atol=1e-12)


def test_network_without_a_head_is_refused() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((2, 3))

    with pytest.raises(UnsupportedModelError, match="has 3 outputs"):
        activations(Sums().eval(), images(2))


def test_threads_that_share_a_model_do_not_see_each_other() -> None:
    model = randomized(TinyResNet())
    batches = [images(2, seed=seed) for seed in range(6)]
    alone = [activations(model, batch).penultimate for batch in batches]
    found: dict[int, list[Tensor]] = {i: [] for i in range(6)}

    def work(i: int) -> None:
        found[i] = [activations(model, batches[i]).penultimate for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, wanted in enumerate(alone):
        assert all(torch.equal(got, wanted) for got in found[i])
        assert len(found[i]) == 5


def test_logits_that_are_not_finite_are_refused() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((2, 3)) / x[:, :1].amax((1, 2, 3)).sub(1).clamp_max(0)[:, None]

    batch = images(3).clamp(0.1, 0.9)
    batch[1] = 1
    with pytest.raises(ModelOutputError, match=r"logits of images \[1\] are NaN or infinite"):
        finite_logits(Broken().eval(), batch)
