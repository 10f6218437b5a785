"""The evidence record: sizes, selection, joining."""

from __future__ import annotations

import base64
import dataclasses
import io
import sys
from typing import Any

import pytest
import torch
from PIL import Image

from lrpguard import Evidence, explain
from lrpguard.errors import ConfigurationError, MissingDependencyError
from tests.support import images, make_evidence, small_net
from tests.test_notebook import Cells

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


class TestNotebook:
    def test_table_and_the_maps_of_the_first_request(self, evidence: Evidence) -> None:
        content = evidence._repr_html_()
        table, picture = content.split("<img ")
        shown = Cells(table).cells
        assert shown[:6] == [
            "request",
            "class",
            "logit",
            "copies that keep it",
            "relevance, sum",
            "variance",
        ]
        assert len(shown) == 6 * 6
        label = int(evidence.label[1])
        kept = float((evidence.noisy_logits[1].argmax(1) == label).double().mean())
        assert shown[12:16] == [
            "1",
            str(label),
            f"{float(evidence.logits[1, label]):.3g}",
            f"{100 * kept:.0f} %",
        ]
        assert "SmoothLRP: 4 copies, sigma 0.1" in table
        data = picture.split('src="data:image/png;base64,')[1].split('"')[0]
        with Image.open(io.BytesIO(base64.b64decode(data))) as drawn:
            assert drawn.format == "PNG"

    def test_without_matplotlib_the_table_is_left(
        self, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert "<img" not in evidence._repr_html_()
        assert len(Cells(evidence._repr_html_()).cells) == 36
        with pytest.raises(MissingDependencyError, match=r"pip install 'lrpguard\[plots\]'"):
            evidence.plot()

    def test_plot_shows_the_maps_of_one_request(self, evidence: Evidence) -> None:
        names = [f"thing {i}" for i in range(5)]
        figure = evidence.plot(-1, image=images(5)[4], class_names=names)
        shown = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        titles = [axes.get_title() for axes in shown]
        assert titles == ["image", "relevance, mean", "relevance, variance"]
        for axes, map_ in zip(
            shown[1:], (evidence.relevance_mean, evidence.relevance_variance), strict=True
        ):
            drawn = axes.images[0].get_array()
            assert drawn is not None
            assert torch.equal(torch.tensor(drawn.data), map_[4])
        label = int(evidence.label[4])
        logit = float(evidence.logits[4, label])
        assert figure.get_suptitle() == (
            f"class {label} thing {label}, logit {logit:.2f}\n4 copies, sigma 0.1"
        )

    def test_a_notebook_shows_the_figure_without_pyplot(self, evidence: Evidence) -> None:
        figure: Any = evidence.plot()
        with Image.open(io.BytesIO(figure._repr_png_())) as drawn:
            assert drawn.format == "PNG"

    def test_there_is_no_such_request(self, evidence: Evidence) -> None:
        with pytest.raises(ConfigurationError, match="row is 5; there are 5 requests"):
            evidence.plot(5)
