"""Early stopping: one false-positive rate for all looks, and few copies for clean requests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrpguard.errors import (
    CalibrationSizeError,
    ConfigurationError,
    InputShapeError,
    NonFiniteScoreError,
)
from lrpguard.stopping import Looks, replay

LOOKS = Looks()


def scores(
    count: int, generator: torch.Generator, *, shift: float = 0.0, looks: Looks = LOOKS
) -> Tensor:
    """Return scores [count, L] as a mean over copies gives them: each look refines the last.

    The score of a request with all copies in the world is ``N(shift, 1)``; a copy adds N(0, 4).
    """
    own = torch.randn(count, 1, generator=generator, dtype=torch.float64) + shift
    noise = 2 * torch.randn(count, looks.copies[-1], generator=generator, dtype=torch.float64)
    means = noise.cumsum(1) / torch.arange(1, looks.copies[-1] + 1)
    return own + means[:, torch.tensor(looks.copies) - 1]


class TestFalsePositiveRate:
    @pytest.mark.parametrize(("n", "alpha"), [(99, 0.05), (250, 0.05), (120, 0.01)])
    def test_is_kept_over_thousands_of_calibrations(self, n: int, alpha: float) -> None:
        """The mean of the realised rate over calibrations, with an interval of four sigma."""
        generator = torch.Generator().manual_seed(0)
        rates = []
        for _ in range(1000):
            rule = LOOKS.calibrate(scores(n, generator), alpha)
            rates.append(replay(rule, scores(100, generator)).flagged.double().mean())
        realised = torch.stack(rates)
        error = float(realised.std() / len(realised) ** 0.5)
        assert float(realised.mean()) <= alpha + 4 * error
        assert float(realised.mean()) >= alpha - 1.5 / (n + 1) - 4 * error  # and is not thrown away

    @pytest.mark.parametrize("dependence", ["independent", "opposed", "tied"])
    def test_is_kept_however_the_looks_depend_on_each_other(self, dependence: str) -> None:
        generator = torch.Generator().manual_seed(1)

        def draw(count: int) -> Tensor:
            table = torch.randn(count, 4, generator=generator, dtype=torch.float64)
            if dependence == "opposed":
                table[:, 1::2] = -table[:, ::2]
            return table.round() if dependence == "tied" else table

        rates = torch.stack(
            [
                replay(LOOKS.calibrate(draw(99), 0.1), draw(50)).flagged.double().mean()
                for _ in range(1000)
            ]
        )
        assert float(rates.mean()) <= 0.1 + 4 * float(rates.std()) / 1000**0.5

    def test_p_values_are_valid_at_every_level(self) -> None:
        generator = torch.Generator().manual_seed(2)
        found = torch.cat(
            [
                replay(LOOKS.calibrate(scores(60, generator), 0.05), scores(20, generator)).p_value
                for _ in range(1000)
            ]
        )
        for level in (0.02, 0.05, 0.1, 0.3):
            assert float((found <= level).double().mean()) <= level + 0.01


class TestWork:
    def test_clean_requests_stay_below_the_bound(self) -> None:
        generator = torch.Generator().manual_seed(3)
        rule = LOOKS.calibrate(scores(500, generator), 0.05)
        copies = replay(rule, scores(20_000, generator)).copies
        assert LOOKS.most_copies == pytest.approx(11.4)
        assert float(copies.double().mean()) <= LOOKS.most_copies
        assert set(copies.tolist()) == {5, 10, 20, 50}

    @pytest.mark.parametrize("shift", [2.0, 4.0, 6.0])
    def test_little_detection_is_lost(self, shift: float) -> None:
        """Against one look at all copies, with the same calibration images and rate."""
        generator = torch.Generator().manual_seed(4)
        clean, attacked = scores(1000, generator), scores(20_000, generator, shift=shift)
        early = replay(LOOKS.calibrate(clean, 0.05), attacked).flagged.double().mean()
        once = Looks((50,), (), (1.0,)).calibrate(clean[:, -1:], 0.05)
        late = replay(once, attacked[:, -1:]).flagged.double().mean()
        assert float(late - early) <= 0.02


class TestByHand:
    def test_one_look_is_split_conformal(self) -> None:
        rule = Looks((50,), (), (1.0,)).calibrate(torch.arange(19.0)[:, None], 0.1)
        decision = rule.decide(0, torch.tensor([16.5, 17.5, 18.5]))
        assert decision.flagged.tolist() == [False, True, True]
        assert decision.cleared.tolist() == [True, False, False]
        assert decision.p_value.tolist() == pytest.approx([3 / 20, 2 / 20, 1 / 20])

    def test_two_looks(self) -> None:
        """Nine images, ranks 1 to 9 at both looks in opposite order; clear above p = 0.4."""
        first = torch.arange(9.0)
        looks = Looks((2, 4), (0.4,), (0.5, 1.0))
        rule = looks.calibrate(torch.stack([first, -first], 1), 0.2)
        # Ranks at look 1 are 9 … 1; those of 4 or less go on, with ranks 6, 7, 8, 9 at look 2.
        # Weighted: 18, 16, 14, 12, 10 for the cleared; min(8, 6), min(6, 7), min(4, 8), min(2, 9).
        assert rule.levels.tolist() == pytest.approx([2, 4, 6, 6, 10, 12, 14, 16, 18])
        assert rule.flag_level == 4
        decision = rule.decide(0, torch.tensor([9.0, 7.5, 5.5, 0.0]))
        assert decision.level.tolist() == [2, 4, 8, 20]
        assert decision.flagged.tolist() == [True, True, False, False]
        assert decision.cleared.tolist() == [False, False, False, True]
        assert decision.goes_on.tolist() == [False, False, True, False]
        assert decision.p_value.tolist() == pytest.approx([0.1, 0.2, 0.5, 1.0])
        second = rule.decide(1, torch.tensor([1.0, -3.5]), decision.level[[2, 2]])
        assert second.level.tolist() == pytest.approx([1, 5])
        assert second.flagged.tolist() == [True, False]
        assert second.cleared.tolist() == [False, True]

    def test_a_request_alone_is_decided_as_in_a_batch(self) -> None:
        generator = torch.Generator().manual_seed(5)
        rule = LOOKS.calibrate(scores(100, generator), 0.1)
        batch = scores(30, generator)
        whole = replay(rule, batch)
        for i in range(30):
            alone = replay(rule, batch[i : i + 1])
            assert bool(alone.flagged) == bool(whole.flagged[i])
            assert int(alone.copies) == int(whole.copies[i])
            assert float(alone.p_value) == float(whole.p_value[i])


class TestRefusals:
    @pytest.mark.parametrize(
        ("copies", "clear", "weight", "said"),
        [
            ((5, 50), (), (1.0, 1.0), "0 clear levels"),
            ((5, 50), (0.3,), (1.0,), "1 weights"),
            ((50, 5), (0.3,), (1.0, 1.0), "must rise"),
            ((1, 5), (0.3,), (1.0, 1.0), "from 2"),
            ((5, 50), (0.0,), (1.0, 1.0), "clear levels"),
            ((5, 50), (0.3,), (0.0, 1.0), "above 0"),
        ],
    )
    def test_looks(
        self,
        copies: tuple[int, ...],
        clear: tuple[float, ...],
        weight: tuple[float, ...],
        said: str,
    ) -> None:
        with pytest.raises(ConfigurationError, match=said):
            Looks(copies, clear, weight)

    def test_calibration(self) -> None:
        with pytest.raises(InputShapeError, match=r"\[n, 4\]"):
            LOOKS.calibrate(torch.rand(30, 3), 0.1)
        with pytest.raises(CalibrationSizeError):
            LOOKS.calibrate(torch.rand(8, 4), 0.1)
        with pytest.raises(NonFiniteScoreError):
            LOOKS.calibrate(torch.full((30, 4), torch.nan), 0.1)


class TestForms:
    def test_usual_looks_for_any_number_of_copies(self) -> None:
        assert Looks.of(50) == Looks()
        assert Looks.of(16) == Looks((2, 3, 6, 16))
        assert Looks.of(4) == Looks((2, 4), (0.08,), (0.4, 1.0))
        assert Looks.of(2) == Looks((2,), (), (1.0,))
        with pytest.raises(ConfigurationError, match="2 or more"):
            Looks.of(1)

    @pytest.mark.parametrize("n", range(2, 200))
    def test_are_allowed_for_every_n(self, n: int) -> None:
        assert Looks.of(n).copies[-1] == n

    def test_record_and_back(self) -> None:
        assert Looks.from_dict(LOOKS.to_dict()) == LOOKS
