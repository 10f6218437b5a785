"""Folders, files, globs and arrays of images, with broken ones among them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from lrpguard.errors import ConfigurationError, LoadingError
from lrpguard.loading import ImageItem, Preprocessing, batches, load_data

RAW = Preprocessing()
GREY = Preprocessing(channels=1)


def save_image(path: Path, level: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)
    return path


def save_npz(folder: Path, **arrays: npt.NDArray[Any]) -> Path:
    path = folder / "data.npz"
    np.savez(path, allow_pickle=True, **arrays)
    return path


def test_a_folder_is_read_in_order_of_path(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPEG", "a/deep/x.jpg", "z.BMP", "a.webp", "c.gif", "d.TIF"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    save_image(tmp_path / "b/.hidden.png")
    save_image(tmp_path / ".cache/thumb.png")

    source = load_data(tmp_path, preprocessing=RAW)

    names = [item.name for item in source]
    assert names == ["a/deep/x.jpg", "a.webp", "b/1.JPEG", "b/2.png", "c.gif", "d.TIF", "z.BMP"]
    assert len(source) == 7
    assert [item.index for item in source] == list(range(7))
    assert all(item.label is None and item.error is None for item in source)
    assert all(item.image is not None and item.image.shape == (3, 4, 6) for item in source)


def test_linked_class_folders_are_followed_once(tmp_path: Path) -> None:
    save_image(tmp_path / "elsewhere/1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/class").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "data")

    source = load_data(tmp_path / "data", preprocessing=RAW)

    assert [item.name for item in source] == ["class/1.png"]


def test_a_broken_file_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", 10)
    (tmp_path / "2.png").write_bytes(b"broken")
    save_image(tmp_path / "3.png", 30)

    first, broken, last = load_data(tmp_path, preprocessing=RAW)

    assert broken.image is None
    assert broken.name == "2.png"
    assert broken.error is not None
    assert "cannot decode" in broken.error
    assert first.image is not None
    assert last.image is not None
    assert last.image.max() == pytest.approx(30 / 255)


def test_files_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    save_image(tmp_path / "2.png")
    images = iter(load_data(tmp_path, preprocessing=RAW))
    next(images)

    (tmp_path / "2.png").unlink()

    assert next(images).error is not None


def test_one_file(tmp_path: Path) -> None:
    path = save_image(tmp_path / "one.PNG", 255)

    (item,) = load_data(str(path), preprocessing=GREY)

    assert item.name == str(path)
    assert item.image is not None
    assert torch.equal(item.image, torch.ones(1, 4, 6))


def test_a_glob(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.jpg", "b/deep/3.png", "b/notes.txt"):
        save_image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).touch()

    flat = load_data(f"{tmp_path}/?/*", preprocessing=RAW)
    deep = load_data(f"{tmp_path}/**/*.png", preprocessing=RAW)

    assert [item.name for item in flat] == [f"{tmp_path}/a/1.png", f"{tmp_path}/a/2.jpg"]
    assert [item.name for item in deep] == [f"{tmp_path}/a/1.png", f"{tmp_path}/b/deep/3.png"]


def test_a_folder_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    save_image(tmp_path / "set[1]/1.png")

    assert len(load_data(tmp_path / "set[1]", preprocessing=RAW)) == 1


def test_nothing_there_is_an_error_that_tells_the_mend(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    cases: list[tuple[str | Path, str]] = [
        (tmp_path, r"no image in the folder.*\.png"),
        (f"{tmp_path}/*.png", "no image in what the glob"),
        (tmp_path / "missing", "no file or folder"),
        (tmp_path / "notes.txt", "not an image by its name"),
    ]
    for spec, words in cases:
        with pytest.raises(LoadingError, match=words):
            load_data(spec, preprocessing=RAW)


def test_npz_of_bytes_with_labels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    path = save_npz(tmp_path, images=images, labels=np.array([5, 0, 9], np.uint8))

    source = load_data(path, preprocessing=Preprocessing(image_size=(4, 6), resize_size=9))

    assert [item.label for item in source] == [5, 0, 9]
    assert [item.name for item in source] == [f"data.npz[{i}]" for i in range(3)]
    stacked = torch.stack([item.image for item in source if item.image is not None])
    assert torch.equal((stacked * 255).round().byte().permute(0, 2, 3, 1), torch.tensor(images))


def test_npz_of_grey_bytes(tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)

    source = load_data(save_npz(tmp_path, images=images), preprocessing=GREY)

    last = source[1].image
    assert last is not None
    assert last.shape == (1, 4, 4)
    assert last[0, 3, 3] * 255 == pytest.approx(31)
    assert source[1].label is None


def test_npz_of_floats_is_clipped_at_rounding_errors(tmp_path: Path) -> None:
    images = np.full((2, 3, 4, 4), 0.5)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = -1e-8, 1 + 1e-8
    images[1, 0, 0, 0] = np.nan

    first, broken = load_data(save_npz(tmp_path, images=images), preprocessing=RAW)

    assert first.image is not None
    assert first.image.dtype == torch.float32
    assert [float(first.image.min()), float(first.image.max())] == [0, 1]
    assert broken.image is None
    assert broken.error is not None
    assert "NaN" in broken.error


@pytest.mark.parametrize("floats", [False, True])
def test_arrays_of_another_size_are_resized_as_files_are(tmp_path: Path, floats: bool) -> None:
    pixels = np.asarray(Image.linear_gradient("L").resize((40, 30)).convert("RGB"))
    wanted = Preprocessing(image_size=(16, 16), resize_size=20)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    array = (pixels.transpose(2, 0, 1) / 255)[None] if floats else pixels[None]

    as_array = load_data(save_npz(tmp_path, images=array), preprocessing=wanted)[0].image
    as_file = load_data(tmp_path / "one.png", preprocessing=wanted)[0].image

    assert as_array is not None
    assert as_file is not None
    torch.testing.assert_close(as_array, as_file, atol=1.5 / 255 if floats else 0, rtol=0)


BYTES = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": BYTES}, r"keys \['x'\]; expected 'images'"),
        ({"images": BYTES, "label": np.zeros(2, int)}, "'label'"),
        ({"images": BYTES[:0]}, "empty"),
        ({"images": BYTES.transpose(0, 3, 1, 2)}, "4 channel.*axis 3.*takes 3"),
        ({"images": BYTES / 255}, "4 channel.*axis 1.*takes 3"),
        ({"images": BYTES[0].astype(float)}, r"float64 \[4, 4, 3\]; expected uint8"),
        ({"images": BYTES.astype(np.int64)}, "int64"),
        ({"images": np.full((1, 3, 2, 2), 255.0)}, r"spans \[255, 255\].*Divide"),
        ({"images": BYTES, "labels": np.zeros(3, int)}, r"'labels'.*shape \[2\]"),
        ({"images": BYTES, "labels": np.zeros(2)}, "'labels'.*float64"),
        ({"images": np.array([None, "x"], object)}, "Python objects"),
    ],
)
def test_npz_of_another_form_is_refused(
    tmp_path: Path, arrays: dict[str, npt.NDArray[Any]], words: str
) -> None:
    with pytest.raises(LoadingError, match=words):
        load_data(save_npz(tmp_path, **arrays), preprocessing=RAW)


@pytest.mark.parametrize("keep", [0, 200, -20])
def test_a_truncated_npz_is_refused(tmp_path: Path, keep: int) -> None:
    path = save_npz(tmp_path, images=BYTES)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(LoadingError, match="cannot be read"):
        load_data(path, preprocessing=RAW)


def test_an_npz_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez_compressed(path, images=BYTES)
    content = bytearray(path.read_bytes())
    for place in range(60, len(content) - 100, 7):
        content[place] ^= 0xFF
    path.write_bytes(content)

    with pytest.raises(LoadingError, match="cannot be read"):
        load_data(path, preprocessing=RAW)


def test_a_single_array_under_the_name_of_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    with path.open("wb") as file:
        np.save(file, BYTES)

    with pytest.raises(LoadingError, match=r"a single array.*numpy\.savez"):
        load_data(path, preprocessing=RAW)


def test_batches_pass_broken_images_along_apart(tmp_path: Path) -> None:
    for number in range(5):
        save_image(tmp_path / f"{number}.png", number)
    (tmp_path / "1.png").write_bytes(b"broken")
    source = load_data(tmp_path, preprocessing=RAW)
    broken: list[ImageItem] = []

    found = list(batches(source, 2, on_broken=broken.append))

    assert [[item.index for item in items] for items, _ in found] == [[0, 2], [3, 4]]
    assert [item.index for item in broken] == [1]
    for items, images in found:
        assert images.shape == (2, 3, 4, 6)
        assert [round(float(image.max() * 255)) for image in images] == [i.index for i in items]


def test_batches_end_where_the_size_changes(tmp_path: Path) -> None:
    for number, width in enumerate([6, 6, 8, 6]):
        save_image(tmp_path / f"{number}.png", size=(width, 4))

    shapes = [tuple(x.shape) for _, x in batches(load_data(tmp_path, preprocessing=RAW), 4)]

    assert shapes == [(2, 3, 4, 6), (1, 3, 4, 8), (1, 3, 4, 6)]


def test_batches_of_chosen_images(tmp_path: Path) -> None:
    source = load_data(
        save_npz(tmp_path, images=np.zeros((9, 4, 4, 3), np.uint8)), preprocessing=RAW
    )

    found = [[i.index for i in items] for items, _ in batches(source, 2, indices=[8, 1, 4])]

    assert found == [[8, 1], [4]]


def test_batches_do_not_drop_a_broken_image_in_silence(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"broken")

    with pytest.raises(LoadingError, match=r"1\.png"):
        list(batches(load_data(tmp_path, preprocessing=RAW), 2))


def test_batches_need_a_size(tmp_path: Path) -> None:
    source = load_data(save_image(tmp_path / "1.png"), preprocessing=RAW)

    with pytest.raises(ConfigurationError, match="batch_size"):
        next(batches(source, 0))
