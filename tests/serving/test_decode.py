"""Image files from strangers: how many pixels they may hold, or get."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from lrpguard.loading import Preprocessing
from lrpguard.serving.decode import decode_image
from lrpguard.serving.refusal import RefusedError

PIXELS = 100_000


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (PIXELS + 1, 1, f"the limit is {PIXELS}"),
        (90_000, 1, "256 x 23040000"),
        (1, 90_000, "23040000 x 256"),
    ],
)
def test_too_many_pixels_are_too_large(width: int, height: int, words: str) -> None:
    preprocessing = Preprocessing(image_size=(224, 224), resize_size=256)
    with pytest.raises(RefusedError, match=words) as caught:
        decode_image(png(width, height), preprocessing, max_pixels=PIXELS)
    assert (caught.value.status, caught.value.code) == (413, "too_large")


def test_an_image_larger_than_the_limit_only_when_resized_is_decoded() -> None:
    preprocessing = Preprocessing(image_size=(224, 224), resize_size=256)
    image = decode_image(png(20, 10), preprocessing, max_pixels=200)
    assert image.shape == (3, 224, 224)
