"""Images with their true classes, and disjoint seeded splits of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrpguard.errors import ConfigurationError, LoadingError
from lrpguard.loading import ImageItem, ImageSource
from lrpguard.loading.data import ArraySource, FileSource

_INDEX_FIRST = re.compile(r"^(\d{1,5})_")
_FOOLBOX = re.compile(r"^imagenet_\d+_(\d+)$")
_WNID = re.compile(r"^n\d{8}$")
_HEADER = ("label", "class", "class_index", "target")


@dataclass(frozen=True)
class Labelled:
    """Some of the images of a source, with their true classes.

    Attributes:
        source: The images, read when they are asked for.
        labels: True class of each image of the whole source.
        indices: Which images of the source these are, in order.
    """

    source: ImageSource
    labels: tuple[int, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.indices)

    def __iter__(self) -> Iterator[ImageItem]:
        """Read image after image, each with its label.

        Raises:
            LoadingError: An image cannot be read.
        """
        for index in self.indices:
            item = self.source[index]
            if item.image is None:
                raise LoadingError(f"{item.name}: {item.error} Remove it from the data.")
            yield ImageItem(index, item.name, item.image, self.labels[index])

    def split(self, sizes: Sequence[int], *, seed: int) -> list[Labelled]:
        """Draw disjoint parts at random.

        Args:
            sizes: Images of each part, >= 0; the first is drawn first, so it does not depend
                on the sizes of the others.
            seed: Seed of the draw, in 0 … 2**32 - 1.

        Raises:
            ConfigurationError: There are fewer images than asked for.
        """
        if min(sizes) < 0 or sum(sizes) > len(self):
            raise ConfigurationError(
                f"splits of {list(sizes)} images are asked for; there are {len(self)}. Ask for "
                "fewer, or give more images."
            )
        # RandomState, not default_rng: numpy promises that its stream never changes (NEP 19).
        order = np.random.RandomState(seed).permutation(len(self)).tolist()
        ends = np.cumsum(sizes).tolist()
        return [
            Labelled(self.source, self.labels, tuple(self.indices[i] for i in order[e - s : e]))
            for s, e in zip(sizes, ends, strict=True)
        ]


def labelled(source: ImageSource, *, classes: int, labels_file: Path | None = None) -> Labelled:
    """Read the true class of every image of a source.

    In this order: ``labels_file``; the labels of an .npz; file names that begin with the class
    index (``207_golden_retriever.jpg``), or end in it as those of Foolbox do
    (``imagenet_03_990.jpg``); folders named by WordNet id, sorted, as torchvision's ImageFolder
    numbers them, which needs the folder of every class to be there.

    Args:
        source: The images.
        classes: Number of classes K of the model.
        labels_file: Text file with one ``name,label`` or ``name label`` a line, the name being
            the path within the image folder, or the file name alone.

    Raises:
        LoadingError: A label is missing, or no class of the model.
    """
    if labels_file is not None:
        labels = _from_file(labels_file, _names(source))
    elif isinstance(source, ArraySource):
        if source.labels is None:
            raise LoadingError(
                f"{source.name} holds no labels; save it with labels=... [N], or give --labels."
            )
        labels = [int(label) for label in source.labels]
    else:
        labels = _from_names(_names(source), classes)
    wrong = [(i, label) for i, label in enumerate(labels) if not 0 <= label < classes]
    if wrong:
        raise LoadingError(
            f"image {wrong[0][0]} has the label {wrong[0][1]}; the model has classes 0 … "
            f"{classes - 1}. Are these images of another data set?"
        )
    return Labelled(source, tuple(labels), tuple(range(len(labels))))


def _names(source: ImageSource) -> list[str]:
    if isinstance(source, FileSource):
        return list(source.names)
    return [source[i].name for i in range(len(source))]


def _from_names(names: Sequence[str], classes: int) -> list[int]:
    found = [_from_name(name) for name in names]
    if None not in found:
        return [label for label in found if label is not None]
    folders = [Path(name).parts[0] for name in names]
    if not all(_WNID.match(folder) for folder in folders):
        raise LoadingError(
            f"the class of {names[found.index(None)]} is not in its name. Name the files "
            "INDEX_anything.jpg, or put them in folders named by WordNet id (n01440764/…), or "
            "give a file of 'name,label' lines with --labels."
        )
    known = sorted(set(folders))
    if len(known) != classes:
        raise LoadingError(
            f"there are {len(known)} WordNet folders; the model has {classes} classes. The place "
            "of a folder among the sorted ones is its class only when all of them are there. "
            "Give --labels, or name the files INDEX_anything.jpg."
        )
    return [known.index(folder) for folder in folders]


def _from_name(name: str) -> int | None:
    stem = Path(name).stem
    match = _INDEX_FIRST.match(stem) or _FOOLBOX.match(stem)
    return int(match.group(1)) if match else None


def _from_file(path: Path, names: Sequence[str]) -> list[int]:
    given = _read_labels(path)
    labels = [given.get(name, given.get(Path(name).name)) for name in names]
    missing = [name for name, label in zip(names, labels, strict=True) if label is None]
    if missing:
        raise LoadingError(
            f"{path} has no label for {missing[0]} and {len(missing) - 1} more of {len(names)} "
            "images. Each line is 'name,label'."
        )
    return [label for label in labels if label is not None]


def _read_labels(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadingError(f"the labels {path} cannot be read ({error}).") from error
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        cells = next(csv.reader([line])) if "," in line else line.rsplit(maxsplit=1)
        if not cells or (number == 1 and cells[-1].strip().lower() in _HEADER):
            continue
        if len(cells) != 2 or not cells[1].strip().isdecimal():
            raise LoadingError(
                f"line {number} of {path} is {line!r}; expected 'name,label' with an integer."
            )
        labels[cells[0].strip()] = int(cells[1])
    return labels
