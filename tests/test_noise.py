"""Keyed noise: pinned values, independence of everything but image, key and copy number."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lrpguard.errors import ConfigurationError
from lrpguard.noise import MAX_KEY_BYTES, gaussian_copies, image_digest, key_bytes

IMAGE = torch.arange(12, dtype=torch.float32).view(3, 2, 2) / 12
SHAPE = IMAGE.shape
SECRET = b"k" * 16


class TestGolden:
    """A change of these values breaks every stored calibration: bump its schema then."""

    @pytest.mark.parametrize(
        ("key", "digest", "first", "fiftieth"),
        [
            (
                key_bytes(0),
                "ab328455df49578dff3c64de910c62d2",
                [-0.5398530960083008, 0.04063143581151962, 0.16885612905025482],
                [1.2131171226501465, 0.2825329303741455],
            ),
            (
                key_bytes(1),
                "eef0c6cecdf8a57f12bd0d5269077e4d",
                [-1.062355875968933, 1.3575748205184937, -0.5855783224105835],
                [-1.0571955442428589, -0.2254272848367691],
            ),
            (
                SECRET,
                "e5b043fb0a9cbf233d0167057321c797",
                [0.2760343849658966, 0.8567162752151489, -1.3974171876907349],
                [-1.0156874656677246, -0.40107738971710205],
            ),
        ],
    )
    def test_first_values(
        self, key: bytes, digest: str, first: list[float], fiftieth: list[float]
    ) -> None:
        found = image_digest(IMAGE, key)
        assert found.hex() == digest
        noise = gaussian_copies(found, 0, 50, SHAPE).flatten(1)
        assert noise[0, :3].tolist() == pytest.approx(first, abs=1e-7)
        assert noise[49, :2].tolist() == pytest.approx(fiftieth, abs=1e-7)

    def test_public_digest(self) -> None:
        assert image_digest(IMAGE, b"").hex() == "166a6378c0b3d3aeb1314fd55bb33e0f"


class TestKey:
    def test_seed_gives_its_own_key(self) -> None:
        keys = {key_bytes(seed) for seed in (0, 1, 255, 256, 2**32, 2**64 - 1)}
        assert len(keys) == 6

    @pytest.mark.parametrize("seed", [-1, 2**64])
    def test_seed_outside_64_bits_is_refused(self, seed: int) -> None:
        with pytest.raises(ConfigurationError, match=str(seed)):
            key_bytes(seed)

    @pytest.mark.parametrize("length", [16, 32, MAX_KEY_BYTES])
    def test_secret_key_is_taken_as_it_is(self, length: int) -> None:
        key = bytes(range(length))
        assert key_bytes(7, key) == key
        assert len(image_digest(IMAGE, key)) == 16

    @pytest.mark.parametrize("length", [0, 15, MAX_KEY_BYTES + 1])
    def test_secret_key_of_a_wrong_length_is_refused(self, length: int) -> None:
        with pytest.raises(ConfigurationError, match=f"{length} bytes.*16 to 64"):
            key_bytes(0, b"s" * length)


class TestDigest:
    def test_depends_on_every_pixel(self) -> None:
        digests = {image_digest(IMAGE, SECRET)}
        for place in itertools.product(range(3), range(2), range(2)):
            changed = IMAGE.clone()
            changed[place] += 1e-6
            digests.add(image_digest(changed, SECRET))
        assert len(digests) == 13

    def test_depends_on_the_shape(self) -> None:
        assert image_digest(IMAGE, SECRET) != image_digest(IMAGE.view(2, 3, 2), SECRET)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_a_copy_in_another_type_is_the_same_image(self, dtype: torch.dtype) -> None:
        half = IMAGE.to(dtype)
        assert image_digest(half, SECRET) == image_digest(half.float(), SECRET)

    def test_memory_layout_does_not_matter(self) -> None:
        batch = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
        strided = batch.to(memory_format=torch.channels_last)[1]
        assert not strided.is_contiguous()
        assert image_digest(strided, SECRET) == image_digest(batch[1].clone(), SECRET)

    def test_sign_of_zero_does_not_matter(self) -> None:
        zeros = torch.zeros(3, 2, 2)
        assert image_digest(zeros, SECRET) == image_digest(-zeros, SECRET)


class TestCopies:
    @given(cuts=st.lists(st.integers(1, 19), max_size=6))
    @settings(max_examples=30, deadline=None)
    def test_division_into_chunks_does_not_matter(self, cuts: list[int]) -> None:
        digest = image_digest(IMAGE, SECRET)
        edges = [0, *sorted(set(cuts)), 20]
        parts = [
            gaussian_copies(digest, low, high - low, SHAPE)
            for low, high in itertools.pairwise(edges)
        ]
        assert torch.equal(torch.cat(parts), gaussian_copies(digest, 0, 20, SHAPE))

    def test_shape_and_type(self) -> None:
        noise = gaussian_copies(image_digest(IMAGE, SECRET), 3, 7, SHAPE)
        assert noise.shape == (7, 3, 2, 2)
        assert noise.dtype == torch.float32
        assert noise.device.type == "cpu"

    def test_copies_keys_and_images_have_their_own_noise(self) -> None:
        other = IMAGE.clone()
        other[0, 0, 0] = 0.5
        streams = [
            gaussian_copies(image_digest(image, key), 0, 100, SHAPE)
            for image in (IMAGE, other)
            for key in (SECRET, b"K" * 16, key_bytes(0), key_bytes(1))
        ]
        values = torch.cat([s.flatten(1) for s in streams]).numpy()
        correlation = np.corrcoef(values.T.reshape(12, -1))
        assert len(np.unique(values[:, 0])) == len(values)
        assert np.abs(correlation - np.eye(12)).max() < 0.2  # 800 values a pixel: 5.6 sigma

    def test_draws_do_not_touch_global_generators(self) -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        gaussian_copies(image_digest(IMAGE, SECRET), 0, 3, SHAPE)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]

    def test_is_standard_normal(self) -> None:
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
        noise = gaussian_copies(image_digest(image, SECRET), 0, 40, image.shape).double().numpy()
        count = noise.size
        assert stats.kstest(noise.ravel(), "norm").pvalue > 0.001
        assert abs(noise.mean()) < 4 / count**0.5
        assert abs(noise.var() - 1) < 4 * (2 / count) ** 0.5
        assert abs((noise**4).mean() - 3) < 4 * (96 / count) ** 0.5

    def test_copies_of_one_image_are_uncorrelated(self) -> None:
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
        noise = gaussian_copies(image_digest(image, SECRET), 0, 20, image.shape).flatten(1).numpy()
        off_diagonal = np.corrcoef(noise) - np.eye(20)
        assert np.abs(off_diagonal).max() < 5 / noise.shape[1] ** 0.5
