"""What the paper's figures show: the right maps, scales and words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.paper import Settings
from lrpguard.evaluation.paper.pictures import (
    Reversal,
    figure1_panels,
    figure2_panels,
    figure3_panels,
    find_reversal,
    rule_pairs,
)
from lrpguard.figures import Panel, panel_figure
from lrpguard.loading import ImageItem, LoadedModel, Preprocessing
from lrpguard.lrp import CMP
from lrpguard.restoration import UNKNOWN
from lrpguard.smoothing import Smoothing, explain
from tests.support import CLASSES, images, small_net

SMOOTHING = Smoothing(n=3, sigma=0.1, seed=4)
NAMES = tuple(f"thing {i}" for i in range(CLASSES))


def loaded(model: nn.Module, names: tuple[str, ...] | None = NAMES) -> LoadedModel:
    return LoadedModel(
        model=model, name="small", preprocessing=Preprocessing(channels=3), class_names=names
    )


def item(image: Tensor, label: int = 0) -> ImageItem:
    return ImageItem(0, "picture.png", image, label)


def gradient_times_input(model: nn.Module, image: Tensor) -> Tensor:
    leaf = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).max(), leaf)
    return (leaf * gradient).detach()[0].sum(0)


def test_pairs_are_the_plain_map_and_its_mean_over_the_copies() -> None:
    model, (image,) = small_net(), images(1)
    pairs = rule_pairs(model, image, smoothing=SMOOTHING, gamma=0.25, epsilon=1.0)
    assert [pair.name.split(",")[0] for pair in pairs] == [
        "LRP-0",
        "LRP-gamma",
        "LRP-epsilon",
        "LRP-CMP",
        "B-LRP",
        "median: B-LRP",
    ]
    expected = gradient_times_input(model, image).numpy()
    np.testing.assert_allclose(pairs[0].plain, expected, rtol=1e-4, atol=1e-5)
    smooth = explain(model, image[None], n=3, sigma=0.1, seed=4, composite=CMP, quantiles=(0.5,))
    assert np.array_equal(pairs[3].smoothed, smooth.relevance_mean[0].numpy())
    assert not np.array_equal(pairs[0].plain, pairs[2].plain)


def test_the_median_of_smoothlrp_is_that_of_the_copies() -> None:
    model, (image,) = small_net(), images(1)
    pairs = rule_pairs(model, image, smoothing=SMOOTHING, gamma=0.25, epsilon=1.0)
    smooth = explain(model, image[None], n=3, sigma=0.1, seed=4, quantiles=(0.5,))
    assert smooth.relevance_quantiles is not None
    expected = smooth.relevance_quantiles[0, 0].numpy()
    np.testing.assert_allclose(pairs[5].smoothed, expected, rtol=1e-4, atol=1e-5)


def test_b_lrp_drops_where_the_network_does_or_everywhere() -> None:
    model = small_net()
    dropping = nn.Sequential(*model[:-1], nn.Dropout(0.5), model[-1]).eval()
    (image,) = images(1)
    own = rule_pairs(dropping, image, smoothing=SMOOTHING, gamma=0.25, epsilon=1.0)
    everywhere = rule_pairs(model, image, smoothing=SMOOTHING, gamma=0.25, epsilon=1.0)
    assert np.array_equal(own[0].plain, everywhere[0].plain)
    assert not np.array_equal(own[4].plain, everywhere[4].plain)


def test_figure_1_has_a_column_a_pair_under_the_named_image() -> None:
    model, (image,) = small_net(), images(1)
    label = int(model(image[None]).argmax())
    pairs = rule_pairs(model, image, smoothing=SMOOTHING, gamma=0.25, epsilon=1.0)
    above, below = figure1_panels(loaded(model), item(image, label), pairs)
    assert above[0] is not None
    logit = float(model(image[None]).detach().max())
    assert above[0].title == f"thing {label}\nlogit {logit:.1f}"
    assert below[0] is None
    for column, pair in enumerate(pairs, 1):
        top, bottom = above[column], below[column]
        assert top is not None
        assert bottom is not None
        assert top.values is pair.plain
        assert bottom.values is pair.smoothed
        assert top.kind == bottom.kind == "signed"
    panel_figure([above, below], title="t").draw_without_rendering()


def test_figure_2_fills_its_last_row_and_marks_wrong_predictions() -> None:
    model, batch = small_net(), images(3)
    labels = model(batch).argmax(1).tolist()
    shown = [item(batch[0], labels[0]), item(batch[1], labels[1] - 1), item(batch[2], labels[2])]
    rows = figure2_panels(loaded(model, None), shown, smoothing=SMOOTHING, across=2)
    assert [len(row) for row in rows] == [6, 6]
    assert rows[1][3:] == [None, None, None]
    titles = [panel.title if panel else "" for row in rows for panel in row]
    assert titles[0].startswith(f"class {labels[0]}\n")
    assert [("(wrong)" in titles[i]) for i in (0, 3, 6)] == [False, True, False]
    plain, smooth = rows[0][1], rows[0][2]
    assert plain is not None
    assert smooth is not None
    expected = explain(model, batch[:1], n=3, sigma=0.1, seed=4, composite=CMP)
    assert np.array_equal(smooth.values, expected.relevance_mean[0].numpy())
    assert plain.limit is None


def test_figure_2_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no image to show"):
        figure2_panels(loaded(small_net()), [], smoothing=SMOOTHING)


SETTINGS = Settings(eps=0.25, steps=5, n=6, max_rounds=4, seed=3, stop_early=True)


@pytest.fixture(scope="module")
def reversal() -> Reversal:
    return find_reversal(load_digits_model(), digits(40), settings=SETTINGS, tries=40)


def digits(count: int) -> list[ImageItem]:
    pytest.importorskip("sklearn")
    test = load_digit_splits().test
    return [ImageItem(i, f"digit {i}", test.images[i], int(test.labels[i])) for i in range(count)]


def test_a_reversal_shows_what_happened(reversal: Reversal) -> None:
    model = load_digits_model()
    assert reversal.is_right
    assert int(model(reversal.clean[None]).argmax()) == reversal.item.label
    assert int(model(reversal.adversarial[None]).argmax()) != reversal.item.label
    assert int(model(reversal.whitened[None]).argmax()) == reversal.item.label
    changed = reversal.restoration.changed_pixels[0]
    assert bool((reversal.whitened[:, changed] == 1).all())
    assert torch.equal(reversal.whitened[:, ~changed], reversal.adversarial[:, ~changed])
    assert float((reversal.adversarial - reversal.clean).abs().max()) <= 64 / 255 + 1e-6
    assert reversal.tried >= 1


def test_figure_3_has_both_variances_on_one_scale(reversal: Reversal) -> None:
    model = LoadedModel(
        model=load_digits_model(), name="digits", preprocessing=Preprocessing(channels=1)
    )
    (_, attacked, difference), (before, after, white) = figure3_panels(model, reversal)
    assert isinstance(before, Panel)
    assert isinstance(after, Panel)
    assert before.limit == after.limit
    assert before.kind == after.kind == "unsigned"
    assert np.array_equal(after.values, reversal.after.relevance_variance[0].numpy())
    assert attacked is not None
    assert difference is not None
    assert white is not None
    assert attacked.caption.startswith(f"class {int(reversal.after.label)}\n")
    assert white.caption.startswith(f"right: class {reversal.item.label}\n")
    assert 0 <= difference.values.min() < 0.5 < difference.values.max() <= 1

    unchanged = replace(
        reversal,
        restoration=replace(reversal.restoration, label=torch.tensor([UNKNOWN])),
    )
    last = figure3_panels(model, unchanged)[1][2]
    assert last is not None
    assert last.caption == "the label has not changed"


def test_the_first_attack_stands_for_those_that_are_not_restored() -> None:
    settings = replace(SETTINGS, stop_early=False, max_rounds=1, pixels=1, eps=0.5)
    found = find_reversal(load_digits_model(), digits(6), settings=settings, tries=3)
    assert not found.is_right
    assert found.tried == 3
    assert found.item.name == "digit 0"


def test_no_successful_attack_is_an_error() -> None:
    settings = replace(SETTINGS, eps=1e-6)
    with pytest.raises(ConfigurationError, match="no attack has turned"):
        find_reversal(load_digits_model(), digits(2), settings=settings, tries=3)
    with pytest.raises(ConfigurationError, match="tries is 0"):
        find_reversal(load_digits_model(), digits(2), settings=settings, tries=0)
