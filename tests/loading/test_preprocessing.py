"""Image files to pixels: as torchvision does it, without the normalisation."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from lrpguard.errors import ConfigurationError, ImageSizeError, LoadingError
from lrpguard.loading import Preprocessing
from lrpguard.loading.preprocessing import read_image

RAW = Preprocessing()


def picture(height: int = 40, width: int = 60, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return smooth colours, [H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (5 + c) + seed) + np.cos(columns / (7 - c)) for c in range(3)]
    return (np.stack(waves, -1) * 60 + 128).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 60), (61, 35), (20, 20)])
def test_is_torchvisions_transform_without_normalisation(
    tmp_path: Path, interpolation: str, shape: tuple[int, int]
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(picture(*shape)).save(path)
    oracle = ImageClassification(
        crop_size=24,
        resize_size=32,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=InterpolationMode(interpolation),
    )

    image = read_image(
        path,
        Preprocessing(
            image_size=(24, 24),
            resize_size=32,
            interpolation="bicubic" if interpolation == "bicubic" else "bilinear",
        ),
    )

    assert image.dtype == torch.float32
    assert torch.equal(image, oracle(Image.open(path)))


def test_without_sizes_the_pixels_are_the_files(tmp_path: Path) -> None:
    pixels = picture()
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)

    image = read_image(path, RAW)

    assert torch.equal((image * 255).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1))
    assert image.is_contiguous()


def test_an_image_size_alone_covers_the_crop(tmp_path: Path) -> None:
    halves = np.zeros((20, 40, 3), np.uint8)
    halves[:, 20:] = 255  # the edge between the halves has to stay in the middle
    path = tmp_path / "halves.png"
    Image.fromarray(halves).save(path)

    image = read_image(path, Preprocessing(image_size=(10, 16)))

    assert image.shape == (3, 10, 16)
    assert image[:, :, :7].max() == 0
    assert image[:, :, 9:].min() == 1


def test_one_channel_is_grey(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (4, 3), (255, 0, 0)).save(path)

    image = read_image(path, Preprocessing(channels=1))

    assert image.shape == (1, 3, 4)
    torch.testing.assert_close(image, torch.full((1, 3, 4), 76 / 255))  # ITU-R 601 luma of red


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    Image.fromarray(pixels).save(upright)
    Image.fromarray(pixels).save(turned, exif=exif)

    image = read_image(turned, RAW)

    assert image.shape == (3, 6, 4)
    assert torch.equal(image, torch.rot90(read_image(upright, RAW), -1, (1, 2)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_pillow_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)

    image = read_image(path, RAW)

    assert image.shape == (3, 4, 5)
    assert image.min() > 0.99


def test_16_bit_grey_keeps_its_levels(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 16384], [32768, 65535]], np.uint16)).save(path)

    image = read_image(path, Preprocessing(channels=1))

    expected = torch.tensor([[0, 64], [128, 255]]) / 255
    torch.testing.assert_close(image[0], expected, atol=1 / 255, rtol=0)


def test_32_bit_pixels_are_refused_for_their_unknown_range(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)

    with pytest.raises(LoadingError, match="32-bit"):
        read_image(path, RAW)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    path = tmp_path / "two.gif"
    white, black = Image.new("RGB", (4, 4), (255, 255, 255)), Image.new("RGB", (4, 4))
    white.save(path, save_all=True, append_images=[black])

    assert read_image(path, RAW).min() == 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1000, 100])  # Pillow warns above it, raises above twice that
def test_a_decompression_bomb_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (40, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)

    with pytest.raises(LoadingError, match="bomb"):
        read_image(path, RAW)


def test_an_image_too_large_for_the_guard_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (40, 30)).save(path)
    monkeypatch.setattr("lrpguard.loading.preprocessing.MAX_PIXELS", 1000)

    with pytest.raises(LoadingError, match="30 x 40"):
        read_image(path, RAW)
    assert read_image(path, Preprocessing(image_size=(8, 8))).shape == (3, 8, 8)


NARROW = [
    pytest.param(Preprocessing(image_size=(224, 224), resize_size=256), (1, 10_000), id="crop"),
    pytest.param(Preprocessing(resize_size=256), (10_000, 1), id="resize"),
    pytest.param(Preprocessing(image_size=(224, 224)), (1, 10_000), id="cover"),
]


@pytest.mark.parametrize(("preprocessing", "shape"), NARROW)
def test_a_narrow_image_that_its_resize_would_make_huge_is_refused(
    tmp_path: Path, preprocessing: Preprocessing, shape: tuple[int, int]
) -> None:
    path = tmp_path / "narrow.png"
    Image.new("L", shape[::-1]).save(path)

    with pytest.raises(ImageSizeError, match=rf"{shape[0]} x {shape[1]} pixels.*[Cc]rop"):
        read_image(path, preprocessing)
    with pytest.raises(ImageSizeError, match=rf"{shape[0]} x {shape[1]} pixels.*[Cc]rop"):
        preprocessing.fit_tensor(torch.zeros(3, *shape))


def test_the_limit_is_on_what_the_resize_makes_and_no_ordinary_image_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(picture(20, 45)).save(path)
    preprocessing = Preprocessing(image_size=(24, 24), resize_size=30)
    free = read_image(path, preprocessing)

    monkeypatch.setattr("lrpguard.loading.preprocessing.MAX_PIXELS", 30 * 67)  # what it makes
    assert torch.equal(read_image(path, preprocessing), free)
    monkeypatch.setattr("lrpguard.loading.preprocessing.MAX_PIXELS", 30 * 67 - 1)
    with pytest.raises(ImageSizeError, match="30 x 67"):
        read_image(path, preprocessing)
    monkeypatch.setattr("lrpguard.loading.preprocessing.MAX_PIXELS", 200)
    shrunk = Preprocessing(image_size=(12, 12), resize_size=16)  # 16 x 36, less than the file
    assert read_image(path, shrunk).shape == (3, 12, 12)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_a_broken_file_is_an_error_with_its_reason(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.jpg"
    Image.fromarray(picture()).save(path)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)

    with pytest.raises(LoadingError, match="cannot decode"):
        read_image(path, RAW)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 4},
        {"image_size": (0, 8)},
        {"resize_size": -1},
        {"interpolation": "nearest"},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Preprocessing(**options)  # type: ignore[arg-type]
