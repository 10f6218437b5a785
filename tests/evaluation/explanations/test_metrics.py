"""Figures of merit of relevance maps, worked out by hand, and against Quantus."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.explanations.metrics import (
    conservation_gap,
    deletion_curves,
    gini_index,
    max_sensitivity,
    randomised,
    rank_correlation,
    relevance_gain,
)
from tests.nets import randomized
from tests.support import images, small_net


def values(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)[None]


class Sum(nn.Module):
    """Logits (sum of the pixels, 0): removing pixels moves one logit by hand-countable steps."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        return torch.stack([total, torch.zeros_like(total)], 1)


def probability(total: float) -> float:
    return 1 / (1 + math.exp(-total))


class TestDeletion:
    image = torch.tensor([[1.0, 0.0], [0.8, 0.2]])[None, None]  # mean 0.5

    def test_pixels_go_in_the_order_of_their_relevance(self) -> None:
        relevance = values([[3.0, -1.0], [2.0, 0.0]])
        most, least = deletion_curves(
            Sum().eval(), self.image, relevance, torch.tensor([0]), fractions=(0.0, 0.25, 0.5, 1.0)
        )
        # 1 -> 0.5, then 0.8 -> 0.5; the other way 0 -> 0.5, then 0.2 -> 0.5; all: 4 * 0.5.
        expected = [probability(t) for t in (2.0, 1.5, 1.2, 2.0)]
        assert most[0].tolist() == pytest.approx(expected)
        expected = [probability(t) for t in (2.0, 2.5, 2.8, 2.0)]
        assert least[0].tolist() == pytest.approx(expected)
        gain = (0 + probability(2.5) - probability(1.5) + probability(2.8) - probability(1.2)) / 4
        assert float(relevance_gain(most, least)) == pytest.approx(gain)

    def test_a_map_upside_down_has_the_opposite_gain(self) -> None:
        model, batch = small_net(), images(3)
        label = model(batch).argmax(1)
        maps = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
        gains = [
            relevance_gain(*deletion_curves(model, batch, sign * maps, label)) for sign in (1, -1)
        ]
        assert torch.allclose(gains[0], -gains[1])

    def test_ties_go_in_reading_order_both_ways(self) -> None:
        most, least = deletion_curves(
            Sum().eval(), self.image, torch.zeros(1, 2, 2), torch.tensor([0]), fractions=(0.25,)
        )
        assert most.tolist() == least.tolist() == [[pytest.approx(probability(1.5))]]

    def test_all_channels_of_a_pixel_go_to_their_own_mean(self) -> None:
        image = torch.tensor([[[1.0, 0.0]], [[0.0, 0.5]]])[None]
        most, _ = deletion_curves(
            Sum().eval(), image, values([[1.0, 0.0]]), torch.tensor([0]), fractions=(0.5,)
        )
        assert float(most) == pytest.approx(probability(0.5 + 0.0 + 0.25 + 0.5))

    def test_a_share_above_one_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="each must lie in"):
            deletion_curves(
                Sum(), self.image, torch.zeros(1, 2, 2), torch.tensor([0]), fractions=(1.5,)
            )


def test_max_sensitivity_is_the_largest_relative_change() -> None:
    maps = values([[3.0, 4.0]])
    moved = torch.stack([values([[3.0, 5.0]]), values([[0.0, 4.0]])])
    assert max_sensitivity(maps, moved).tolist() == [pytest.approx(3 / 5)]


def test_conservation_gap_is_relative_to_the_logit() -> None:
    maps = torch.cat([values([[3.0, 4.0]]), values([[-1.0, -1.0]])])
    assert conservation_gap(maps, torch.tensor([10.0, -2.0])).tolist() == pytest.approx([0.3, 0.0])


def test_rank_correlation_is_spearmans_of_absolute_values() -> None:
    maps = torch.cat([values([[1.0, -2.0, 3.0]]), values([[1.0, -2.0, 3.0]])])
    others = torch.cat([values([[-10.0, 20.0, 900.0]]), values([[3.0, 1.0, -2.0]])])
    # Ranks 1 2 3 against 3 1 2: 1 - 6 * (4 + 1 + 1) / (3 * 8) = -0.5.
    assert rank_correlation(maps, others).tolist() == pytest.approx([1.0, -0.5])
    assert math.isnan(float(rank_correlation(values([[1.0, 1.0]]), values([[1.0, 2.0]]))))


def test_gini_index_by_hand() -> None:
    maps = torch.cat([values([[1.0, 1.0, -1.0, 1.0]]), values([[0.0, 0.0, -5.0, 0.0]])])
    # All alike: 0. One of four: 1 - 2 * (4 - 4 + 0.5) / 4 = 0.75.
    assert gini_index(maps).tolist() == pytest.approx([0.0, 0.75])
    assert gini_index(torch.zeros(1, 2, 2)).tolist() == [0.0]


def test_a_randomised_model_has_the_same_weights_in_another_order() -> None:
    model = small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = randomised(model, seed=1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        shuffled = other.state_dict()[name]
        assert torch.equal(shuffled.flatten().sort().values, value.flatten().sort().values)
    first, second = (net.state_dict()["0.weight"] for net in (other, randomised(model, seed=1)))
    assert not torch.equal(first, before["0.weight"])
    assert torch.equal(first, second)


class TestQuantus:
    """The same figures by Quantus, where it is installed."""

    @pytest.fixture
    def quantus(self) -> Any:
        return pytest.importorskip(
            "quantus", reason="needs lrpguard[quantus]", exc_type=ImportError
        )

    def test_sparseness(self, quantus: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        maps = torch.randn(4, 8, 8, generator=generator)
        batch = images(4)
        metric = quantus.Sparseness(disable_warnings=True, normalise=False)
        theirs = metric(
            model=small_net(),
            x_batch=batch.numpy(),
            y_batch=np.zeros(4, dtype=int),
            a_batch=maps[:, None].numpy(),
            device="cpu",
        )
        assert gini_index(maps).tolist() == pytest.approx(theirs, abs=1e-5)

    def test_pixel_flipping(self, quantus: Any) -> None:
        # One channel: Quantus removes the channels of a pixel one by one.
        model = randomized(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), dtype=torch.float32)
        batch = images(2).mean(1, keepdim=True)
        batch = batch - batch.mean((2, 3), keepdim=True)
        label = model(batch).argmax(1)
        generator = torch.Generator().manual_seed(4)
        maps = torch.randn(2, 8, 8, generator=generator)
        metric = quantus.PixelFlipping(
            features_in_step=16,
            perturb_baseline=0.0,
            normalise=False,
            disable_warnings=True,
        )
        theirs = metric(
            model=model,
            x_batch=batch.numpy(),
            y_batch=label.numpy(),
            a_batch=maps[:, None].numpy(),
            device="cpu",
            softmax=True,
        )
        # Quantus puts 0 where we put the mean of each channel, which is 0 in these images.
        ours, _ = deletion_curves(
            model,
            batch,
            maps,
            label,
            fractions=(0.25, 0.5, 0.75, 1.0),
        )
        np.testing.assert_allclose(ours.numpy(), np.array(theirs), atol=1e-5)
