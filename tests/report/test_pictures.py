"""Images and maps as PNG, read back."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lrpguard.report.pictures import SIDE, Panel, image_panel, signed_panel, unsigned_panel


def read(panel: Panel) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    head, _, data = panel.uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_an_image_is_shown_as_it_is() -> None:
    image = np.zeros((3, 2, 2))
    image[0, 0, 1], image[2, 1, 0] = 1.0, 0.2
    shown = read(image_panel(image, "x"))
    assert shown[0, 1].tolist() == [255, 0, 0]
    assert shown[1, 0].tolist() == [0, 0, 51]
    assert read(image_panel(np.full((1, 2, 2), 0.2), "x"))[0, 0].tolist() == [51, 51, 51]


def test_a_signed_map_is_white_at_zero_red_above_and_blue_below() -> None:
    shown = read(signed_panel([[0.0, 1.0], [-1.0, 0.5]], "x"))
    assert shown[0, 0].tolist() == [247, 247, 247]
    assert shown[0, 1, 0] > shown[0, 1, 2]
    assert shown[1, 0, 2] > shown[1, 0, 0]


def test_a_variance_is_brighter_where_it_is_larger() -> None:
    shown = read(unsigned_panel([[0.0, 0.5, 1.0]], "x")).astype(int).sum(axis=2)[0]
    assert shown[0] < shown[1] < shown[2]


@pytest.mark.parametrize("draw", [signed_panel, unsigned_panel])
def test_a_map_of_zeros(draw: object) -> None:
    assert callable(draw)
    assert read(draw(np.zeros((3, 3)), "x")).shape == (3, 3, 3)


def test_large_images_are_reduced() -> None:
    assert read(image_panel(np.zeros((3, 600, 300)), "x")).shape == (SIDE, SIDE // 2, 3)
