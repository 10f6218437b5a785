"""Clean images at each look: what is kept, and the bound on replaced labels."""

from __future__ import annotations

import pytest
import torch

from lrpguard.detector import CombinedDetector, PaperDetector, fit_detector
from lrpguard.errors import InputShapeError, NonFiniteScoreError, NotCalibratedError
from lrpguard.staged import Staged
from lrpguard.stopping import Looks
from tests.support import make_calibration, make_readings

LOOKS = Looks((2, 4), (0.5,), (0.5, 1.0))
PAPER = (PaperDetector(), PaperDetector())


def staged(n: int = 30) -> Staged:
    generator = torch.Generator().manual_seed(0)
    return Staged(
        LOOKS,
        tuple(fit_detector("combined", make_readings(50, seed=seed)) for seed in (0, 1)),
        torch.rand(n, 2, generator=generator, dtype=torch.float64),
        torch.randn(n, 2, generator=generator, dtype=torch.float64),
    )


def test_replacement_compares_with_the_largest_evidence_of_any_look() -> None:
    table = torch.tensor([[0.0, 3.0], [5.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    known = Staged(LOOKS, PAPER, table, table)
    found = known.replacement_p_values(torch.tensor([6.0, 4.0, 3.0, 2.5, 0.0]))
    assert found.tolist() == [1 / 4, 2 / 4, 3 / 4, 3 / 4, 1.0]


def test_replacement_is_held_to_harm_wherever_it_stops() -> None:
    """The look is chosen in the worst way: that of the largest evidence."""
    generator = torch.Generator().manual_seed(1)
    rates = []
    for _ in range(500):
        table = torch.randn(130, 2, generator=generator, dtype=torch.float64)
        known = Staged(LOOKS, PAPER, table[:99], table[:99])
        p_value = known.replacement_p_values(table[99:].amax(1))
        rates.append((p_value <= 0.05).double().mean())
    realised = torch.stack(rates)
    assert float(realised.mean()) <= 0.05 + 4 * float(realised.std()) / 500**0.5


def test_without_candidates_nothing_is_replaced() -> None:
    with pytest.raises(NotCalibratedError):
        Staged(LOOKS, PAPER, torch.rand(9, 2), None).replacement_p_values(torch.zeros(1))


def test_tensors_and_back() -> None:
    known = staged()
    again = Staged.load(LOOKS.to_dict(), known.tensors(), known.detectors[-1])
    assert again.looks == LOOKS
    assert torch.equal(again.anomalies, known.anomalies)
    assert again.proposals is not None
    assert known.proposals is not None
    assert torch.equal(again.proposals, known.proposals)
    first, before = again.detectors[0], known.detectors[0]
    assert isinstance(first, CombinedDetector)
    fresh = make_readings(20, seed=2)
    assert torch.equal(first.anomaly(fresh), before.anomaly(fresh))
    assert not torch.equal(first.anomaly(fresh), again.detectors[1].anomaly(fresh))


def test_calibration_of_a_look_is_made_of_its_column() -> None:
    known = staged()
    whole = make_calibration(
        known.anomalies[:, 1], detector=known.detectors[1], proposals=known.proposals, staged=known
    )
    early = whole.at(2)
    assert torch.equal(early.anomalies, known.anomalies[:, 0].sort().values)
    assert early.detector is known.detectors[0]
    assert early.smoothing.n == 2
    assert whole.at(4) is whole


@pytest.mark.parametrize("columns", [1, 3])
def test_every_look_has_a_column(columns: int) -> None:
    with pytest.raises(InputShapeError, match="2 looks"):
        Staged(LOOKS, PAPER, torch.rand(9, columns), None)


def test_scores_are_finite() -> None:
    with pytest.raises(NonFiniteScoreError):
        Staged(LOOKS, PAPER, torch.full((9, 2), torch.nan), None)
