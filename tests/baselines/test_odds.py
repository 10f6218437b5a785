"""The Odds are Odd: shifts that are known, statistics by hand, shrinkage at many classes."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpguard.baselines import baseline
from lrpguard.baselines.copies import Noise, noisy_copies
from lrpguard.baselines.odds import Odds, pair_statistics
from lrpguard.errors import ConfigurationError, NotCalibratedError
from tests.nets import randomized
from tests.support import images


def linear(classes: int = 4) -> nn.Sequential:
    head = nn.Linear(3 * 8 * 8, classes)
    net = randomized(nn.Sequential(nn.Flatten(), head), seed=3)
    with torch.no_grad():
        head.bias.copy_(-0.5 * head.weight.sum(1))  # each class is predicted for some images
    return net


def middling(batch: int, seed: int) -> Tensor:
    """Return images in [0.3, 0.7], which small noise does not take out of [0, 1]."""
    return 0.3 + 0.4 * images(batch, seed=seed, dtype=torch.float64)


def test_score_on_a_linear_model_where_the_shift_is_the_noise_times_the_weights() -> None:
    model, noises = linear(), (Noise("gaussian", 0.02), Noise("sign", 0.05))
    clean, test = middling(80, 1), middling(6, 2)
    made = Odds(noises=noises, n=3, prior=0, seed=7)
    weights = cast(nn.Linear, model[1]).weight.detach()

    def by_hand(batch: Tensor) -> tuple[np.ndarray, np.ndarray]:
        predicted = model(batch).argmax(1).numpy()
        shifts = np.zeros((len(batch), 2, 4))
        for i, image in enumerate(batch):
            for j, noise in enumerate(noises):
                copies = torch.cat(list(noisy_copies(image, noise, n=3, seed=7, first=3 * j)))
                mean = (copies - image).flatten(1).mean(0)
                moved = (weights @ mean).numpy()
                shifts[i, j] = moved - moved[predicted[i]]
        return shifts, predicted

    shifts, predicted = by_hand(clean)
    assert min(np.bincount(predicted, minlength=4)) >= 2
    wanted, fallen = [], []
    for shift, y in zip(*by_hand(test), strict=True):
        own = shifts[predicted == y]
        spread = own.std(0)
        spread[:, y] = 1
        z = ((shift - own.mean(0)) / spread).mean(0)
        z[y] = -np.inf
        wanted.append(z.max())
        fallen.append(z.argmax())

    fitted = made.fit(model, clean, torch.zeros(80, dtype=torch.long))

    assert fitted.anomaly(test).tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert fitted.restore(test).tolist() == fallen
    assert fitted.passes == "7 forward"


def test_noisy_images_are_clipped() -> None:
    class Beyond(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            outside = (x - x.clamp(0, 1)).abs().flatten(1).sum(1)
            return torch.stack([outside, 1 - outside], 1)

    fitted = baseline("odds", n=2).fit(
        Beyond().eval(), images(10, seed=1).round(), torch.zeros(10, dtype=torch.long)
    )
    assert torch.equal(fitted.anomaly(images(3).round()), torch.zeros(3, dtype=torch.float64))


class TestStatistics:
    SHIFTS = torch.tensor([[0.0, 1, 5], [0, 3, 9], [2, 0, 7]], dtype=torch.float64)[:, None]
    PREDICTED = torch.tensor([0, 0, 1])

    def test_without_prior_are_those_of_the_pair(self) -> None:
        shifts = torch.cat([self.SHIFTS, self.SHIFTS + 1])
        shifts.scatter_(2, torch.tensor([0, 0, 1, 0, 0, 1])[:, None, None], 0)
        third = torch.tensor([[[4.0, 6.0, 0.0]], [[8.0, 6.0, 0.0]]], dtype=torch.float64)
        got = pair_statistics(
            torch.cat([shifts, third]), torch.tensor([0, 0, 1, 0, 0, 1, 2, 2]), prior=0
        )
        assert float(got.mean[0, 0, 1]) == pytest.approx(2.5)
        assert float(got.std[0, 0, 1]) == pytest.approx(np.std([1, 3, 2, 4]))
        assert float(got.mean[0, 2, 0]) == pytest.approx(6)
        assert float(got.std[0, 2, 0]) == pytest.approx(2)
        assert float(got.std[0, 2, 1]) == pytest.approx(1e-6)  # never varied

    def test_with_prior_by_hand(self) -> None:
        """Six shifts: 1, 5, 3, 9, 2, 7; their mean is 4.5 and their variance 95 / 12."""
        got = pair_statistics(self.SHIFTS, self.PREDICTED, prior=2)
        everyone, variance = 4.5, 95 / 12
        of_1 = (1 + 3 + 2 * everyone) / 4  # two images were not predicted 1
        spread_1 = ((1 - of_1) ** 2 + (3 - of_1) ** 2 + 2 * variance) / 4
        of_01 = (1 + 3 + 2 * of_1) / 4
        spread_01 = ((1 - of_01) ** 2 + (3 - of_01) ** 2 + 2 * spread_1) / 4
        assert float(got.mean[0, 0, 1]) == pytest.approx(of_01)
        assert float(got.std[0, 0, 1]) == pytest.approx(spread_01**0.5)
        # No image was predicted 2: the statistics of z = 1 hold.
        assert float(got.mean[0, 2, 1]) == pytest.approx(of_1)
        assert float(got.std[0, 2, 1]) == pytest.approx(spread_1**0.5)

    def test_many_images_overrule_the_prior(self) -> None:
        generator = torch.Generator().manual_seed(0)
        predicted = torch.arange(6000) % 3
        shifts = torch.randn(6000, 1, 3, generator=generator, dtype=torch.float64)
        shifts[predicted == 2, :, 0] += 5
        shifts.scatter_(2, predicted[:, None, None], 0)
        got = pair_statistics(shifts, predicted, prior=5)
        assert float(got.mean[0, 2, 0]) == pytest.approx(5, abs=0.1)
        assert float(got.mean[0, 1, 0]) == pytest.approx(0, abs=0.1)
        assert float(got.std[0, 2, 0]) == pytest.approx(1, abs=0.1)

    def test_paper_needs_two_images_of_each_class(self) -> None:
        with pytest.raises(ConfigurationError, match="class 2 is predicted for 0 of the 3"):
            pair_statistics(self.SHIFTS, self.PREDICTED, prior=0)


def test_a_thousand_classes_and_few_images_give_scores_of_fresh_images_like_the_fits() -> None:
    model = linear(1000)
    clean, test = middling(100, 1), middling(100, 2)
    fitted = baseline("odds", n=2).fit(model, clean, torch.zeros(100, dtype=torch.long))
    first, second = fitted.anomaly(clean), fitted.anomaly(test)
    assert float(second.median() / first.median()) < 1.5
    with pytest.raises(ConfigurationError, match="the paper's statistics need"):
        baseline("odds", n=2, prior=0).fit(model, clean, torch.zeros(100, dtype=torch.long))


def test_restore_needs_a_fit_and_never_returns_the_predicted_class() -> None:
    model = linear()
    clean = middling(40, 1)
    with pytest.raises(NotCalibratedError):
        Odds().restore(clean)
    fitted = Odds(n=2).fit(model, clean, torch.zeros(40, dtype=torch.long))
    assert not bool((fitted.restore(clean) == model(clean).argmax(1)).any())
    anomaly, label = fitted.anomaly_and_label(clean)
    assert torch.equal(anomaly, fitted.anomaly(clean))
    assert torch.equal(label, fitted.restore(clean))


@pytest.mark.parametrize("options", [{"n": 0}, {"noises": ()}, {"prior": -1}])
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        baseline("odds", **options)
