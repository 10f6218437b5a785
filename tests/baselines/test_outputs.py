"""Baselines of one forward pass, on logits written out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from lrpguard.baselines import baseline
from lrpguard.errors import ConfigurationError

LOGITS = [[2.0, 0.0, 0.0], [-1.0, 3.0, 1.0]]
CLEAN, LABELS = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.long)


class Pixels(nn.Module):
    """A model whose logits are the three channels of the first pixel, times 10, minus 5."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * images[:, :, 0, 0] - 5


def shown(logits: list[list[float]]) -> Tensor:
    """Return images [B, 3, 2, 2] for which :class:`Pixels` gives these logits."""
    images = torch.zeros(len(logits), 3, 2, 2, dtype=torch.float64)
    images[:, :, 0, 0] = (torch.tensor(logits, dtype=torch.float64) + 5) / 10
    return images


def score(name: str, logits: list[list[float]], **options: float) -> list[float]:
    fitted = baseline(name, **options).fit(Pixels().eval(), CLEAN, LABELS)
    return fitted.anomaly(shown(logits)).tolist()


def test_max_softmax_is_the_log_odds_of_one_minus_the_largest_probability() -> None:
    probabilities = torch.tensor(LOGITS, dtype=torch.float64).softmax(1).amax(1).tolist()
    wanted = [math.log((1 - p) / p) for p in probabilities]
    assert score("max-softmax", LOGITS) == pytest.approx(wanted, rel=1e-12)


def test_max_softmax_still_ranks_images_of_which_the_model_is_sure() -> None:
    class Sure(Pixels):
        def forward(self, images: Tensor) -> Tensor:
            return 20 * super().forward(images)

    fitted = baseline("max-softmax").fit(Sure().eval(), CLEAN, LABELS)
    surer, less = fitted.anomaly(shown([[4.0, 0.0, 0.0], [2.0, 0.0, 0.0]])).tolist()
    assert surer == pytest.approx(math.log(2) - 80, rel=1e-6)
    assert less == pytest.approx(math.log(2) - 40, rel=1e-6)


def test_max_logit_is_negated() -> None:
    assert score("max-logit", LOGITS) == pytest.approx([-2, -3], abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_energy_is_minus_log_sum_exp(temperature: float) -> None:
    wanted = [
        -temperature * math.log(sum(math.exp(value / temperature) for value in row))
        for row in LOGITS
    ]
    assert score("energy", LOGITS, temperature=temperature) == pytest.approx(wanted, rel=1e-12)


def test_energy_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(ConfigurationError, match="temperature is 0"):
        baseline("energy", temperature=0)
