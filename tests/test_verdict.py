"""The verdict and its JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any

import pytest
import torch

from lrpguard import Verdict
from lrpguard.errors import ConfigurationError, MissingDependencyError
from lrpguard.verdict import Status
from tests.test_notebook import Cells

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


def mapped(**changes: Any) -> Verdict:
    changed = torch.zeros(3, 4, 4, dtype=torch.bool)
    changed[1, 0] = True
    generator = torch.Generator().manual_seed(0)
    maps = {
        "relevance": torch.randn(3, 4, 4, generator=generator),
        "relevance_variance": torch.rand(3, 4, 4, generator=generator),
        "changed_pixels": changed,
    }
    return verdict(**(maps | changes))


class TestNotebook:
    def test_table_by_hand(self) -> None:
        shown = Cells(verdict()._repr_html_()).cells
        heads = ["request", "class", "confidence", "p-value", "status", "answer", "its confidence"]
        assert shown[:7] == heads
        assert shown[7:14] == ["0", "1", "0.75", "0.5", "clean", "1", "0.75"]
        assert shown[14:21] == ["1", "0", "0.5", "0.05", "restored", "1", "0.875"]
        assert shown[21:28] == ["2", "1", "1", "0.01", "unknown", "unknown", "0"]
        assert "2 of 3 flagged<" in verdict()._repr_html_()

    def test_a_failure_is_told_and_escaped(self) -> None:
        nothing = torch.full((3,), torch.nan, dtype=torch.float64)
        made = verdict(("unguarded",) * 3, p_value=nothing, failure="<b>boom</b>")
        content = made._repr_html_()
        assert "the guard failed: &lt;b&gt;boom&lt;/b&gt;" in content
        assert Cells(content).cells[10] == "-"

    def test_plot_shows_the_maps_of_one_request(self) -> None:
        made = mapped()
        assert made.relevance is not None
        image = torch.rand(3, 4, 4)
        figure = made.plot(1, image=image, class_names=("cat", "dog"))
        shown = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert [axes.get_title() for axes in shown] == [
            "image",
            "relevance, mean",
            "relevance, variance",
            "changed pixels",
        ]
        assert shown[3].get_xlabel() == "4 white"
        drawn = shown[1].images[0].get_array()
        assert drawn is not None
        assert torch.equal(torch.tensor(drawn.data), made.relevance[1])
        title = figure.get_suptitle()
        assert title == "class 0 cat, logit 2.00\np-value 0.05, restored: class 1 dog"
        assert len([a for a in made.plot(-1).axes if a.get_label() != "<colorbar>"]) == 2
        assert made.plot(0).get_suptitle() == "class 1, logit 1.10\np-value 0.5, clean"

    def test_what_cannot_be_plotted_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"ask for them: guard\(images, maps=True\)"):
            verdict().plot()
        with pytest.raises(ConfigurationError, match="row is 3; there are 3 requests"):
            mapped().plot(3)
        lost = mapped(status=("unguarded", "clean", "clean"), failure="it broke")
        with pytest.raises(ConfigurationError, match=r"request 0 is unguarded.*it broke"):
            lost.plot()

    def test_without_matplotlib_the_error_names_the_extra(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'lrpguard\[plots\]'"):
            mapped().plot()
