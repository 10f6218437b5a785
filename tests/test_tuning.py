"""Choosing sigma and n: on nets whose answer to noise is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Guard, choose_smoothing
from lrpguard.errors import ConfigurationError, InputRangeError, TrainingModeError
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from lrpguard.tuning import LABEL_KEPT, OTHER_PASSES, SIGMAS, TRIAL_COPIES, TRIAL_IMAGES
from lrpguard.views import changed_views
from tests.support import images, small_net


class FirstPixel(nn.Module):
    """Two classes, told apart by whether the first pixel is above one half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.eval()

    def forward(self, batch: Tensor) -> Tensor:
        z = self.scale * (batch[:, 0, 0, :1] - 0.5)
        return torch.cat([z, -z], dim=1)


def at_distance(distance: float, count: int = 40) -> Tensor:
    """Return images whose first pixel lies so far above one half."""
    batch = images(count, seed=3)
    batch[:, 0, 0, 0] = 0.5 + distance
    return batch


def share_kept(batch: Tensor, sigma: float) -> float:
    noise = [
        gaussian_copies(image_digest(i, key_bytes(0)), 0, TRIAL_COPIES, i.shape) for i in batch
    ]
    first = torch.stack(noise)[:, :, 0, 0, 0]
    return float((batch[:, None, 0, 0, 0] + sigma * first > 0.5).double().mean())


@pytest.mark.parametrize("distance", [0.015, 0.04, 0.09])
def test_takes_the_largest_sigma_that_keeps_labels(distance: float) -> None:
    batch = at_distance(distance)
    choice = choose_smoothing(FirstPixel(), batch)
    bearable = [s for s in SIGMAS if share_kept(batch, s) >= LABEL_KEPT]
    assert choice.smoothing.sigma == max(bearable)
    assert 0 < len(bearable) < len(SIGMAS)
    for sigma, kept in choice.label_kept.items():
        assert kept == pytest.approx(share_kept(batch, sigma))
    assert f"sigma {max(bearable):g} is the largest" in choice.why


def test_says_so_where_even_the_smallest_sigma_is_too_much() -> None:
    choice = choose_smoothing(FirstPixel(), at_distance(0.0001))
    assert choice.smoothing.sigma == SIGMAS[0]
    assert "even it changes too many labels" in choice.why


def test_images_that_differ_little_need_many_copies_and_the_budget_bounds_them() -> None:
    alike = at_distance(0.2)  # the odds of all are the same, so all variance is the noise's
    assert choose_smoothing(FirstPixel(), alike, budget=1000).smoothing.n == 50
    bounded = choose_smoothing(FirstPixel(), alike, budget=OTHER_PASSES + 2 * 11 + 1)
    assert bounded.smoothing.n == 11
    assert "allows 11" in bounded.why
    assert bounded.reliability < 0.9


def test_images_that_differ_much_need_few_copies() -> None:
    apart = images(40, seed=3)
    apart[:, 0, 0, 0] = torch.linspace(0, 1, 40)
    choice = choose_smoothing(FirstPixel(), apart, budget=1000)
    assert TRIAL_COPIES <= choice.smoothing.n < 16
    assert choice.reliability >= 0.95


def test_is_a_function_of_images_and_key_and_uses_no_more_than_it_says() -> None:
    net, batch = small_net(), images(TRIAL_IMAGES + 8)
    choice = choose_smoothing(net, batch)
    assert choice == choose_smoothing(net, batch[:TRIAL_IMAGES])
    assert choice.smoothing.seed == 0
    assert choose_smoothing(net, batch, seed=5).smoothing.seed == 5


def test_a_guard_takes_what_was_chosen() -> None:
    net = small_net()
    guard = Guard(net, smoothing=choose_smoothing(net, images(20)).smoothing)
    assert guard.calibrate(images(200).split(50)).smoothing == guard.smoothing


def test_other_passes_are_the_image_and_its_views() -> None:
    assert OTHER_PASSES == 1 + len(changed_views(images(1)[0])) == 10


def test_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match=f"at least {OTHER_PASSES + 4}"):
        choose_smoothing(small_net(), images(4), budget=OTHER_PASSES + 3)
    with pytest.raises(InputRangeError):
        choose_smoothing(small_net(), images(4) * 3)
    with pytest.raises(TrainingModeError):
        choose_smoothing(small_net().train(), images(4))
