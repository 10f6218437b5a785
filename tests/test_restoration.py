"""Whitening on models whose answer is known beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Restoration, Smoothing, Whitening
from lrpguard.errors import ConfigurationError
from lrpguard.noise import key_bytes
from lrpguard.restoration import PAPER_PIXELS, UNKNOWN, whiten
from lrpguard.smoothing import explain
from tests.support import Wrapped, small_net
from tests.support import images as random_images

N_COPIES = Smoothing(n=16)
KEY = key_bytes(0)


def linear(weights: dict[int, float], bias: float, *, pixels: int = 16) -> nn.Sequential:
    """Return logits ``[bias + sum(w_i x_i), 0]`` of an image of one channel.

    The relevance of pixel i is ``w_i x_i``, so its variance over the noise is
    ``w_i² sigma²``: the pixels whiten in the order of |w|.
    """
    layer = nn.Linear(pixels, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([bias, 0.0]))
        for pixel, weight in weights.items():
            layer.weight[0, pixel] = weight
    return nn.Sequential(nn.Flatten(), layer).eval()


def restored(model: nn.Module, images: Tensor, *, key: bytes = KEY, **options: Any) -> Restoration:
    evidence = explain(model, images, n=N_COPIES.n, key=key)
    return whiten(
        model,
        images,
        evidence,
        whitening=Whitening(**options),
        smoothing=N_COPIES,
        key=key,
        chunk=16,
    )


def changed(restoration: Restoration) -> list[list[int]]:
    """Return the pixels that were whitened, image by image."""
    return [row.flatten().nonzero().flatten().tolist() for row in restoration.changed_pixels]


BLACK = torch.zeros(1, 1, 4, 4)


class TestKnownAnswer:
    def test_whitening_the_most_varying_pixel_flips_the_label(self) -> None:
        model = linear({5: -4.0, 2: 1.0, 9: 3.0}, bias=3.0)
        result = restored(model, BLACK, pixels=1)
        assert result.label.tolist() == [1]
        assert changed(result) == [[5]]
        assert result.rounds.tolist() == [1]
        assert result.logits.tolist() == [[-1.0, 0.0]]
        assert result.confidence.item() == pytest.approx(1 / (1 + torch.e**-1))

    def test_pixels_are_not_whitened_twice(self) -> None:
        # The white pixel 5 still varies most; the next rounds must take 9, then 2.
        model = linear({5: -4.0, 9: -3.0, 2: -2.0, 11: -1.0}, bias=8.5)
        result = restored(model, BLACK, pixels=1)
        assert changed(result) == [[2, 5, 9]]
        assert result.rounds.tolist() == [3]
        assert result.label.tolist() == [1]

    def test_several_pixels_a_round(self) -> None:
        model = linear({5: -4.0, 9: -3.0, 2: -2.0, 11: -1.0}, bias=8.5)
        result = restored(model, BLACK, pixels=2)
        assert changed(result) == [[2, 5, 9, 11]]
        assert result.rounds.tolist() == [2]

    def test_unknown_when_the_limit_is_reached(self) -> None:
        model = linear({13: 1.0, 14: 2.0, 15: 4.0, 12: 0.5}, bias=5.0)
        result = restored(model, BLACK, pixels=1, max_rounds=3)
        assert result.label.tolist() == [UNKNOWN]
        assert result.confidence.tolist() == [0.0]
        assert result.rounds.tolist() == [3]
        assert changed(result) == [[13, 14, 15]]

    def test_unknown_when_all_pixels_are_used_up(self) -> None:
        calls: list[bool] = []
        model = Wrapped(
            linear({i: 0.1 * (i + 1) for i in range(16)}, bias=5.0),
            lambda batch: calls.append(torch.is_grad_enabled()),
        )
        result = restored(model, BLACK, pixels=10, max_rounds=10)
        assert result.label.tolist() == [UNKNOWN]
        assert result.rounds.tolist() == [2]
        assert changed(result) == [list(range(16))]
        # Clean pass, measured pass, copies; whiten, explain, whiten: then it is over.
        assert calls == [False, True, True, False, True, False]

    def test_the_last_round_explains_nothing_more(self) -> None:
        modes: list[bool] = []
        model = Wrapped(
            linear({13: 1.0, 14: 2.0, 15: 4.0}, bias=5.0),
            lambda batch: modes.append(torch.is_grad_enabled()),
        )
        restored(model, BLACK, pixels=1, max_rounds=2)
        assert modes[3:] == [False, True, False]  # whiten, explain, whiten

    def test_all_channels_turn_white_and_nothing_else_changes(self) -> None:
        seen: list[Tensor] = []

        def before(batch: Tensor) -> None:
            if not torch.is_grad_enabled():
                seen.append(batch.clone())

        batch = random_images(2)
        result = restored(Wrapped(small_net(), before), batch, pixels=5, max_rounds=1)
        first, after = torch.cat(seen[:2]), torch.cat(seen[-2:])
        mask = result.changed_pixels[:, None].expand(2, 3, 8, 8)
        assert result.changed_pixels.sum((1, 2)).tolist() == [5, 5]
        assert bool((after[mask] == 1).all())
        assert torch.equal(after[~mask], first[~mask])
        assert torch.equal(batch, random_images(2))  # the caller's images stay as they were

    def test_explains_anew_after_each_round(self) -> None:
        # A gate: pixel 1 matters only where pixel 0 is white, and then more than pixel 2.
        class Gate(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                p = x.flatten(1)
                gated = torch.relu(9 * p[:, 0] + 20 * p[:, 1] - 8)
                return torch.stack([10 - 3 * p[:, 2] - 4 * p[:, 0] - gated, 0 * p[:, 0]], dim=1)

        result = restored(Gate().eval(), torch.zeros(1, 1, 2, 2), pixels=1, max_rounds=2)
        assert changed(result) == [[0, 1]]

    def test_a_label_other_than_the_predicted_can_be_left(self) -> None:
        model = linear({5: -4.0, 2: 1.0}, bias=3.0)
        result = restored(model, torch.cat([BLACK, BLACK + 1]), pixels=1)
        assert result.label.tolist() == [1, UNKNOWN]  # 3 - 4 + 1 = 0: a tie goes to class 0

    def test_a_model_that_breaks_on_the_white_pixels_restores_nothing(self) -> None:
        def after(batch: Tensor, logits: Tensor) -> Tensor:
            white = (batch.flatten(1) == 1).any(1, keepdim=True)
            return torch.where(white, logits * torch.tensor([1.0, torch.nan]), logits)

        model = Wrapped(linear({5: -1.0}, bias=3.0), after=after)
        evidence = explain(linear({5: -1.0}, bias=3.0), BLACK, n=N_COPIES.n)
        result = whiten(
            model,
            BLACK,
            evidence,
            whitening=Whitening(max_rounds=1),
            smoothing=N_COPIES,
            key=KEY,
            chunk=16,
        )
        assert result.label.tolist() == [UNKNOWN]
        assert result.confidence.tolist() == [0.0]


class TestCount:
    def test_default_is_two_percent_and_the_papers_count_at_224(self) -> None:
        assert Whitening().count(224, 224) == 1004
        assert Whitening(pixels=PAPER_PIXELS).count(224, 224) == 1000
        assert Whitening().count(32, 32) == 20

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ({"fraction": 1e-9}, 1),
            ({"fraction": 1.0}, 64),
            ({"fraction": 0.5}, 32),
            ({"pixels": 1000}, 64),
            ({"pixels": 3, "fraction": 0.9}, 3),
        ],
    )
    def test_on_64_pixels(self, options: dict[str, Any], count: int) -> None:
        assert Whitening(**options).count(8, 8) == count
        model = linear({0: 1.0}, bias=1e3, pixels=64)
        result = restored(model, torch.zeros(1, 1, 8, 8), max_rounds=1, **options)
        assert int(result.changed_pixels.sum()) == count

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"fraction": 0.0}, "fraction is 0"),
            ({"fraction": 1.1}, "fraction is 1.1"),
            ({"fraction": float("nan")}, "fraction is nan"),
            ({"pixels": 0}, "pixels is 0"),
            ({"max_rounds": 0}, "max_rounds is 0"),
            ({"ranking": "mean"}, "ranking is 'mean'"),
        ],
    )
    def test_out_of_range(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            Whitening(**options)


class TestBatch:
    @pytest.mark.parametrize("ranking", ["variance", "random"])
    def test_equals_one_by_one(self, ranking: str) -> None:
        model, batch = small_net(seed=5), random_images(8)
        options: dict[str, Any] = {"pixels": 12, "max_rounds": 5, "ranking": ranking}
        together = restored(model, batch, **options)
        assert len(set(together.rounds.tolist())) > 2, "all images took as long: too easy"
        assert (together.label == UNKNOWN).any()
        for i in range(8):
            alone = restored(model, batch[i : i + 1], **options)
            for name in ("label", "changed_pixels", "rounds"):
                assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i]), name
            torch.testing.assert_close(alone.logits[0], together.logits[i], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(alone.confidence[0], together.confidence[i])

    def test_images_whose_label_changed_drop_out(self) -> None:
        sizes: list[int] = []

        def before(batch: Tensor) -> None:
            if not torch.is_grad_enabled():
                sizes.append(len(batch))

        # The second image is dark enough already for its label to change in the first round.
        model = Wrapped(linear({5: -4.0, 9: -3.0}, bias=5.0), before)
        white_at_9 = BLACK.clone()
        white_at_9.view(-1)[9] = 0.6
        result = restored(model, torch.cat([BLACK, white_at_9]), pixels=1)
        assert sum(sizes) == 5  # two explained, two whitened, one whitened again
        assert result.rounds.tolist() == [2, 1]
        assert changed(result) == [[5, 9], [5]]
        assert result.logits[1].tolist() == pytest.approx([5 - 4 - 3 * 0.6, 0.0])

    def test_no_images_at_all(self) -> None:
        evidence = explain(small_net(), random_images(1), n=4).select(torch.tensor([]).long())
        result = whiten(
            small_net(),
            random_images(1)[:0],
            evidence,
            whitening=Whitening(),
            smoothing=N_COPIES,
            key=KEY,
            chunk=16,
        )
        assert result.label.shape == (0,)


class TestRandomControl:
    OPTIONS: dict[str, Any] = {"ranking": "random", "pixels": 5, "max_rounds": 2}  # noqa: RUF012
    MODEL = linear({0: 1.0}, bias=1e3, pixels=64)  # never changes its label

    def pixels(self, images: Tensor, **options: Any) -> list[list[int]]:
        return changed(restored(self.MODEL, images, **self.OPTIONS, **options))

    def grey(self, *levels: float) -> Tensor:
        return torch.cat([torch.full((1, 1, 8, 8), level) for level in levels])

    def test_follows_from_the_content_alone(self) -> None:
        one, other = self.pixels(self.grey(0.2, 0.7))
        assert self.pixels(self.grey(0.7, 0.4, 0.2)) == [other, self.pixels(self.grey(0.4))[0], one]
        assert one != other
        assert len(one) == len(other) == 10

    def test_changes_with_the_key(self) -> None:
        orders = [self.pixels(self.grey(0.2), key=bytes([k]) * 64) for k in range(2)]
        assert orders[0] != orders[1]

    def test_prefers_no_pixel(self) -> None:
        levels = torch.linspace(0.1, 0.9, 200).tolist()
        chosen = self.pixels(self.grey(*levels))
        counts = torch.tensor([p for row in chosen for p in row]).bincount(minlength=64)
        assert counts.sum() == 2000
        assert counts.min() >= 10  # 31 expected, standard deviation 5.1
        assert counts.max() <= 58

    def test_does_not_see_the_relevance(self) -> None:
        other = linear({63: 50.0, 62: 40.0}, bias=1e3, pixels=64)
        there = changed(restored(other, self.grey(0.2), **self.OPTIONS))
        assert there == self.pixels(self.grey(0.2))

    def test_costs_no_explanation(self) -> None:
        modes: list[bool] = []
        model = Wrapped(self.MODEL, lambda batch: modes.append(torch.is_grad_enabled()))
        restored(model, self.grey(0.2), **self.OPTIONS)
        assert modes == [False, True, True, False, False]
