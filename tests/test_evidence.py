"""The evidence record: sizes, selection, joining."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lrpguard import Evidence, explain
from tests.support import images, make_evidence, small_net

TENSORS = [f.name for f in dataclasses.fields(Evidence) if f.name != "sigma"]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return explain(small_net(), images(5), n=4, sigma=0.1)


def test_shapes(evidence: Evidence) -> None:
    shapes = {name: getattr(evidence, name) for name in TENSORS}
    assert {name: None if t is None else list(t.shape) for name, t in shapes.items()} == {
        "logits": [5, 5],
        "label": [5],
        "noisy_logits": [5, 4, 5],
        "relevance_mean": [5, 8, 8],
        "relevance_variance": [5, 8, 8],
        "relevance_total": [5, 4],
        "relevance_quantiles": None,
        "view_logits": None,
        "chroma_noise": [5],
        "line_noise": [5],
        "place_roughness": [5],
    }
    assert len(evidence) == 5
    assert evidence.n == 4
    assert evidence.sigma == 0.1


def test_explained_logit_is_that_of_the_label_not_the_largest() -> None:
    evidence = make_evidence(
        logits=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], noisy_logits=[[[0.0] * 3]] * 2, label=[0, 2]
    )
    assert evidence.explained_logit.tolist() == [1.0, 6.0]


def complete(evidence: Evidence) -> Evidence:
    """Return evidence of which no part is missing."""
    return dataclasses.replace(
        evidence, relevance_quantiles=torch.rand(5, 2, 8, 8), view_logits=torch.rand(5, 4, 5)
    )


@pytest.mark.parametrize("rows", [[0], [3, 1], [2, 2, 4], []])
def test_select_takes_the_rows_of_every_part(evidence: Evidence, rows: list[int]) -> None:
    whole = complete(evidence)
    some = whole.select(torch.tensor(rows, dtype=torch.long))
    for name in TENSORS:
        assert torch.equal(getattr(some, name), getattr(whole, name)[rows])
    assert len(some) == len(rows)
    assert some.sigma == whole.sigma


def test_select_of_what_was_not_asked_for(evidence: Evidence) -> None:
    some = evidence.select(torch.tensor([1]))
    assert some.relevance_quantiles is None
    assert some.view_logits is None


def test_concatenate_of_what_was_not_asked_for(evidence: Evidence) -> None:
    joined = Evidence.concatenate([evidence, evidence])
    assert len(joined) == 10
    assert joined.relevance_quantiles is None
    assert joined.view_logits is None


def test_concatenate_undoes_select(evidence: Evidence) -> None:
    whole = complete(evidence)
    joined = Evidence.concatenate([whole.select(torch.tensor(r)) for r in ([0, 1], [2], [3, 4])])
    for name in TENSORS:
        assert torch.equal(getattr(joined, name), getattr(whole, name))
    assert joined.sigma == whole.sigma


def test_is_frozen(evidence: Evidence) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        evidence.sigma = 1.0  # type: ignore[misc]


def test_carries_no_graph(evidence: Evidence) -> None:
    tensors = [getattr(evidence, name) for name in TENSORS]
    assert not any(t.requires_grad for t in tensors if t is not None)
