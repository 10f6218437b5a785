"""True classes from names, folders and files; disjoint splits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrpguard.errors import ConfigurationError, LoadingError
from lrpguard.evaluation.labelled import Labelled, labelled
from lrpguard.loading import ImageSource, Preprocessing, load_data
from lrpguard.loading.data import ArraySource


def folder(root: Path, *names: str) -> ImageSource:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return load_data(root, preprocessing=Preprocessing())


def array(labels: list[int] | None, n: int = 10) -> ArraySource:
    images = np.zeros((n, 2, 2, 3), dtype=np.uint8)
    given = None if labels is None else np.array(labels)
    return ArraySource(images, given, "a.npz", preprocessing=Preprocessing())


def test_names_begin_with_the_class_index(tmp_path: Path) -> None:
    source = folder(tmp_path, "000_n01440764_tench.png", "207_golden_retriever.png")

    assert labelled(source, classes=1000).labels == (0, 207)


def test_names_of_the_foolbox_images_end_in_the_class_index(tmp_path: Path) -> None:
    source = folder(tmp_path, "imagenet_00_243.jpg", "imagenet_15_99.jpg")

    assert labelled(source, classes=1000).labels == (243, 99)


def test_folders_are_numbered_by_sorted_wordnet_id(tmp_path: Path) -> None:
    source = folder(tmp_path, "n01443537/b.png", "n01440764/z.png", "n01443537/a.png")

    assert labelled(source, classes=2).labels == (0, 1, 1)


def test_some_of_the_wordnet_folders_say_nothing(tmp_path: Path) -> None:
    source = folder(tmp_path, "n01443537/b.png", "n01440764/z.png")

    with pytest.raises(LoadingError, match="2 WordNet folders; the model has 1000 classes"):
        labelled(source, classes=1000)


def test_names_without_a_class_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, "3_dog.png", "holiday.png")

    with pytest.raises(LoadingError, match=r"holiday\.png is not in its name"):
        labelled(source, classes=10)


@pytest.mark.parametrize(
    "text", ["name,label\nx/a.png,3\nb.png,4\n", "x/a.png 3\nb.png 4\n", "a.png,3\nb.png , 4\n"]
)
def test_a_file_gives_labels_by_path_or_by_name(tmp_path: Path, text: str) -> None:
    source = folder(tmp_path / "images", "x/a.png", "b.png")
    (tmp_path / "labels.csv").write_text(text)

    found = labelled(source, classes=10, labels_file=tmp_path / "labels.csv")

    by_name = {item.name: item.label for item in found}
    assert by_name == {"x/a.png": 3, "b.png": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [("a.png,1\n", "no label for b.png"), ("a.png,dog\n", "line 1 of .* expected 'name,label'")],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    source = folder(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "labels.csv").write_text(text)

    with pytest.raises(LoadingError, match=message):
        labelled(source, classes=10, labels_file=tmp_path / "labels.csv")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match="cannot be read"):
        labelled(array(None), classes=10, labels_file=tmp_path / "nothing.csv")


def test_an_array_brings_its_labels() -> None:
    assert labelled(array(list(range(10))), classes=10).labels == tuple(range(10))


def test_an_array_without_labels_is_refused() -> None:
    with pytest.raises(LoadingError, match="holds no labels"):
        labelled(array(None), classes=10)


def test_a_label_that_is_no_class_of_the_model_is_refused() -> None:
    with pytest.raises(LoadingError, match="label 9; the model has classes 0 … 8"):
        labelled(array(list(range(10))), classes=9)


def test_splits_are_disjoint_seeded_and_do_not_depend_on_later_sizes() -> None:
    every = labelled(array(list(range(10))), classes=10)

    first, second = every.split([3, 4], seed=1)
    longer, _ = every.split([3, 7], seed=1)
    other, _ = every.split([3, 4], seed=2)

    assert len(first) == 3
    assert len(second) == 4
    assert not set(first.indices) & set(second.indices)
    assert first.indices == longer.indices
    assert first.indices != other.indices
    assert [item.label for item in first] == list(first.indices)


def test_more_images_than_there_are_cannot_be_split() -> None:
    every = labelled(array([0] * 10), classes=10)

    with pytest.raises(ConfigurationError, match=r"splits of \[6, 5\] images .* there are 10"):
        every.split([6, 5], seed=0)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    source = folder(tmp_path, "1_a.png", "2_b.png")
    (tmp_path / "2_b.png").write_bytes(b"no image")
    every: Labelled = labelled(source, classes=10)

    with pytest.raises(LoadingError, match=r"2_b\.png.*Remove it"):
        list(every)
