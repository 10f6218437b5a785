"""From the bytes of an image file, sent by anyone, to a tensor."""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lrpguard.errors import ImageSizeError, LoadingError
from lrpguard.loading import Preprocessing
from lrpguard.loading.preprocessing import read_image
from lrpguard.serving.refusal import RefusedError, bad_request

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats that are read from strangers: those that browsers send, and no seldom-used decoder."""


def decode_image(content: bytes, preprocessing: Preprocessing, *, max_pixels: int) -> Tensor:
    """Decode an image file.

    The size is read from the header and checked before any pixel is decoded.

    Args:
        content: The file.
        preprocessing: Channels and size to bring it to.
        max_pixels: Largest width * height.

    Returns:
        Pixels [C, H, W], float32 in [0, 1].

    Raises:
        RefusedError: 413 where it has too many pixels, or would get them when it is brought to
            size; 400 where it is no image of ``FORMATS``, or damaged.
    """
    _check_header(io.BytesIO(content), max_pixels)
    try:
        return read_image(
            io.BytesIO(content), preprocessing, formats=FORMATS, max_pixels=max_pixels
        )
    except ImageSizeError as error:
        raise RefusedError(413, "too_large", str(error)) from error
    except LoadingError as error:
        if error.__cause__ is None:  # our own words; a decoder's could tell of the server
            raise bad_request(error) from error
        raise bad_request("the image file is damaged or cut off. Send it again, whole.") from error


def _check_header(file: BinaryIO, max_pixels: int) -> None:
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        names = ", ".join(FORMATS)
        raise bad_request(f"the file is no image of these formats: {names}.") from error
    except Image.DecompressionBombError as error:
        raise _too_large("far more", max_pixels) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise bad_request("the image file is damaged. Send it again, whole.") from error
    if width * height > max_pixels:
        raise _too_large(f"{width} x {height}", max_pixels)


def _too_large(found: str, limit: int) -> RefusedError:
    return RefusedError(
        413,
        "too_large",
        f"the image holds {found} pixels; the limit is {limit}. Send it at the model's size.",
    )
