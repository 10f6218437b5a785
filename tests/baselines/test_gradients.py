"""GradNorm against its closed form, the input gradient of a linear model, SmoothGrad's variance."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpguard.baselines import baseline
from lrpguard.errors import ConfigurationError, UnsupportedModelError
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from tests.nets import CLASSES, images, plain_cnn, randomized, torchvision_net

BATCH = images(5, 16)
LABELS = torch.zeros(5, dtype=torch.long)


def test_gradnorm_is_the_product_of_two_l1_norms() -> None:
    """The gradient at the weights is the outer product of (p - 1 / K) and the features."""
    net = randomized(plain_cnn())
    with torch.no_grad():
        features = net[:-1](BATCH)
        away = net(BATCH).softmax(1) - 1 / CLASSES
    wanted = -(features.abs().sum(1) * away.abs().sum(1)).log()

    got = baseline("gradnorm").fit(net, BATCH, LABELS).anomaly(BATCH)

    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)


def test_gradnorm_of_a_convolutional_head_is_the_parameters_own_gradient() -> None:
    net = torchvision_net("squeezenet1_1")
    batch = images(2, 64)
    head = net.get_submodule("classifier.1")
    wanted = []
    for image in batch:
        net.zero_grad()
        loss = -functional.log_softmax(net(image[None]), 1).mean()
        loss.backward()
        assert isinstance(head.weight, Tensor)
        assert head.weight.grad is not None
        wanted.append(-math.log(float(head.weight.grad.abs().sum())))
    net.zero_grad()

    got = baseline("gradnorm").fit(net, batch, LABELS[:2]).anomaly(batch)

    assert got.tolist() == pytest.approx(wanted, rel=1e-10)
    assert all(p.grad is None for p in net.parameters())


def test_gradnorm_needs_a_head() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((2, 3))

    with pytest.raises(UnsupportedModelError, match="no last layer"):
        baseline("gradnorm").fit(Sums().eval(), BATCH, LABELS).anomaly(BATCH)


def linear() -> nn.Sequential:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    return randomized(net, seed=2)


def weights_of(net: nn.Sequential) -> Tensor:
    return cast(nn.Linear, net[1]).weight


def test_input_gradient_of_a_linear_model() -> None:
    """The gradient of the cross-entropy is the weights times (p - one-hot)."""
    net = linear()
    with torch.no_grad():
        probabilities = net(BATCH).softmax(1)
        hot = functional.one_hot(probabilities.argmax(1), 3)
        wanted = ((probabilities - hot) @ weights_of(net)).norm(dim=1).log()

    got = baseline("input-gradient").fit(net, BATCH, LABELS).anomaly(BATCH)

    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)


def test_input_gradient_does_not_round_to_zero_where_the_model_is_sure() -> None:
    net = linear()
    with torch.no_grad():
        weights_of(net).mul_(200)
    scores = baseline("input-gradient").fit(net, BATCH, LABELS).anomaly(BATCH)
    assert len(scores.unique()) == 5
    assert float(scores.min()) < math.log(1e-16)


class Cubes(nn.Module):
    """Class 0 has the logit ``sum(x³)``, class 1 none."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.pow(3).flatten(1).sum(1)
        return torch.stack([total, torch.zeros_like(total)], 1)


def test_smoothgrad_variance_of_a_known_gradient() -> None:
    """The gradient of the predicted logit is 3 x²; the first copies' chunk is not all of them."""
    n, sigma = 12, 0.1
    wanted = []
    for image in BATCH:
        noise = gaussian_copies(image_digest(image, key_bytes(4)), 0, n, image.shape).double()
        wanted.append(math.log(float((3 * (image + sigma * noise) ** 2).var(0).mean())))

    made = baseline("smoothgrad-variance", n=n, sigma=sigma, seed=4)
    got = made.fit(Cubes().eval(), BATCH, LABELS).anomaly(BATCH)

    assert got.tolist() == pytest.approx(wanted, rel=1e-5)


def test_smoothgrad_variance_of_a_linear_model_is_zero_and_stays_finite() -> None:
    scores = baseline("smoothgrad-variance", n=3).fit(linear(), BATCH, LABELS).anomaly(BATCH)
    assert float(scores.max()) < math.log(1e-25)


def test_a_variance_needs_two_copies() -> None:
    with pytest.raises(ConfigurationError, match=r"n is 1; expected .* >= 2"):
        baseline("smoothgrad-variance", n=1)
