"""Figures drawn from arrays: their scales, their sizes, and what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lrpguard.errors import ConfigurationError, MissingDependencyError
from lrpguard.figures import (
    DPI,
    PANEL_SIZE,
    RELEVANCE_SIZE,
    SIGNED_MAP,
    UNSIGNED_MAP,
    DemoPanels,
    Panel,
    color_limit,
    demo_figure,
    panel_figure,
    relevance_figure,
    require_matplotlib,
    save_png,
    show_image,
    show_signed,
    show_unsigned,
)

GENERATOR = np.random.default_rng(0)


def panels() -> DemoPanels:
    image = GENERATOR.random((1, 8, 8))
    return DemoPanels(
        clean=image,
        adversarial=1 - image,
        relevance=GENERATOR.normal(size=(8, 8)),
        variance=GENERATOR.random((8, 8)),
        denoised=image / 2,
        clean_caption="clean caption",
        adversarial_caption="adversarial caption",
        restored_caption="restored caption",
    )


def a_fresh_axes() -> Axes:
    return Figure().subplots()


def test_signed_maps_are_symmetric_about_zero() -> None:
    axes = relevance_figure(
        np.zeros((1, 2, 2)), np.array([[1.0, -3.0], [0.0, 2.0]]), np.ones((2, 2)), title="t"
    ).axes[1]
    (shown,) = axes.images
    assert shown.get_clim() == (-3.0, 3.0)
    assert shown.get_cmap().name == SIGNED_MAP
    middle = np.array(shown.get_cmap()(0.5)[:3])
    assert middle.min() > 0.95  # zero is white


def test_variances_begin_at_zero() -> None:
    axes = a_fresh_axes()
    shown = show_unsigned(axes, np.array([[4.0, 2.0], [3.0, 1.0]]))
    assert shown.get_clim() == (0.0, 4.0)
    assert shown.get_cmap().name == UNSIGNED_MAP


def test_a_few_extreme_pixels_do_not_hide_the_rest() -> None:
    values = np.linspace(-0.5, 1, 100 * 100).reshape(100, 100)
    values[0, :10] = 1000
    shown = show_signed(a_fresh_axes(), values)
    assert 0.9 < shown.get_clim()[1] <= 1.0
    figure = relevance_figure(np.zeros((1, 100, 100)), values, np.ones((100, 100)), title="t")
    bars = [axes.images[0].colorbar for axes in figure.axes[1:3]]
    assert [bar.extend for bar in bars if bar] == ["max", "neither"]


def test_a_map_of_zeros_has_a_scale() -> None:
    assert show_signed(a_fresh_axes(), np.zeros((3, 3))).get_clim() == (-1.0, 1.0)
    assert show_unsigned(a_fresh_axes(), np.zeros((3, 3))).get_clim() == (0.0, 1.0)


def test_images_are_shown_in_their_own_scale() -> None:
    dim = show_image(a_fresh_axes(), np.full((1, 2, 2), 0.25))
    assert dim.get_clim() == (0.0, 1.0)
    colour = show_image(a_fresh_axes(), np.ones((3, 2, 4)))
    shown = colour.get_array()
    assert shown is not None
    assert shown.shape == (2, 4, 3)


@pytest.mark.parametrize("shape", [(2, 2), (2, 4, 4), (1, 1, 4, 4)])
def test_an_array_that_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"a figure takes \[C, H, W\]"):
        show_image(a_fresh_axes(), np.zeros(shape))


def test_an_array_that_is_no_map_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"a figure takes one of shape \[H, W\]"):
        show_signed(a_fresh_axes(), np.zeros((1, 2, 2)))


def test_a_picture_has_the_size_it_says(tmp_path: Path) -> None:
    figure = relevance_figure(
        np.zeros((3, 9, 4)), np.ones((9, 4)), np.ones((9, 4)), title="a title" * 3
    )
    save_png(figure, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == tuple(round(DPI * side) for side in RELEVANCE_SIZE)


def test_the_demo_picture_shows_each_image_above_its_caption() -> None:
    rows = [panels(), panels()]
    figure = demo_figure(rows, title="both")
    grid = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(grid) == 10
    for start, row in zip((0, 5), rows, strict=True):
        for place, image, caption in (
            (0, row.clean, "clean caption"),
            (1, row.adversarial, "adversarial caption"),
            (4, row.denoised, "restored caption"),
        ):
            (shown,) = grid[start + place].images
            assert np.array_equal(np.asarray(shown.get_array()), image[0])
            assert grid[start + place].get_xlabel() == caption


def check_layout(figure: Figure) -> None:
    """Nothing overlaps or is cut off."""
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    found = [box for box in boxes if box is not None]
    assert len(found) == len(figure.axes)
    for i, box in enumerate(found):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        for other in found[:i]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(wide, high) <= 1.0  # of a pixel


def test_nothing_of_the_demo_picture_overlaps_or_is_cut_off() -> None:
    check_layout(demo_figure([panels(), panels()], title="A title of usual length"))


def grid() -> list[list[Panel | None]]:
    signed, spread = GENERATOR.normal(size=(8, 8)), GENERATOR.random((8, 8))
    title = "a name of a class which is much longer than its panel\nlogit 12.3"
    return [
        [
            Panel(GENERATOR.random((3, 8, 8)), title=title, caption=title),
            Panel(signed, "signed", title=title, caption=title, unit="logit"),
            Panel(spread, "unsigned", limit=7.0),
        ],
        [None, Panel(signed / 9, "signed", unit="logit"), Panel(spread, "unsigned", limit=7.0)],
    ]


def test_nothing_of_a_grid_overlaps_or_is_cut_off() -> None:
    check_layout(panel_figure(grid(), title="A title\nof two lines", names=("above", "below")))


def test_a_grid_has_the_scales_and_words_of_its_panels() -> None:
    figure = panel_figure(grid(), title="t", names=("above", "below"), colors="seismic")
    width, height = PANEL_SIZE
    assert figure.get_size_inches() == pytest.approx([3 * width, 2 * height + 0.3])
    axes = [a for a in figure.axes if a.get_label() != "<colorbar>"]
    assert [a.get_ylabel() for a in axes] == ["above", "", "", "below", "", ""]
    assert list(axes[3].images) == []
    low, high = axes[1].images[0].get_clim()
    assert low == -high
    assert axes[1].images[0].get_cmap().name == "seismic"
    assert axes[2].images[0].get_clim() == axes[5].images[0].get_clim() == (0.0, 7.0)
    assert axes[1].images[0].colorbar is not None
    assert axes[1].images[0].colorbar.ax.get_ylabel() == "logit"
    assert axes[0].get_title().endswith("\nlogit 12.3")
    assert max(map(len, axes[0].get_title().splitlines())) < 30


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("698_n03877845_palace.JPEG", "698_n03877845_\npalace.JPEG"),
        ("a_b.png", "a_b.png"),
        ("seen from the left, wrong", "seen from the left,\nwrong"),
    ],
)
def test_a_long_caption_is_broken_where_it_reads_best(caption: str, shown: str) -> None:
    figure = panel_figure([[Panel(np.zeros((2, 2)), "unsigned", caption=caption)]], title="t")
    assert figure.axes[0].get_xlabel() == shown


def test_one_limit_holds_for_several_maps() -> None:
    assert color_limit(np.full((2, 2), -3.0), np.ones((2, 2))) == 3.0


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "the rows hold"),
        ([[None, None], [None]], {}, r"\[2, 1\] panels"),
        ([[None]], {"names": ("a", "b")}, "2 names for 1 rows"),
        ([[None]], {"colors": "nice"}, "no colour map 'nice'"),
        ([[Panel(np.zeros((1, 2, 2)), "signed")]], {}, "a figure takes one of shape"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_refused(
    rows: list[list[Panel | None]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        panel_figure(rows, title="t", **options)


def test_a_picture_without_rows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no row to draw"):
        demo_figure([], title="t")


def test_figures_leave_no_global_state() -> None:
    before = pyplot.get_fignums(), dict(rcParams)
    demo_figure([panels()], title="t")
    assert (pyplot.get_fignums(), dict(rcParams)) == before


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lrpguard\[plots\]'"):
        require_matplotlib()
