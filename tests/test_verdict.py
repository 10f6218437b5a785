"""The verdict and its JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from lrpguard import Verdict
from lrpguard.verdict import Status

KEYS = {
    "label": int,
    "confidence": float,
    "p_value": float,
    "score": float,
    "flagged": bool,
    "restored_label": int,
    "restored_confidence": float,
    "copies": int,
    "status": str,
}


def verdict(
    status: tuple[Status, ...] = ("clean", "restored", "unknown"), **changes: Any
) -> Verdict:
    fields: dict[str, Any] = {
        "label": torch.tensor([1, 0, 1]),
        "logits": torch.tensor([[0.0, math.log(3)], [2.0, 2.0], [0.0, 100.0]]),
        "p_value": torch.tensor([0.5, 0.05, 0.01], dtype=torch.float64),
        "score": torch.tensor([1.25, 1e300, 7.0], dtype=torch.float64),
        "flagged": torch.tensor([False, True, True]),
        "restored_label": torch.tensor([1, 1, -1]),
        "restored_confidence": torch.tensor([0.75, 0.875, 0.0]),
        "restored_logits": torch.zeros(3, 2),
        "copies": torch.tensor([5, 50, 10]),
        "status": status,
    }
    return Verdict(**fields | changes)


def test_records_by_hand() -> None:
    records = verdict().to_dicts()
    assert records[0] == {
        "label": 1,
        "confidence": pytest.approx(0.75),
        "p_value": 0.5,
        "score": 1.25,
        "flagged": False,
        "restored_label": 1,
        "restored_confidence": 0.75,
        "copies": 5,
        "status": "clean",
    }
    assert records[1]["confidence"] == 0.5
    assert records[1]["score"] == 1e300
    assert records[2]["restored_label"] == -1
    assert [record["status"] for record in records] == ["clean", "restored", "unknown"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_records_are_strict_json_of_plain_types(dtype: torch.dtype) -> None:
    made = verdict(
        logits=torch.tensor([[0.0, 1.0]] * 3, dtype=dtype),
        relevance=torch.rand(3, 4, 4),
        changed_pixels=torch.zeros(3, 4, 4, dtype=torch.bool),
    )
    for record in made.to_dicts():
        assert {key: type(value) for key, value in record.items()} == KEYS
        assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_what_does_not_exist_is_none() -> None:
    nothing = torch.full((3,), torch.nan, dtype=torch.float64)
    made = verdict(("unguarded",) * 3, p_value=nothing, score=nothing)
    for record in made.to_dicts():
        assert record["p_value"] is None
        assert record["score"] is None
        json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_logits_of_an_unguarded_request_are_still_json(bad: float) -> None:
    made = verdict(("unguarded",) * 3, logits=torch.full((3, 2), bad))
    json.dumps(made.to_dicts(), allow_nan=False)


def test_length_is_the_number_of_requests() -> None:
    assert len(verdict()) == 3
    assert len(verdict().to_dicts()) == 3


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict().label = torch.zeros(3)  # type: ignore[misc]
