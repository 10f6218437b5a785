"""A score's distance from its clean median, either way."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from lrpguard.baselines import Baseline, baseline
from lrpguard.baselines.two_sided import TwoSided
from lrpguard.errors import CalibrationSizeError


@dataclass(frozen=True)
class FirstPixel:
    """The first pixel is the score."""

    name: str = "first-pixel"
    attack_free: bool = True
    saw: tuple[str, ...] = ()
    passes: str = "0 forward"
    fitted: list[str] = field(default_factory=list)

    def fit(self, model: nn.Module, images: Tensor, labels: Tensor) -> Baseline:
        return self

    def anomaly(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, 0].double()


def shown(pixels: Tensor) -> Tensor:
    return pixels.double()[:, None, None, None].expand(-1, 3, 2, 2)


def test_scales_below_and_above_are_taken_apart() -> None:
    clean = torch.linspace(0, 1, 101) ** 2  # median 0.25, 5 % quantiles 0.0025 and 0.9025
    made = TwoSided(inner=FirstPixel()).fit(nn.Identity(), shown(clean), torch.zeros(101))

    got = made.anomaly(shown(torch.tensor([0.25, 0.9025, 0.0025, 1.0, 0.0])))

    z = 1.6449
    wanted = [0, z, z, z * 0.75 / 0.6525, z * 0.25 / 0.2475]
    assert got.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert made.name == "first-pixel-two-sided"


def test_score_that_never_varied_still_gives_a_finite_distance() -> None:
    made = TwoSided(inner=FirstPixel()).fit(
        nn.Identity(), shown(torch.full((30,), 0.5)), torch.zeros(30)
    )
    same, other = made.anomaly(shown(torch.tensor([0.5, 0.6]))).tolist()
    assert same == 0
    assert 1 < other < float("inf")


def test_too_few_images_are_refused() -> None:
    with pytest.raises(CalibrationSizeError, match="was given 19 images"):
        TwoSided(inner=FirstPixel()).fit(nn.Identity(), shown(torch.rand(19)), torch.zeros(19))


def test_options_are_those_of_the_inner_baseline() -> None:
    made = baseline("energy-two-sided", temperature=3)
    assert isinstance(made, TwoSided)
    assert "temperature=3" in repr(made.inner)
