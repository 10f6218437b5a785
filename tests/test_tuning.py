"""Choosing sigma and n: on nets whose answer to noise is known."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Calibration, Guard, Looks, Smoothing, choose_smoothing
from lrpguard.calibrator import fit_images
from lrpguard.errors import (
    CalibrationSizeError,
    ConfigurationError,
    InputRangeError,
    InputShapeError,
    NonFiniteScoreError,
    TrainingModeError,
)
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


def test_what_is_settled_is_kept_and_the_rest_is_chosen_for_it() -> None:
    batch = at_distance(0.04)
    free = choose_smoothing(FirstPixel(), batch, budget=1000)

    louder = choose_smoothing(FirstPixel(), batch, sigma=0.1, budget=1000)
    assert louder.smoothing.sigma == 0.1 > free.smoothing.sigma
    assert louder.label_kept == {0.1: pytest.approx(share_kept(batch, 0.1))}
    assert louder.why.startswith(f"sigma 0.1 was asked for: {100 * louder.label_kept[0.1]:.1f} %")

    apart = images(40, seed=3)
    apart[:, 0, 0, 0] = torch.linspace(0, 1, 40)
    quiet, loud = (choose_smoothing(FirstPixel(), apart, sigma=s, budget=1000) for s in (0.1, 0.3))
    assert loud.smoothing.n > 1.5 * quiet.smoothing.n  # more noise in what a copy says

    few = choose_smoothing(FirstPixel(), batch, n=3, budget=2)  # no budget for what is settled
    assert few.smoothing == Smoothing(n=3, sigma=free.smoothing.sigma)
    assert "with 3 copies, as asked for" in few.why


class TestGuardChooses:
    """A guard that was given no noise chooses it before it calibrates."""

    CLEAN = images(100)

    @staticmethod
    def twin(guard: Guard, **options: Any) -> Calibration:
        """Return the calibration of a guard that was given the noise."""
        return Guard(guard.model, smoothing=guard.smoothing).calibrate(
            TestGuardChooses.CLEAN.split(50), **options
        )

    def test_on_images_that_fit_and_says_why(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        net = small_net()
        guard = Guard(net)
        assert "noise to be chosen, not calibrated" in repr(guard)
        with caplog.at_level(logging.INFO, "lrpguard"):
            calibration = guard.calibrate(self.CLEAN.split(50))

        trial = torch.stack(fit_images(self.CLEAN, TRIAL_IMAGES))
        choice = choose_smoothing(net, trial)
        assert guard.smoothing == calibration.smoothing == choice.smoothing != Smoothing()
        assert guard.noise_why == calibration.noise_why == choice.why
        assert choice.why in caplog.text
        n, sigma = choice.smoothing.n, choice.smoothing.sigma
        assert f"n={n}, sigma={sigma:g}, chosen on clean images, combined, alpha=0.05" in repr(
            guard
        )
        assert torch.equal(calibration.anomalies, self.twin(guard).anomalies)

        calibration.save(tmp_path / "c.safetensors")
        loaded = Guard(net, calibration=tmp_path / "c.safetensors")
        assert loaded.noise_why == choice.why
        assert torch.equal(loaded(self.CLEAN[:4]).score, guard(self.CLEAN[:4]).score)

    @pytest.mark.parametrize("kind", ["iterator", "loader"])
    def test_whatever_holds_the_images(self, kind: str) -> None:
        parts = self.CLEAN.split(50)
        labelled: list[tuple[Tensor, ...]] = [(part, torch.zeros(len(part))) for part in parts]
        batches: dict[str, Iterable[Any]] = {"iterator": iter(parts), "loader": labelled}
        guard = Guard(small_net())
        calibration = guard.calibrate(batches[kind])
        assert torch.equal(calibration.anomalies, self.twin(guard).anomalies)

    def test_within_the_budget_and_anew_at_the_next_calibration(self) -> None:
        guard = Guard(FirstPixel(), restoration=None)
        alike = at_distance(0.2, 120)
        first = guard.calibrate([alike], budget=OTHER_PASSES + 2 * 5)
        assert first.smoothing.n == 5
        near = guard.calibrate([at_distance(0.015, 120)])
        assert near.smoothing.sigma < first.smoothing.sigma
        assert guard.smoothing == near.smoothing

    def test_n_is_that_of_the_looks(self) -> None:
        looks = Looks.of(10)
        guard = Guard(small_net())
        assert guard.calibrate(self.CLEAN.split(50), looks=looks).copies == looks.copies
        assert guard.smoothing.sigma != Smoothing().sigma

    def test_but_keeps_what_it_was_given(self) -> None:
        net, given = small_net(), Smoothing(n=3, sigma=0.03)
        guard = Guard(net, smoothing=given)
        assert guard.calibrate(self.CLEAN.split(50)).smoothing == given
        assert guard.noise_why is None
        assert "n=3, sigma=0.03, combined" in repr(guard)
        again = Guard(net, calibration=guard.calibration)
        assert again.calibrate(self.CLEAN[:90].split(50)).smoothing == given
        chosen = choose_smoothing(net, images(20))
        told = Guard(net, smoothing=chosen)
        assert told.calibrate(self.CLEAN.split(50)).noise_why == chosen.why

    def test_and_the_papers_detector_keeps_the_papers(self) -> None:
        guard = Guard(small_net())
        assert guard.calibrate([self.CLEAN[:30]], detector="paper").smoothing == Smoothing()
        assert guard.noise_why is None

    def test_a_failure_leaves_the_guard_as_it_was(self) -> None:
        guard = Guard(small_net())
        calibration = guard.calibrate(self.CLEAN.split(50))
        before = guard.smoothing
        with pytest.raises(CalibrationSizeError):
            guard.calibrate([images(30, seed=9)], budget=OTHER_PASSES + 4)
        assert guard.smoothing == before != Smoothing(n=2, sigma=before.sigma)
        assert guard.calibration is calibration
        with pytest.raises(CalibrationSizeError, match="no images"):
            guard.calibrate([])
        with pytest.raises(InputShapeError, match="Resize them first"):
            guard.calibrate([images(4), torch.rand(4, 3, 9, 9)])

    def test_a_budget_for_nothing_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="has its smoothing; leave one out"):
            Guard(small_net(), smoothing=Smoothing(n=2)).calibrate([self.CLEAN], budget=40)
        with pytest.raises(ConfigurationError, match="takes the paper's 50 copies"):
            Guard(small_net()).calibrate([self.CLEAN], detector="paper", budget=40)
        with pytest.raises(ConfigurationError, match="the looks settle 5 copies"):
            Guard(small_net()).calibrate([self.CLEAN], looks=Looks.of(5), budget=40)

    def test_a_model_that_overflows_is_refused_with_the_mend(self) -> None:
        class Overflowing(FirstPixel):
            def forward(self, batch: Tensor) -> Tensor:
                return super().forward(batch).half() * 60000 * 60000

        with pytest.raises(NonFiniteScoreError, match=r"overflows in torch\.float16.*float32"):
            Guard(Overflowing()).calibrate([at_distance(0.3)])


def test_other_passes_are_the_image_and_its_views() -> None:
    assert OTHER_PASSES == 1 + len(changed_views(images(1)[0])) == 12


def test_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match=f"at least {OTHER_PASSES + 4}"):
        choose_smoothing(small_net(), images(4), budget=OTHER_PASSES + 3)
    with pytest.raises(InputRangeError):
        choose_smoothing(small_net(), images(4) * 3)
    with pytest.raises(TrainingModeError):
        choose_smoothing(small_net().train(), images(4))
