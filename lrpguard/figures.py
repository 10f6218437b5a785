"""Figures of relevance maps, from arrays alone. Needs the ``plots`` extra."""

from __future__ import annotations

import functools
import importlib
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from lrpguard.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIGNED_MAP = "RdBu_r"
"""Diverging colours of signed relevance, red for and blue against: safe for colour-blind eyes."""

UNSIGNED_MAP = "viridis"
"""Sequential colours of a variance, from 0: safe for colour-blind eyes."""

CLIPPED_SHARE = 0.005
"""Share of the pixels at the ends of a map that may saturate, so that a few do not hide the rest.

The colour bar is pointed where they do. On small maps it comes to no pixel.
"""

DPI = 100
RELEVANCE_SIZE = (11.0, 3.9)
"""Width and height of :func:`relevance_figure` in inches."""

PANEL_SIZE = (2.6, 2.25)
"""Width and height of one panel of :func:`panel_figure` in inches, its colour bar included."""

_ROW_HEIGHT = 2.05
_DEMO_WIDTH = 11.0
_CAPTION = 9
_LINE = 22

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class DemoPanels:
    """One row of :func:`demo_figure`: a digit from clean to restored.

    Attributes:
        clean: Clean image [C, H, W] in [0, 1].
        adversarial: Attacked image [C, H, W] in [0, 1].
        relevance: Mean relevance map of the attacked image [H, W].
        variance: Its variance map [H, W].
        denoised: Mean of the attacked image's changed views [C, H, W] in [0, 1].
        clean_caption: What stands under the clean image.
        adversarial_caption: What stands under the attacked image.
        restored_caption: What became of the label; stands under the denoised image.
    """

    clean: Array
    adversarial: Array
    relevance: Array
    variance: Array
    denoised: Array
    clean_caption: str
    adversarial_caption: str
    restored_caption: str


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of :func:`panel_figure`.

    Attributes:
        values: Pixels [C, H, W] in [0, 1] of an image; values [H, W] of a map.
        kind: ``"image"``, ``"signed"`` (diverging colours, symmetric about 0) or ``"unsigned"``
            (sequential colours, from 0).
        title: What stands above; long lines are broken.
        caption: What stands below; long lines are broken.
        unit: What the colour bar measures.
        limit: End of a map's colour scale, > 0; None takes the map's own. Maps that shall be
            compared by eye need one limit; see :func:`color_limit`.
    """

    values: Array
    kind: Literal["image", "signed", "unsigned"] = "image"
    title: str = ""
    caption: str = ""
    unit: str = ""
    limit: float | None = None


def require_matplotlib() -> None:
    """Refuse early where matplotlib is missing.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependencyError(
            "figures need matplotlib, which is not installed: pip install 'lrpguard[plots]'."
        ) from error


def relevance_figure(image: Array, mean: Array, variance: Array, *, title: str) -> Figure:
    """Draw an image beside the mean and the variance of its relevance.

    Args:
        image: Pixels [C, H, W] in [0, 1], grey (C = 1) or RGB (C = 3).
        mean: Mean relevance of each pixel, signed, in units of the logit [H, W].
        variance: Variance of it over the noisy copies, in units of the logit squared [H, W].
        title: What stands above.

    Returns:
        A figure of ``RELEVANCE_SIZE`` at ``DPI``, which holds no global state.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ConfigurationError: An array has another shape.
    """
    figure = _figure(RELEVANCE_SIZE)
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(1, 3)
    show_image(axes[0], image)
    axes[0].set_title("image", fontsize=10)
    _with_bar(figure, axes[1], show_signed(axes[1], mean), mean)
    axes[1].set_title("relevance, mean (red for, blue against)", fontsize=10)
    _with_bar(figure, axes[2], show_unsigned(axes[2], variance), variance)
    axes[2].set_title("relevance, variance under noise", fontsize=10)
    return figure


def demo_figure(rows: Sequence[DemoPanels], *, title: str) -> Figure:
    """Draw digits, one a row: clean, adversarial, relevance mean and variance, denoised.

    Args:
        rows: What each row shows, at least one.
        title: What stands above.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ConfigurationError: There is no row, or an array has another shape.
    """
    if not rows:
        raise ConfigurationError("there is no row to draw; give at least one.")
    figure = _figure((_DEMO_WIDTH, 0.9 + _ROW_HEIGHT * len(rows)))
    figure.suptitle(title, fontsize=12)
    grid = figure.subplots(len(rows), 5, squeeze=False)
    heads = (
        "clean",
        "adversarial",
        "relevance, mean\nred for, blue against",
        "relevance, variance\nunder noise",
        "changed views, mean\nlabel restored",
    )
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=10)
    for axes, row in zip(grid, rows, strict=True):
        show_image(axes[0], row.clean)
        axes[0].set_xlabel(row.clean_caption, fontsize=_CAPTION)
        show_image(axes[1], row.adversarial)
        axes[1].set_xlabel(row.adversarial_caption, fontsize=_CAPTION)
        _with_bar(figure, axes[2], show_signed(axes[2], row.relevance), row.relevance)
        _with_bar(figure, axes[3], show_unsigned(axes[3], row.variance), row.variance)
        show_image(axes[4], row.denoised)
        axes[4].set_xlabel(row.restored_caption, fontsize=_CAPTION)
    return figure


def panel_figure(
    rows: Sequence[Sequence[Panel | None]],
    *,
    title: str,
    names: Sequence[str] = (),
    colors: str = SIGNED_MAP,
) -> Figure:
    """Draw images and maps in a grid, each map with its colour bar.

    Args:
        rows: Panels of each row, equally many; None leaves a place empty.
        title: What stands above all; its lines are not broken.
        names: What stands left of each row; none, or one a row.
        colors: Colour map of signed maps, e.g. ``"seismic"``.

    Returns:
        A figure of ``PANEL_SIZE`` a panel, which holds no global state.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ConfigurationError: The rows are empty or of different lengths, there are other names than
            rows, the colour map is not known, or an array has another shape.
    """
    if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        raise ConfigurationError(
            f"the rows hold {[len(row) for row in rows]} panels; give rows of one length >= 1."
        )
    if names and len(names) != len(rows):
        raise ConfigurationError(f"there are {len(names)} names for {len(rows)} rows; give each.")
    width, height = PANEL_SIZE
    figure = _figure((width * len(rows[0]), 0.3 * (title.count("\n") + 1) + height * len(rows)))
    _check_colors(colors)
    figure.suptitle(title, fontsize=12)
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            _show_panel(figure, axes, panel, colors)
    for axes_row, name in zip(grid, names, strict=False):
        axes_row[0].set_ylabel(name, fontsize=11)
    return figure


def request_figure(
    mean: Array,
    variance: Array,
    *,
    title: str,
    image: Array | None = None,
    others: Sequence[Panel] = (),
) -> Figure:
    """Draw what is known of one request in a row: its image, its maps, and what else there is.

    Args:
        mean: Mean relevance, signed, in units of the logit [H, W].
        variance: Variance of it over the noisy copies [H, W].
        title: What stands above.
        image: Pixels [C, H, W] in [0, 1], or None.
        others: What stands to the right.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ConfigurationError: An array has another shape.
    """
    first = () if image is None else (Panel(image, title="image"),)
    maps = (
        Panel(mean, "signed", title="relevance, mean", unit="logit"),
        Panel(variance, "unsigned", title="relevance, variance", unit="logit²"),
    )
    return panel_figure([[*first, *maps, *others]], title=title)


def show_image(axes: Axes, image: Array) -> AxesImage:
    """Show pixels [C, H, W] in [0, 1], black to white or in colour.

    Raises:
        ConfigurationError: C is neither 1 nor 3.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ConfigurationError(
            f"an image has shape {list(image.shape)}; a figure takes [C, H, W], C = 1 or 3."
        )
    axes.set(xticks=[], yticks=[])
    if image.shape[0] == 1:
        return axes.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    return axes.imshow(image.transpose(1, 2, 0), vmin=0, vmax=1)


def show_signed(
    axes: Axes, values: Array, *, colors: str = SIGNED_MAP, limit: float | None = None
) -> AxesImage:
    """Show a signed map [H, W] in diverging colours, symmetric about 0, up to a limit."""
    limit = limit or color_limit(values)
    axes.set(xticks=[], yticks=[])
    return axes.imshow(values, cmap=colors, vmin=-limit, vmax=limit)


def show_unsigned(
    axes: Axes, values: Array, *, colors: str = UNSIGNED_MAP, limit: float | None = None
) -> AxesImage:
    """Show a map [H, W] of values >= 0 in sequential colours, from 0 to a limit."""
    limit = limit or color_limit(values)
    axes.set(xticks=[], yticks=[])
    return axes.imshow(values, cmap=colors, vmin=0, vmax=limit)


def color_limit(*maps: Array) -> float:
    """Return the end of a colour scale for maps [H, W]: few pixels of any lie beyond.

    Raises:
        ConfigurationError: An array has another shape.
    """
    return max(_limit(np.abs(_map(values))) for values in maps)


def save_png(figure: Figure, path: str | Path | BinaryIO, *, dpi: int = DPI) -> None:
    """Write a figure as a PNG of its own size.

    Args:
        figure: The figure.
        path: Where to, a path or an open file.
        dpi: Pixels an inch.

    Raises:
        OSError: The file cannot be written.
    """
    figure.savefig(path, format="png", dpi=dpi)


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    content = io.BytesIO()
    save_png(figure, content)
    return content.getvalue()


def _figure(size: tuple[float, float]) -> Figure:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure_type()(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@functools.cache
def _figure_type() -> type[Figure]:
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self) -> bytes:
            return png_bytes(self)

    return ShownFigure


def _check_colors(name: str) -> None:
    from matplotlib import colormaps

    if name not in colormaps:
        raise ConfigurationError(
            f"matplotlib knows no colour map {name!r}. Diverging ones are e.g. {SIGNED_MAP!r}, "
            "'seismic', 'PuOr' and 'vanimo'."
        )


def _show_panel(figure: Figure, axes: Axes, panel: Panel | None, colors: str) -> None:
    """Draw one panel of a grid with its titles; keep the place free for None."""
    if panel is None:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return
    axes.set_title(_wrapped(panel.title), fontsize=10)
    axes.set_xlabel(_wrapped(panel.caption), fontsize=_CAPTION)
    if panel.kind == "image":
        show_image(axes, panel.values)
        return
    if panel.kind == "signed":
        shown = show_signed(axes, panel.values, colors=colors, limit=panel.limit)
    else:
        shown = show_unsigned(axes, panel.values, limit=panel.limit)
    _with_bar(figure, axes, shown, panel.values, panel.unit)


def _wrapped(text: str) -> str:
    """Break what is longer than a panel is wide; names of files behind an underscore."""
    lines = (textwrap.fill(line.replace("_", "_ "), _LINE) for line in text.splitlines())
    return "\n".join(lines).replace("_ ", "_")


def _with_bar(figure: Figure, axes: Axes, shown: AxesImage, values: Array, unit: str = "") -> None:
    """Put a colour bar beside a map, pointed at the ends beyond which values were clipped."""
    low, high = shown.get_clim()
    below, above = bool(np.min(values) < low), bool(np.max(values) > high)
    extend = ("neither", "max", "min", "both")[2 * below + above]
    bar = figure.colorbar(shown, ax=axes, extend=extend, fraction=0.046, pad=0.04)
    bar.ax.tick_params(labelsize=8)
    bar.ax.locator_params(nbins=4)
    bar.ax.ticklabel_format(scilimits=(-2, 3))
    bar.ax.yaxis.get_offset_text().set_fontsize(8)
    bar.set_label(unit, fontsize=8)


def _map(values: Array) -> Array:
    values = np.asarray(values)
    if values.ndim != 2:
        raise ConfigurationError(
            f"a map has shape {list(values.shape)}; a figure takes one of shape [H, W]."
        )
    return values


def _limit(magnitudes: Array) -> float:
    """Return the end of one map's scale: at most ``CLIPPED_SHARE`` of the pixels lie beyond."""
    limit = float(np.quantile(magnitudes, 1 - CLIPPED_SHARE, method="higher"))
    return limit or float(magnitudes.max()) or 1.0
