"""What detectors read: rows and back, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from lrpguard import Evidence, Guard
from lrpguard.consistency import Candidates, candidates
from lrpguard.errors import ConfigurationError
from lrpguard.readings import SUPPORTS, VALUES, Readings, read
from lrpguard.scores import SCORES, score_matrix
from lrpguard.views import STRONG_VIEWS, VIEWS
from tests.support import FAST, images, make_candidates, make_readings, small_net


def same(one: Readings, other: Readings) -> bool:
    """Say whether two readings are equal to the last bit."""
    if one.names != other.names or not torch.equal(one.scores, other.scores):
        return False
    if one.candidates is None or other.candidates is None:
        return one.candidates is other.candidates
    mine, theirs = vars(one.candidates), vars(other.candidates)
    return all(
        torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype
        for name in mine
    )


class TestRows:
    @pytest.mark.parametrize("classes", [2, 3, 10, 1000])
    @pytest.mark.parametrize("n", [1, 7])
    def test_round_trip_through_json_bit_for_bit(self, n: int, classes: int) -> None:
        drawn = make_readings(n)
        whole = Readings(drawn.names, drawn.scores / 3, make_candidates(n, classes=classes))
        rows = json.loads(json.dumps(whole.to_rows()))
        assert same(Readings.from_rows(whole.names, rows), whole)

    def test_round_trip_without_candidates(self) -> None:
        drawn = make_readings(5)
        whole = Readings(drawn.names, drawn.scores, None)
        assert same(Readings.from_rows(whole.names, whole.to_rows()), whole)

    def test_by_hand(self) -> None:
        found = Candidates(
            label=torch.tensor([4]),
            classes=torch.tensor([[7, 2]]),
            values=torch.arange(18.0).double().view(1, 2, 9),
            support=-torch.arange(8.0).double().view(1, 2, 4),
            kept=torch.tensor([[1.0, 0.0, 0.0, 1.0]]).double(),
        )
        whole = Readings(("a", "b"), torch.tensor([[0.25, -3.0]]).double(), found)
        kept, support, values = [1, 0, 0, 1], [-i for i in range(8)], list(range(18))
        assert whole.to_rows() == [[0.25, -3.0, 4, 7, 2, *kept, *support, *values]]
        assert same(Readings.from_rows(("a", "b"), whole.to_rows()), whole)

    def test_one_number_a_score_and_the_candidates_behind(self) -> None:
        assert (len(VIEWS), len(STRONG_VIEWS)) == (6, SUPPORTS) == (6, 4)
        assert VALUES == 9  # gap, noise, six mild views, covering
        (row,) = make_readings(1).to_rows()
        # Label, and which strong views keep it; four candidates, each its class, support, values.
        assert len(row) == len(SCORES) + 1 + SUPPORTS + 4 * (1 + SUPPORTS + VALUES)
        assert all(type(number) is float for number in row)


class TestSelect:
    @pytest.mark.parametrize("rows", [[0], [4, 1], [2, 2], []])
    def test_takes_rows_of_every_part(self, rows: list[int]) -> None:
        whole = make_readings(5)
        some = whole.select(torch.tensor(rows, dtype=torch.long))
        assert len(some) == len(rows)
        assert some.to_rows() == [whole.to_rows()[i] for i in rows]

    def test_slices_split_without_loss(self) -> None:
        whole = make_readings(5)
        parts = [whole.select(slice(2)), whole.select(slice(2, None))]
        assert [len(part) for part in parts] == [2, 3]
        assert [row for part in parts for row in part.to_rows()] == whole.to_rows()

    def test_without_candidates(self) -> None:
        whole = Readings(("a",), torch.ones(3, 1), None)
        assert whole.select(slice(1)).candidates is None

    def test_column_by_name(self) -> None:
        whole = Readings(("a", "b"), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), None)
        assert whole.column("b").tolist() == [2.0, 4.0]
        with pytest.raises(ValueError, match="index"):
            whole.column("c")


class TestRead:
    @pytest.fixture(scope="class")
    @staticmethod
    def evidence() -> Evidence:
        return Guard(small_net(), smoothing=FAST).evidence(images(6), views=True)

    def test_are_the_scores_and_the_candidates(self, evidence: Evidence) -> None:
        names = ("margin", "chroma_noise")
        found = read(evidence, names)
        wanted = Readings(names, score_matrix(evidence, names), candidates(evidence))
        assert same(found, wanted)

    def test_of_a_request_alone_are_the_same_bit_for_bit(self, evidence: Evidence) -> None:
        whole = read(evidence, tuple(SCORES))
        for i in range(6):
            alone = read(evidence.select(slice(i, i + 1)), tuple(SCORES))
            assert same(alone, whole.select(slice(i, i + 1)))

    def test_without_views_hold_no_candidates(self) -> None:
        evidence = Guard(small_net(), smoothing=FAST).evidence(images(2))
        assert read(evidence, ("margin",)).candidates is None

    def test_unknown_score(self, evidence: Evidence) -> None:
        with pytest.raises(ConfigurationError, match="entropy"):
            read(evidence, ("entropy",))
