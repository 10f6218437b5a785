"""The probe of the ways to run copies: it takes the fastest that agrees, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Calibration, Guard, Smoothing
from lrpguard.copies import PLAIN, Way
from lrpguard.errors import CalibrationMismatchError, ConfigurationError
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from lrpguard.preparing import distances, probe
from tests.support import FAST, images, paper_guard, small_net, state_of, times

KEY = key_bytes(0)
FLAGS = (
    "torch.backends.cudnn.allow_tf32",
    "torch.backends.cudnn.benchmark",
    "torch.backends.cudnn.deterministic",
    "torch.backends.mkldnn.flags",
    "torch.get_num_threads()",
    "torch.get_default_dtype()",
    "torch.is_autocast_enabled('cpu')",
    "torch.random.get_rng_state().sum()",
)
"""State of torch's that is not the probe's."""


class Seen(nn.Module):
    """A network that notes in which memory format its batches come."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.last: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            self.last.append(x.is_contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.net(x)
        return logits


class OneOrder(nn.Module):
    """A network whose activations must lie by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 6)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(x).view(len(x), -1))
        return logits


class OtherAnswer(nn.Module):
    """A network that answers otherwise where the pixels of a place lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x * (1.0 if x.is_contiguous() else 1.01))
        return logits


class Tipped(nn.Module):
    """A network of which rounding, by pixel, tips the one ReLU for one image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.direct, self.hidden, self.out = (
            nn.Linear(image.numel(), 4),
            nn.Linear(image.numel(), 1),
            nn.Linear(1, 4),
        )
        with torch.no_grad():
            self.hidden.bias.copy_(-(1 + 5e-6) * (self.hidden.weight @ image.flatten()))

    def forward(self, x: Tensor) -> Tensor:
        flat = (x * (1.0 if x.is_contiguous() else 1 + 1e-5)).flatten(1)
        logits: Tensor = self.direct(flat) + self.out(self.hidden(flat).relu())
        return logits


class TestProbe:
    def test_of_a_real_run(self) -> None:
        found = probe(small_net(), images(2), FAST, KEY, repeats=2)
        assert [t.way.memory_format for t in found.trials] == ["contiguous", "channels_last"]
        assert all(t.agrees and t.seconds > 0 and t.copies == FAST.n for t in found.trials)
        assert found.trials[0].relevance == 0
        assert found.way in [t.way for t in found.trials]
        assert found.device == "cpu"
        assert "times the plain way's; relevance within" in str(found)

    @pytest.mark.parametrize(("ratio", "taken"), [(0.7, "channels_last"), (0.97, "contiguous")])
    def test_the_faster_is_taken(
        self, monkeypatch: pytest.MonkeyPatch, ratio: float, taken: str
    ) -> None:
        times(monkeypatch, ratio)
        found = probe(small_net(), images(1), FAST, KEY)
        assert found.way.memory_format == taken
        assert found.trials[1].ratio == pytest.approx(ratio)

    def test_what_disagrees_is_not_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times(monkeypatch, 0.1)
        found = probe(OtherAnswer().eval(), images(1), FAST, KEY)
        assert found.way.memory_format == "contiguous"
        assert not found.trials[1].agrees
        assert "too far" in str(found)

    def test_one_tipped_relu_is_no_disagreement(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times(monkeypatch, 0.5)
        image = images(1)
        noise = gaussian_copies(image_digest(image[0], KEY), 0, FAST.n, image.shape[1:])
        copies = image + FAST.sigma * noise
        torch.manual_seed(0)
        model = Tipped(copies[1]).eval()
        by_pixel = copies.contiguous(memory_format=torch.channels_last)
        target = torch.zeros(FAST.n, dtype=torch.int64)
        each = distances(
            FAST.method().attribute(model, by_pixel, target).relevance,
            FAST.method().attribute(model, copies, target).relevance,
        )
        found = probe(model, image, FAST, KEY)
        assert (each > 1e-3).tolist() == [number == 1 for number in range(FAST.n)]
        assert found.trials[1].agrees
        assert found.way.memory_format == "channels_last"

    def test_what_fails_is_not_taken(self) -> None:
        found = probe(OneOrder().eval(), images(1), FAST, KEY, repeats=1)
        assert found.way.memory_format == "contiguous"
        assert not found.trials[1].agrees
        assert "RuntimeError" in str(found)

    def test_the_budget_bounds_the_chunk(self) -> None:
        assert probe(small_net(), images(1), FAST, KEY, memory_budget=1, repeats=1).way.chunk == 1

    def test_repeats(self) -> None:
        with pytest.raises(ConfigurationError, match="repeats is 0"):
            probe(small_net(), images(1), FAST, KEY, repeats=0)

    def test_nothing_is_changed(self) -> None:
        model = small_net()
        before, flags = state_of(model), [str(eval(flag)) for flag in FLAGS]
        probe(model, images(1), FAST, KEY, repeats=1)
        assert state_of(model) == before
        assert [str(eval(flag)) for flag in FLAGS] == flags


class TestGuard:
    def test_keeps_to_the_way(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        times(monkeypatch, 0.5)
        model = Seen().eval()
        guard = Guard(model, smoothing=FAST)
        way = guard.prepare(images(1)).way
        assert guard.smoothing.way == way
        assert way.memory_format == "channels_last"
        assert str(way) in repr(guard)
        guard.calibrate([images(30, seed=1)], alpha=0.3, detector="paper").save(tmp_path / "c")
        model.last.clear()
        again = Guard(model, calibration=tmp_path / "c")
        assert again.smoothing.way == way
        ours, theirs = guard(images(3), maps=True), again(images(3), maps=True)
        assert model.last
        assert all(model.last)
        assert torch.equal(ours.p_value, theirs.p_value)
        assert ours.relevance is not None
        assert theirs.relevance is not None
        assert torch.equal(ours.relevance, theirs.relevance)

    def test_the_views_go_the_same_way(self) -> None:
        model = Seen().eval()
        by_pixel = Smoothing(FAST.n, way=Way("channels_last"))
        found = Guard(model, smoothing=by_pixel).evidence(images(1), views=True)
        assert model.last == [True, True]  # the copies, and the views
        plain = Guard(model, smoothing=FAST).evidence(images(1), views=True)
        assert model.last[2:] == [False, False]
        assert found.view_logits is not None
        assert plain.view_logits is not None
        torch.testing.assert_close(found.view_logits, plain.view_logits)

    def test_chosen_noise_keeps_the_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times(monkeypatch, 0.5)
        guard = Guard(small_net())
        way = guard.prepare(images(1)).way
        calibration = guard.calibrate([images(30, seed=1)], alpha=0.3, detector="paper")
        assert calibration.smoothing.way == guard.smoothing.way == way != PLAIN

    def test_once_calibrated_it_is_settled(self) -> None:
        with pytest.raises(ConfigurationError, match=r"calibrated for contiguous.*then calibrate"):
            paper_guard().prepare(images(1))

    def test_another_way_is_another_smoothing(self, tmp_path: Path) -> None:
        guard = paper_guard()
        assert isinstance(guard.calibration, Calibration)
        other = Smoothing(FAST.n, FAST.sigma, FAST.seed, FAST.composite, Way("channels_last"))
        with pytest.raises(CalibrationMismatchError, match="channels_last"):
            Guard(guard.model, calibration=guard.calibration, smoothing=other)

    def test_an_own_budget_bounds_the_chosen_chunk(self) -> None:
        small = Guard(small_net(), smoothing=Smoothing(8, way=Way(chunk=8)), memory_budget=1)
        assert small._chunk(images(1)) == 1
        assert Guard(small_net(), smoothing=Smoothing(8, way=Way(chunk=3)))._chunk(images(1)) == 3


class TestDistances:
    def test_of_each_row(self) -> None:
        expected = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]])
        found = torch.tensor([[[3.0, 4.0]], [[1.0, 0.5]]])
        assert distances(found, expected).tolist() == [0.0, 0.5]

    def test_of_what_is_not_finite(self) -> None:
        broken = torch.tensor([[float("nan")], [1.0]])
        assert distances(broken, torch.ones(2, 1)).isnan().tolist() == [True, False]


class TestWay:
    def test_of_what_there_is_not(self) -> None:
        with pytest.raises(ConfigurationError, match="channels_first"):
            Way("channels_first")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="chunk is 0"):
            Way(chunk=0)

    def test_in_words(self) -> None:
        assert str(PLAIN) == "contiguous"
        assert str(Way("channels_last", 9)) == "channels_last, at most 9 copies a pass"
