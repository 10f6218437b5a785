"""From an image file, or an array, to a tensor [C, H, W] in [0, 1]. Never normalised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from lrpguard.errors import ConfigurationError, ImageSizeError, LoadingError
from lrpguard.inputs import MAX_PIXELS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
"""File name endings that are read as images, in any case."""

MAX_FILE_PIXELS = 89_478_485
"""Largest width * height of an image file that is decoded: Pillow's own warning limit."""

_PIL_MODES = {1: "L", 3: "RGB"}
_MAX_UINT16 = 65_535


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to an image before a model sees it: resize, centre crop, scale to [0, 1].

    The steps are those of torchvision's classification transforms without the normalisation,
    which belongs to the model (:class:`lrpguard.inputs.NormalizedModel`).

    Args:
        channels: 3 for RGB, 1 for grey.
        image_size: (H, W) of the centre crop in pixels; None leaves each image its own size.
        resize_size: Pixels of the shorter side before the crop. None with an ``image_size``
            scales the image until it just covers the crop.
        interpolation: How pixels are resampled, always with anti-aliasing.

    Raises:
        ConfigurationError: Another number of channels, or a size that is not positive.
    """

    channels: int = 3
    image_size: tuple[int, int] | None = None
    resize_size: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if self.channels not in _PIL_MODES:
            raise ConfigurationError(
                f"channels is {self.channels}; images are read as grey (1) or RGB (3)."
            )
        if min((*(self.image_size or ()), self.resize_size or 1), default=1) < 1:
            raise ConfigurationError(
                f"image_size is {self.image_size} and resize_size {self.resize_size}; "
                "sizes are counts of pixels, at least 1."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigurationError(
                f"interpolation is {self.interpolation!r}; expected 'bilinear' or 'bicubic'."
            )

    def fit(self, image: Image.Image) -> Image.Image:
        """Return the image resized and cropped as this preprocessing says.

        Raises:
            ImageSizeError: It would get too many pixels before it is cropped.
        """
        target = self._resize_target(image.height, image.width)
        if target is not None:
            image = transforms.resize(image, target, InterpolationMode(self.interpolation))
        return image if self.image_size is None else transforms.center_crop(image, self.image_size)

    def fit_tensor(self, image: Tensor) -> Tensor:
        """Return the float image [C, H, W] in [0, 1] resized and cropped in the same way.

        Raises:
            ImageSizeError: It would get too many pixels before it is cropped.
        """
        target = self._resize_target(image.shape[1], image.shape[2])
        if target is not None:
            mode = InterpolationMode(self.interpolation)
            image = transforms.resize(image, target, mode, antialias=True).clamp(0, 1)
        if self.image_size is not None:
            image = transforms.center_crop(image, self.image_size)
        return image

    def _resize_target(self, height: int, width: int) -> list[int] | None:
        """Return what torchvision's resize takes: [shorter side] or [H, W]; None for no resize."""
        if self.resize_size is not None:
            size, shorter = self.resize_size, min(height, width)
            _check_resized(height, width, size * height // shorter, size * width // shorter)
            return [size]
        if self.image_size is None:
            return None
        scale = max(self.image_size[0] / height, self.image_size[1] / width)
        target = [
            max(self.image_size[0], round(height * scale)),
            max(self.image_size[1], round(width * scale)),
        ]
        _check_resized(height, width, *target)
        return target


def read_image(
    file: Path | BinaryIO,
    preprocessing: Preprocessing,
    *,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
) -> Tensor:
    """Read one image file.

    EXIF orientation is applied, transparency dropped, and the first frame taken of an
    animation. 16-bit grey files are scaled by their full range.

    Args:
        file: Its path, or the file itself, opened.
        preprocessing: Channels and size to bring it to.
        formats: Pillow's names of the formats that are read; None reads all it knows.
        max_pixels: Largest width * height that is decoded; None takes Pillow's limit.

    Returns:
        Pixels [C, H, W], float32 in [0, 1].

    Raises:
        ImageSizeError: The file is too large, or would be where it is brought to size.
        LoadingError: The file cannot be read or decoded.
    """
    try:
        with Image.open(file, formats=formats) as opened:
            _check_size(opened, max_pixels)
            image = preprocessing.fit(_to_mode(opened, preprocessing.channels))
    except LoadingError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        reason = str(error) or type(error).__name__
        raise LoadingError(f"cannot decode the image: {reason}") from error
    return to_unit_range(np.array(image))


def to_unit_range(pixels: npt.NDArray[Any]) -> Tensor:
    """Return 8-bit pixels [H, W] or [H, W, C] as a float32 tensor [C, H, W] in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    tensor = tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()
    if tensor.shape[1] * tensor.shape[2] > MAX_PIXELS:
        raise ImageSizeError(
            f"the image has {tensor.shape[1]} x {tensor.shape[2]} pixels; lrpguard takes at most "
            f"{MAX_PIXELS}. Give the model's image size, or resize the file."
        )
    return tensor.float() / 255


def _check_size(image: Image.Image, limit: int | None) -> None:
    limit = limit or Image.MAX_IMAGE_PIXELS or MAX_FILE_PIXELS
    if image.width * image.height > limit:
        raise ImageSizeError(
            f"the file holds {image.width} x {image.height} pixels, more than the limit of "
            f"{limit}: it may be a decompression bomb. Resize the file if you trust it."
        )


def _check_resized(height: int, width: int, new_height: int, new_width: int) -> None:
    """Refuse a narrow image that its resize would make huge, to be cropped to a part of it.

    One that does not grow is let through: it is in memory already, within its own limit.
    """
    pixels = new_height * new_width
    if pixels > max(MAX_PIXELS, height * width):
        raise ImageSizeError(
            f"the image has {height} x {width} pixels, and {new_height} x {new_width} where its "
            f"shorter side fits the model; lrpguard takes at most {MAX_PIXELS}. Crop it to the "
            "part that the model shall see."
        )


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    oriented = ImageOps.exif_transpose(image)
    if oriented.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        scaled = np.asarray(oriented).astype(np.float64) * (255 / _MAX_UINT16)
        oriented = Image.fromarray(np.round(scaled).astype(np.uint8))
    if oriented.mode in ("I", "F"):
        raise LoadingError(
            "the file holds 32-bit pixels, whose range is not known. Save it with 8 or 16 bits, "
            "or give the images as floats in [0, 1] in an .npz file."
        )
    return oriented.convert(_PIL_MODES[channels])
