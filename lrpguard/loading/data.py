"""Images from a folder, a file, a glob or an .npz, one after the other, broken ones included."""

from __future__ import annotations

import glob
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lrpguard.errors import ConfigurationError, LoadingError
from lrpguard.inputs import PIXEL_TOLERANCE
from lrpguard.loading.preprocessing import (
    IMAGE_SUFFIXES,
    Preprocessing,
    read_image,
    to_unit_range,
)

_NPZ_KEYS = ("images", "labels")
_GLOB_CHARACTERS = frozenset("*?[")
_NPZ_LAYOUTS = "uint8 [N, H, W, C] or [N, H, W], or floats in [0, 1] of shape [N, C, H, W]"


@dataclass(frozen=True)
class ImageItem:
    """One image of a source, or the reason why it cannot be read.

    Attributes:
        index: Position in the source.
        name: Path relative to the folder that was named, the path itself for a file or a
            glob, or ``file.npz[12]``.
        image: Pixels [C, H, W], float32 in [0, 1]; None where ``error`` is set.
        label: True class where the source carries labels.
        error: Why the image cannot be read; None where it can.
    """

    index: int
    name: str
    image: Tensor | None
    label: int | None = None
    error: str | None = None


class ImageSource(ABC):
    """Images in a fixed order, each read when it is asked for, and not kept."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many images there are, broken ones included."""

    @abstractmethod
    def __getitem__(self, index: int) -> ImageItem:
        """Read the image at a position, 0 <= index < len."""

    @abstractmethod
    def part(self, start: int, stop: int) -> ImageSource:
        """Return some of the images, as a source that can be sent to another process.

        Items keep their index and name; paths become absolute.
        """

    def __iter__(self) -> Iterator[ImageItem]:
        for index in range(len(self)):
            yield self[index]


class FileSource(ImageSource):
    """Image files.

    Args:
        paths: The files, in order.
        names: What to call each of them.
        preprocessing: Channels and size to bring each to.
        first: Index of the first, where they are a part of a source.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        names: Sequence[str],
        *,
        preprocessing: Preprocessing,
        first: int = 0,
    ) -> None:
        self.paths = tuple(paths)
        self.names = tuple(names)
        self.preprocessing = preprocessing
        self.first = first

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageItem:
        try:
            image = read_image(self.paths[index], self.preprocessing)
        except LoadingError as error:
            return ImageItem(self.first + index, self.names[index], None, error=str(error))
        return ImageItem(self.first + index, self.names[index], image)

    def part(self, start: int, stop: int) -> FileSource:
        """Return the files from one position to another."""
        paths = [path.absolute() for path in self.paths[start:stop]]
        names = self.names[start:stop]
        return FileSource(paths, names, preprocessing=self.preprocessing, first=self.first + start)


class ArraySource(ImageSource):
    """Images of an array that is held in memory.

    An image that has the size asked for is taken as it is; any other is resized and cropped.

    Args:
        images: uint8 [N, H, W, C] or floats [N, C, H, W] in [0, 1].
        labels: Integers [N], or None.
        name: What to call the array; image 12 is called ``name[12]``.
        preprocessing: Size to bring each image to.
        first: Index of the first, where they are a part of a source.
    """

    def __init__(
        self,
        images: npt.NDArray[Any],
        labels: npt.NDArray[Any] | None,
        name: str,
        *,
        preprocessing: Preprocessing,
        first: int = 0,
    ) -> None:
        self.images = images
        self.labels = labels
        self.name = name
        self.preprocessing = preprocessing
        self.first = first

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageItem:
        pixels = self.images[index]
        place = self.first + index
        name = f"{self.name}[{place}]"
        label = None if self.labels is None else int(self.labels[index])
        try:
            image = self._from_bytes(pixels) if pixels.dtype == np.uint8 else self._floats(pixels)
        except LoadingError as error:
            return ImageItem(place, name, None, label, str(error))
        return ImageItem(place, name, image, label)

    def part(self, start: int, stop: int) -> ArraySource:
        """Return the images from one position to another, as a copy."""
        labels = None if self.labels is None else self.labels[start:stop].copy()
        return ArraySource(
            self.images[start:stop].copy(),
            labels,
            self.name,
            preprocessing=self.preprocessing,
            first=self.first + start,
        )

    def _from_bytes(self, pixels: npt.NDArray[Any]) -> Tensor:
        if pixels.shape[:2] != (self.preprocessing.image_size or pixels.shape[:2]):
            grey = pixels.shape[2] == 1
            image = Image.fromarray(pixels[:, :, 0] if grey else pixels)
            pixels = np.array(self.preprocessing.fit(image))
        return to_unit_range(pixels)

    def _floats(self, pixels: npt.NDArray[Any]) -> Tensor:
        if not np.isfinite(pixels).all():
            raise LoadingError("the image holds NaN or infinite pixels.")
        image = torch.from_numpy(pixels.astype(np.float32)).clamp(0, 1)
        fits = tuple(image.shape[1:]) == (self.preprocessing.image_size or tuple(image.shape[1:]))
        return image if fits else self.preprocessing.fit_tensor(image)


def load_data(spec: str | Path, *, preprocessing: Preprocessing) -> ImageSource:
    """Open a set of images.

    Folder and file names are never read as labels: only an .npz carries them.

    Args:
        spec: A folder (searched in its sub-folders, in order of path; hidden files are left
            out), one image file, a glob such as ``"images/**/*.png"``, or an ``.npz`` with
            ``images`` (uint8 [N, H, W, C] or [N, H, W], or floats in [0, 1] [N, C, H, W]) and
            optionally integer ``labels`` [N].
        preprocessing: Channels and size of what is handed on, usually
            ``LoadedModel.preprocessing``.

    Returns:
        The images, read lazily. One that is broken gives an item with its ``error``.

    Raises:
        LoadingError: There is nothing at ``spec``, no image in it, or the .npz does not hold
            what is described above.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        found = sorted(_walk(path))
        _check_found(found, f"the folder {path}")
        return FileSource(
            [path / name for name in found],
            [name.as_posix() for name in found],
            preprocessing=preprocessing,
        )
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return _load_npz(path, preprocessing)
        if not _is_image(path):
            raise LoadingError(f"{path} is not an image by its name. {_formats()}")
        return FileSource([path], [str(path)], preprocessing=preprocessing)
    if _GLOB_CHARACTERS & set(str(spec)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        paths = [match for match in matches if match.is_file() and _is_image(match)]
        _check_found(paths, f"what the glob {str(spec)!r} matches")
        return FileSource(paths, [str(p) for p in paths], preprocessing=preprocessing)
    raise LoadingError(
        f"there is no file or folder {path}. Give an image folder, an image, a quoted glob such "
        "as 'images/*.png', or an .npz file."
    )


def batches(
    source: ImageSource,
    batch_size: int,
    *,
    indices: Iterable[int] | None = None,
    on_broken: Callable[[ImageItem], None] | None = None,
) -> Iterator[tuple[list[ImageItem], Tensor]]:
    """Stack the readable images of a source, in order, as they are read.

    A batch ends early where the next image has another size.

    Args:
        source: The images.
        batch_size: Most images of one batch, at least 1.
        indices: Positions to read, in this order; all of them by default.
        on_broken: Called with each item that cannot be read, when it is met. Without it such
            an item is an error.

    Yields:
        The items of a batch, and their images [B, C, H, W].

    Raises:
        LoadingError: An image cannot be read and there is no ``on_broken``.
        ConfigurationError: ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch_size is {batch_size}; it must be at least 1.")
    items: list[ImageItem] = []
    images: list[Tensor] = []
    for index in range(len(source)) if indices is None else indices:
        item = source[index]
        if item.image is None:
            _report_broken(item, on_broken)
            continue
        if images and images[0].shape != item.image.shape:
            yield items, torch.stack(images)
            items, images = [], []
        items.append(item)
        images.append(item.image)
        if len(images) == batch_size:
            yield items, torch.stack(images)
            items, images = [], []
    if images:
        yield items, torch.stack(images)


def _report_broken(item: ImageItem, on_broken: Callable[[ImageItem], None] | None) -> None:
    if on_broken is None:
        raise LoadingError(
            f"{item.name}: {item.error} Remove it from the data, or pass on_broken to go on "
            "without it."
        )
    on_broken(item)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _formats() -> str:
    return f"Images end in {', '.join(IMAGE_SUFFIXES)} (in any case)."


def _check_found(found: Sequence[Path], where: str) -> None:
    if not found:
        raise LoadingError(f"there is no image in {where}. {_formats()} An .npz is named itself.")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the images under a folder, relative to it; a linked folder once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(parent).relative_to(folder)
        yield from (relative / name for name in files if _is_image(Path(name)))


def _load_npz(path: Path, preprocessing: Preprocessing) -> ImageSource:
    arrays = _read_npz(path)
    images, labels = arrays["images"], arrays.get("labels")
    images = _check_npz_images(path, images, preprocessing.channels)
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise LoadingError(
            f"'labels' of {path} is {labels.dtype} {list(labels.shape)}; expected one integer "
            f"an image, of shape [{len(images)}]."
        )
    return ArraySource(images, labels, path.name, preprocessing=preprocessing)


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise LoadingError(
                f"{path} is a single array, an .npy under another name. Save it with "
                "numpy.savez(path, images=...)."
            )
        with loaded as archive:
            keys = list(archive.files)
            if "images" not in keys or not set(keys) <= set(_NPZ_KEYS):
                raise LoadingError(
                    f"{path} holds the keys {sorted(keys)}; expected 'images' and, if known, "
                    "'labels', and no other. Save it again: numpy.savez(path, images=..., "
                    "labels=...)."
                )
            return {key: archive[key] for key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LoadingError(
            f"{path} cannot be read as an .npz ({error}). Save it again with numpy.savez(path, "
            "images=..., labels=...), without Python objects in it."
        ) from error


def _check_npz_images(path: Path, images: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """Return uint8 [N, H, W, C] or float [N, C, H, W], or refuse."""
    found = f"'images' of {path} is {images.dtype} {list(images.shape)}"
    if images.size == 0:
        raise LoadingError(f"{found}, which is empty; expected at least one image.")
    if images.dtype == np.uint8 and images.ndim in (3, 4):
        images = images[..., None] if images.ndim == 3 else images
        channel_axis = 3
    elif images.dtype.kind == "f" and images.ndim == 4:
        channel_axis = 1
        _check_range(found, images)
    else:
        raise LoadingError(f"{found}; expected {_NPZ_LAYOUTS}.")
    if images.shape[channel_axis] != channels:
        raise LoadingError(
            f"{found}, with {images.shape[channel_axis]} channel(s) on axis {channel_axis}; the "
            f"model takes {channels}, and the layout is {_NPZ_LAYOUTS}."
        )
    return images


def _check_range(found: str, images: npt.NDArray[Any]) -> None:
    finite = images[np.isfinite(images)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if low < -PIXEL_TOLERANCE or high > 1 + PIXEL_TOLERANCE:
        raise LoadingError(
            f"{found} and spans [{low:.4g}, {high:.4g}]; expected pixels in [0, 1], before any "
            "normalisation. Divide 8-bit values by 255."
        )
