"""The engine: right on every architecture it claims, and plain about what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpguard
from lrpguard.errors import (
    InputShapeError,
    ModelError,
    ModelOutputError,
    UnsupportedOperatorError,
)
from lrpguard.lrp import Composite, Relevance, conservation, relevance
from lrpguard.lrp.engine import saved_bytes
from tests.nets import (
    CLASSES,
    TinyResNet,
    Whole,
    epsilon,
    gradient_times_input,
    images,
    plain_cnn,
    randomized,
    rel_l2,
    torchvision_net,
)

RELU_NETS = ["vgg11", "vgg11_bn", "resnet18", "squeezenet1_1", "googlenet", "densenet121"]
LAW = 1e-10
"""Bar of the conservation law in float64; measured: 5e-15."""


def assert_conserves(model: nn.Module, x: Tensor, composite: Composite) -> Relevance:
    """The law holds, and its input term is the relevance that an ordinary call returns."""
    books = conservation(model, x, composite=composite)
    result = relevance(model, x, composite=composite)
    assert books.residual <= LAW
    assert books.input == pytest.approx(float(result.relevance.sum()), rel=1e-10)
    assert books.logit == pytest.approx(float(result.logits.amax(1).sum()), rel=1e-12)
    return result


class TestArchitectures:
    @pytest.mark.parametrize("name", RELU_NETS)
    def test_conserves_and_equals_gradient_times_input(self, name: str) -> None:
        model, x = torchvision_net(name), images(2, 32 if "vgg" in name else 64)
        result = assert_conserves(model, x, epsilon(0))
        assert rel_l2(result.relevance, gradient_times_input(model, x)) <= 1e-12
        with torch.no_grad():
            assert torch.equal(result.logits, model(x))

    @pytest.mark.parametrize("stabilizer", [1e-9, 1e-3, 0.1])
    @pytest.mark.parametrize("name", [*RELU_NETS, "mobilenet_v2"])
    def test_conserves_with_a_stabilizer(self, name: str, stabilizer: float) -> None:
        model, x = torchvision_net(name, seed=1), images(2, 32, seed=1)
        assert_conserves(model, x, epsilon(stabilizer))

    def test_mobilenet_equals_gradient_times_input_where_relu6_does_not_saturate(self) -> None:
        model, x = torchvision_net("mobilenet_v2"), images(2, 32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.6)
        result = assert_conserves(model, x, epsilon(0))
        assert rel_l2(result.relevance, gradient_times_input(model, x)) <= 1e-12
        with torch.no_grad():
            assert torch.equal(result.logits, model(x))

    def test_relu6_leaves_the_logits_bit_equal_where_it_saturates(self) -> None:
        model, x = torchvision_net("mobilenet_v2"), images(2, 32)
        with torch.no_grad():
            assert torch.equal(relevance(model, x).logits, model(x))

    def test_option_a_resnet(self) -> None:
        model, x = randomized(TinyResNet()), images(3)
        result = assert_conserves(model, x, epsilon(0))
        assert rel_l2(result.relevance, gradient_times_input(model, x)) <= 1e-12
        assert_conserves(model, x, epsilon(0.1))

    def test_float32_keeps_to_float64(self) -> None:
        model, x = torchvision_net("resnet18"), images(2, 48)
        exact = relevance(model, x, composite=epsilon(1e-3)).relevance
        single = relevance(model.float(), x.float(), composite=epsilon(1e-3)).relevance
        assert rel_l2(single.double(), exact) < 1e-4

    def test_a_network_that_only_reshapes(self) -> None:
        x = images(2, 4)
        result = relevance(nn.Flatten().eval(), x)
        assert torch.equal(result.relevance.flatten(1).amax(1), x.flatten(1).amax(1))
        assert result.relevance.count_nonzero() == 2


class TestTarget:
    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
    def test_explains_the_class_of_each_image(self, dtype: torch.dtype) -> None:
        model, x = randomized(TinyResNet()), images(3)
        target = torch.tensor([5, 0, 2])
        ours = relevance(model, x, target.to(dtype), composite=epsilon(0)).relevance
        assert rel_l2(ours, gradient_times_input(model, x, target)) <= 1e-12
        books = conservation(model, x, target, composite=epsilon(0.1))
        assert books.residual <= LAW

    def test_the_default_is_the_predicted_class(self) -> None:
        model, x = randomized(TinyResNet()), images(3)
        with torch.no_grad():
            predicted = model(x).argmax(1)
        assert torch.equal(relevance(model, x).relevance, relevance(model, x, predicted).relevance)


class TestBatch:
    def test_images_do_not_see_each_other(self) -> None:
        model, x = randomized(TinyResNet()), images(5)
        together = relevance(model, x, composite=epsilon(0.1))
        alone = [relevance(model, x[i : i + 1], composite=epsilon(0.1)) for i in range(5)]
        assert rel_l2(torch.cat([r.relevance for r in alone]), together.relevance) < 1e-12
        order = torch.tensor([3, 1, 4, 0, 2])
        shuffled = relevance(model, x[order], composite=epsilon(0.1)).relevance
        assert rel_l2(shuffled, together.relevance[order]) < 1e-12

    def test_strides_do_not_matter(self) -> None:
        model, x = randomized(TinyResNet()), images(2)
        expected = relevance(model, x).relevance
        last = x.to(memory_format=torch.channels_last)
        assert rel_l2(relevance(model, last).relevance, expected) < 1e-12
        shared = x[:1].expand(4, -1, -1, -1)
        assert rel_l2(relevance(model, shared).relevance[3:], expected[:1]) < 1e-12

    def test_the_callers_images_stay_as_they_are(self) -> None:
        x = images(2)
        before = x.clone()
        net = plain_cnn()
        model = randomized(Whole(lambda s, x: s.net(x.sub_(0.5).div_(0.25)), net=net))
        same = Whole(lambda s, x: s.net((x - 0.5) / 0.25), net=net).eval()
        ours = relevance(model, x)
        assert torch.equal(x, before)
        assert torch.equal(ours.relevance, relevance(same, x).relevance)
        attached = x.clone().requires_grad_()
        result = relevance(model, attached)
        assert attached.grad is None
        assert not result.relevance.requires_grad
        assert not result.logits.requires_grad


class TestNormalization:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

    def test_relevance_is_taken_after_a_known_normalisation(self) -> None:
        network, x = randomized(plain_cnn()), images()
        model = lrpguard.normalized(network, self.mean, self.std)
        inside = model.normalize(x)
        ours = relevance(model, x, composite=epsilon(0.1))
        expected = relevance(network, inside, composite=epsilon(0.1))
        assert torch.equal(ours.relevance, expected.relevance)
        with torch.no_grad():
            assert torch.equal(ours.logits, model(x))
        assert_conserves(model, x, epsilon(0.1))

    def test_wrong_channels_are_named(self) -> None:
        model = lrpguard.normalized(randomized(plain_cnn()), self.mean, self.std)
        with pytest.raises(InputShapeError, match=r"\[2, 1, 16, 16\]"):
            relevance(model, images(channels=1))


class TestZeroImage:
    @pytest.mark.parametrize("stabilizer", [0, 1e-9, 0.1])
    @pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "mobilenet_v2"])
    def test_has_no_relevance_and_no_nan(self, name: str, stabilizer: float) -> None:
        model = torchvision_net(name, dtype=torch.float32)
        x = torch.zeros(1, 3, 32, 32)
        result = relevance(model, x, composite=epsilon(stabilizer))
        assert result.logits.isfinite().all()
        assert not result.relevance.any()
        books = conservation(model.double(), x.double(), composite=epsilon(stabilizer))
        assert books.input == 0
        assert books.residual <= LAW


@contextmanager
def refused(says: str) -> Iterator[None]:
    with pytest.raises(ModelOutputError, match=says):
        yield


class TestOutput:
    @pytest.mark.parametrize(
        ("output", "says"),
        [
            (lambda z: (z, z), "returned a tuple.*as one tensor.*Wrap"),
            (lambda z: {"out": z}, "returned a dict"),
            (lambda z: None, "returned a NoneType"),
            (lambda z: z[:, 0], r"float64 of shape \[2\] for 2 image.*\[2, K\]"),
            (lambda z: z[:, :1], r"shape \[2, 1\].*K >= 2"),
            (lambda z: z[:1], r"shape \[1, 6\] for 2 image"),
            (lambda z: z[:, :, None], r"shape \[2, 6, 1\]"),
            (lambda z: z.argmax(1), r"int64 of shape \[2\]"),
            (lambda z: z > 0, r"bool of shape \[2, 6\]"),
        ],
    )
    def test_refuses_what_is_not_logits(self, output: Callable[[Tensor], Any], says: str) -> None:
        model = randomized(Whole(lambda s, x: output(s.net(x)), net=plain_cnn()))
        for function in (relevance, conservation, saved_bytes):
            with refused(says):
                function(model, images())

    @pytest.mark.parametrize("stabilizer", [0, 0.1])
    def test_refuses_a_forward_without_gradients(self, stabilizer: float) -> None:
        def forward(self: Any, x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = self.net(x)
            return logits

        model = randomized(Whole(forward, net=plain_cnn()))
        with pytest.raises(ModelError, match="no_grad"):
            relevance(model, images(), composite=epsilon(stabilizer))

    def test_refuses_logits_that_do_not_depend_on_the_images(self) -> None:
        bias = nn.Parameter(torch.ones(CLASSES))
        model = randomized(Whole(lambda s, x: s.bias.expand(len(x), -1), bias=bias))
        with refused("do not depend on the input"):
            relevance(model, images())


class TestShape:
    @pytest.mark.parametrize(
        ("channels", "says"),
        [
            (1, r"1 channel\(s\), shape \[2, 1, 16, 16\].*takes 3.*to RGB"),
            (4, r"4 channel\(s\).*takes 3"),
        ],
    )
    def test_wrong_channels_are_named(self, channels: int, says: str) -> None:
        with pytest.raises(InputShapeError, match=says):
            relevance(randomized(plain_cnn()), images(channels=channels))

    def test_a_grey_model_is_told_so(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 2))
        with pytest.raises(InputShapeError, match=r"takes 1.*to 1 channel"):
            relevance(randomized(model), images())

    def test_other_errors_of_the_model_pass_unchanged(self) -> None:
        boom = RuntimeError("boom")

        def forward(self: Any, x: Tensor) -> Tensor:
            raise boom

        with pytest.raises(RuntimeError, match="boom") as caught:
            relevance(Whole(forward).eval(), images())
        assert caught.value is boom
        assert caught.value.__cause__ is None  # a cause of itself sends log handlers round in rings

    def test_out_of_memory_is_not_taken_for_wrong_channels(self) -> None:
        def forward(self: Any, x: Tensor) -> Tensor:
            if x.shape[0] > 1:
                raise torch.OutOfMemoryError("out of memory")
            logits: Tensor = self.net(x.expand(-1, 3, -1, -1))
            return logits

        model = randomized(Whole(forward, net=plain_cnn()))  # grey images for a colour stem
        relevance(model, images(1, channels=1))
        with pytest.raises(torch.OutOfMemoryError):
            relevance(model, images(2, channels=1))


class TestSavedBytes:
    def test_counts_activations_by_image_and_no_weights(self) -> None:
        model = randomized(
            nn.Sequential(nn.Flatten(), nn.Linear(768, 500), nn.ReLU(), nn.Linear(500, 2))
        )
        one = saved_bytes(model, images(1))
        assert saved_bytes(model, images(4)) == 4 * one
        assert 768 * 8 < one < 768 * 8 * 3 + 500 * 8 * 3

    def test_counts_what_a_stabilizer_keeps(self) -> None:
        model = randomized(TinyResNet())
        plain = saved_bytes(model, images(), composite=epsilon(0))
        assert saved_bytes(model, images(), composite=epsilon(0.1)) > plain

    def test_refuses_and_names_a_custom_function(self) -> None:
        class Guided(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return F.relu(x)

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> Tensor:
                return F.relu(gradients[0])

        def forward(self: Any, x: Tensor) -> Tensor:
            logits: Tensor = self.net[1:](Guided.apply(self.net[0](x)))
            return logits

        model = randomized(Whole(forward, net=plain_cnn()))
        with pytest.raises(UnsupportedOperatorError, match=r"Guided|autograd\.Function"):
            saved_bytes(model, images())
