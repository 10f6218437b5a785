"""B-LRP: against every mask of a small network enumerated, and the laws of its sampling."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrpguard.attribution import BayesianLrp, attribute, bayesian_relevance
from lrpguard.errors import ConfigurationError, UnsupportedOperatorError
from lrpguard.lrp import COMPOSITES, Composite, relevance
from tests.nets import Between, Whole, epsilon, images, plain_cnn, randomized, rel_l2

RATE = 0.3
HIDDEN = 3


class Small(nn.Module):
    """``dense → ReLU → dropout → dense`` with three hidden values: eight masks."""

    def __init__(self, rate: float = RATE, mask: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, HIDDEN), nn.Linear(HIDDEN, 2)
        self.dropout = nn.Dropout(rate)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x.flatten(1)))
        hidden = self.dropout(hidden) if self.mask is None else hidden * self.mask
        logits: Tensor = self.last(hidden)
        return logits


def small(mask: Tensor | None = None) -> Small:
    """All hidden values are positive at the image of :func:`one`, so that each mask tells."""
    model = randomized(Small(mask=mask), seed=3)
    with torch.no_grad():
        model.first.weight.abs_()
    return model


def one() -> Tensor:
    return images(1, 2, channels=1, seed=5)


def enumerated(composite: Composite, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the relevance [8, 1, 2, 2] and the probability [8] of every mask."""
    maps, chances = [], []
    for kept in product((0.0, 1.0), repeat=HIDDEN):
        mask = torch.tensor(kept, dtype=torch.float64)
        model = small(mask / (1 - RATE))
        maps.append(relevance(model, one(), target, composite=composite).relevance[0])
        chances.append(RATE ** float((1 - mask).sum()) * (1 - RATE) ** float(mask.sum()))
    return torch.stack(maps), torch.tensor(chances, dtype=torch.float64)


@pytest.mark.parametrize("composite", [epsilon(0.1), COMPOSITES["epsilon-plus"]])
def test_mean_and_quantiles_over_every_mask(composite: Composite) -> None:
    target = torch.tensor([1])
    maps, chances = enumerated(composite, target)
    assert float(chances.sum()) == pytest.approx(1)
    mean = (chances.view(-1, 1, 1, 1) * maps).sum(0)
    samples = 600
    method = BayesianLrp(composite, samples=samples, seed=1)
    found = bayesian_relevance(small(), one(), target, method=method)
    spread = (chances.view(-1, 1, 1, 1) * (maps - mean).square()).sum(0).sqrt()
    assert ((found.relevance[0] - mean).abs() < 4 * spread / samples**0.5).all()
    assert found.levels == (0.05, 0.5, 0.95)
    for level, shown in zip(found.levels, found.quantiles[0], strict=True):
        # The share of networks below a quantile map is its level, within 4 deviations.
        margin = 4 * (level * (1 - level) / samples) ** 0.5
        below = (chances.view(-1, 1, 1, 1) * (maps < shown - 1e-12)).sum(0)
        up_to = (chances.view(-1, 1, 1, 1) * (maps <= shown + 1e-12)).sum(0)
        assert (below <= level + margin).all()
        assert (up_to >= level - margin).all()


def test_each_sample_is_one_of_the_masks() -> None:
    target = torch.tensor([0])
    maps, _ = enumerated(epsilon(0.1), target)
    seen = set()
    for seed in range(40):
        method = BayesianLrp(epsilon(0.1), samples=1, seed=seed)
        found = attribute(small(), one(), target, method=method).relevance[0]
        distance = (maps - found).abs().amax((1, 2, 3))
        assert float(distance.min()) < 1e-14
        seen.add(int(distance.argmin()))
    assert len(seen) >= 6


def test_logits_are_the_mean_and_relevance_sums_to_them() -> None:
    """Without biases nothing absorbs relevance, in any sampled network."""
    model = small()
    with torch.no_grad():
        for layer in (model.first, model.last):
            layer.bias.zero_()
    found = attribute(model, one(), torch.tensor([1]), method=BayesianLrp(epsilon(0), samples=7))
    assert float(found.relevance.sum()) == pytest.approx(float(found.logits[0, 1]), rel=1e-12)


def test_explains_the_class_predicted_without_dropout() -> None:
    model, x = small(), one()
    with torch.no_grad():
        target = model(x).argmax(1)
    method = BayesianLrp(samples=3)
    ours = attribute(model, x, method=method).relevance
    assert torch.equal(ours, attribute(model, x, target, method=method).relevance)


class TestMasks:
    METHOD = BayesianLrp(epsilon(0.1), samples=4, layers="[036]", rate=0.2)

    def test_follow_from_the_image_and_not_from_the_batch(self) -> None:
        model, x = randomized(plain_cnn()), images(4)
        found = bayesian_relevance(model, x, method=self.METHOD)
        order = [2, 0]
        again = bayesian_relevance(model, x[order], method=self.METHOD)
        assert torch.equal(again.relevance, found.relevance[order])
        assert torch.equal(again.quantiles, found.quantiles[order])

    def test_differ_by_seed_sample_and_place(self) -> None:
        model, x = randomized(plain_cnn()), images(1)
        maps = [
            attribute(model, x, method=BayesianLrp(samples=n, layers="[036]", rate=0.2, seed=seed))
            for n, seed in ((1, 0), (2, 0), (1, 1))
        ]
        assert rel_l2(maps[0].relevance, maps[1].relevance) > 1e-3
        assert rel_l2(maps[0].relevance, maps[2].relevance) > 1e-3
        dropped: list[Tensor] = []

        def forward(net: Any, x: Tensor) -> Tensor:
            ones = F.relu(net.a(x) * 0 + 1)
            dropped.extend((net.d(ones), net.d(ones)))
            return net.b((dropped[-1] + dropped[-2]).flatten(1))  # type: ignore[no-any-return]

        twice = randomized(
            Whole(forward, a=nn.Conv2d(3, 8, 3), b=nn.Linear(8 * 14 * 14, 2), d=nn.Dropout(0.25))
        )
        attribute(twice, x, method=BayesianLrp(samples=1))
        first, second = (d.detach() for d in dropped[-2:])
        assert not torch.equal(first, second)
        for mask in (first, second):
            assert set(mask.unique().tolist()) == {0.0, 1 / 0.75}
            assert float((mask == 0).double().mean()) == pytest.approx(0.25, abs=0.05)

    def test_channel_wise_dropout_drops_channels(self) -> None:
        dropped: list[Tensor] = []

        def body(net: Any, t: Tensor) -> Tensor:
            dropped.append(net.drop(t * 0 + 1))
            return dropped[-1]

        model = randomized(Between(body, drop=nn.Dropout2d(0.5)))
        attribute(model, images(1), method=BayesianLrp(samples=8))
        del dropped[0]  # the pass that predicts the class
        for mask in dropped:
            assert torch.equal(mask.amax((2, 3)), mask.amin((2, 3)))
        values = torch.stack([m.detach()[0, :, 0, 0] for m in dropped])
        assert set(values.unique().tolist()) == {0.0, 2.0}

    def test_a_rate_overrides_the_networks_own(self) -> None:
        model, x, target = small(), one(), torch.tensor([1])
        own = attribute(model, x, target, method=BayesianLrp(samples=5))
        same = attribute(model, x, target, method=BayesianLrp(samples=5, rate=RATE))
        other = attribute(model, x, target, method=BayesianLrp(samples=5, rate=0.7))
        assert torch.equal(own.relevance, same.relevance)
        assert not torch.equal(own.relevance, other.relevance)

    def test_at_the_inputs_of_named_layers_equals_dropout_before_them(self) -> None:
        model, x = small(), one()
        own = attribute(model, x, method=BayesianLrp(samples=5))
        named = attribute(model, x, method=BayesianLrp(samples=5, layers="last", rate=RATE))
        assert torch.equal(own.relevance, named.relevance)

    def test_attention_weights_are_dropped_too(self) -> None:
        def body(net: Any, t: Tensor) -> Tensor:
            flat = t.flatten(2)
            return net.drop((flat @ flat.mT).softmax(-1)) @ flat  # type: ignore[no-any-return]

        model = randomized(Between(body, drop=nn.Dropout(0.5)))
        maps = [
            attribute(model, images(1), method=BayesianLrp(samples=1, seed=s)).relevance
            for s in range(2)
        ]
        assert rel_l2(maps[0], maps[1]) > 1e-3


@pytest.mark.parametrize("composite", COMPOSITES)
def test_every_preset(composite: str) -> None:
    model = randomized(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.Conv2d(4, 4, 3),
            nn.Dropout(0.2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4 * 12 * 12, 3),
        )
    )
    found = bayesian_relevance(
        model, images(2), method=BayesianLrp(COMPOSITES[composite], samples=4)
    )
    assert found.relevance.isfinite().all()
    assert found.quantiles.shape == (2, 3, 3, 16, 16)
    low, middle, high = found.quantiles.unbind(1)
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert (low < high).any()
    assert not any(part.training for part in model.modules())


class TestRefusals:
    def test_without_dropout(self) -> None:
        with pytest.raises(ConfigurationError, match=r"no dropout.*layers='classifier"):
            attribute(randomized(plain_cnn()), images(), method=BayesianLrp())

    def test_an_inactive_rate_is_no_dropout(self) -> None:
        with pytest.raises(ConfigurationError, match="no dropout"):
            attribute(randomized(Small(rate=0.0)), one(), method=BayesianLrp())

    def test_a_pattern_that_matches_nothing(self) -> None:
        method = BayesianLrp(layers="conv.*", rate=0.1)
        with pytest.raises(ConfigurationError, match=r"named 'conv\.\*'; there are 0, 3, 6, 8\."):
            attribute(randomized(plain_cnn()), images(1), method=method)

    def test_alpha_dropout(self) -> None:
        model = randomized(Between(lambda net, t: net.drop(t), drop=nn.AlphaDropout(0.1)))
        with pytest.raises(UnsupportedOperatorError, match="alpha dropout"):
            attribute(model, images(1), method=BayesianLrp())

    @pytest.mark.parametrize("level", [-0.1, 1.1, float("nan")])
    def test_impossible_quantiles(self, level: float) -> None:
        with pytest.raises(ConfigurationError, match="quantiles"):
            bayesian_relevance(small(), one(), quantiles=(level,))


def test_dropout_of_everything() -> None:
    """A rate of one leaves nothing but biases."""
    found = attribute(randomized(Small(rate=1.0)), one(), method=BayesianLrp(samples=2))
    assert not found.relevance.any()


def test_no_mode_is_left_behind() -> None:
    model, x = randomized(plain_cnn()), images(1)
    expected = relevance(model, x).relevance
    attribute(model, x, method=BayesianLrp(samples=2, layers="*", rate=0.5))
    assert torch.equal(relevance(model, x).relevance, expected)
