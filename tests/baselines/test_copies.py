"""Noise of three kinds, and the vote of the copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrpguard.baselines import baseline
from lrpguard.baselines.copies import KINDS, Kind, Noise, noisy_copies
from lrpguard.errors import ConfigurationError
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from tests.nets import images

IMAGE = images(1, 32, dtype=torch.float32)[0]


def noise_of(kind: Kind, size: float, *, n: int = 8, seed: int = 0, batch: int = 32) -> Tensor:
    parts = noisy_copies(IMAGE, Noise(kind, size), n=n, seed=seed, batch=batch)
    return torch.cat(list(parts)) - IMAGE


def test_gaussian_noise_is_the_packages_keyed_noise() -> None:
    digest = image_digest(IMAGE, key_bytes(3))
    wanted = 0.1 * gaussian_copies(digest, 0, 8, IMAGE.shape)
    torch.testing.assert_close(noise_of("gaussian", 0.1, seed=3), wanted)


@pytest.mark.parametrize(("kind", "variance"), [("gaussian", 1), ("uniform", 1 / 3), ("sign", 1)])
def test_noise_has_the_moments_of_its_kind(kind: Kind, variance: float) -> None:
    noise = noise_of(kind, 0.2, n=32)  # 98,304 values
    assert float(noise.mean()) == pytest.approx(0, abs=0.004)
    assert float(noise.square().mean()) == pytest.approx(0.04 * variance, rel=0.03)
    if kind == "sign":
        assert float((noise.abs() - 0.2).abs().max()) < 1e-6
    if kind == "uniform":
        deciles = torch.quantile(noise[:8].flatten(), torch.linspace(0, 1, 11))
        wanted = torch.linspace(-0.2, 0.2, 11)
        torch.testing.assert_close(deciles, wanted, atol=0.005, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_does_not_depend_on_how_the_copies_are_divided(kind: Kind) -> None:
    torch.testing.assert_close(noise_of(kind, 0.1, batch=3), noise_of(kind, 0.1), rtol=0, atol=0)
    assert not torch.equal(noise_of(kind, 0.1, seed=1), noise_of(kind, 0.1))


def test_bad_noise_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no noise is 'pink'"):
        Noise("pink", 0.1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="size is 0"):
        Noise("sign", 0)


class Sign(nn.Module):
    """Class 1 where the first pixel is above one half, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        above = x[:, 0, 0, 0] - 0.5
        return torch.stack([-above, above], 1)


def test_disagreement_is_the_share_of_copies_beyond_the_boundary() -> None:
    batch = IMAGE.repeat(3, 1, 1, 1)
    batch[:, 0, 0, 0] = torch.tensor([0.5001, 0.45, 1.0])
    fitted = baseline("disagreement", n=40, sigma=0.1, seed=5).fit(
        Sign().eval(), batch, torch.zeros(3, dtype=torch.long)
    )
    wanted = []
    for image in batch:
        noise = gaussian_copies(image_digest(image, key_bytes(5)), 0, 40, image.shape)
        pixel = image[0, 0, 0] + 0.1 * noise[:, 0, 0, 0]
        wanted.append(float(((pixel > 0.5) != (image[0, 0, 0] > 0.5)).double().mean()))

    assert fitted.anomaly(batch).tolist() == wanted
    assert 0.3 < wanted[0] < 0.7
    assert wanted[2] == 0
    assert fitted.passes == "41 forward"


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 2.5}, {"sigma": 0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        baseline("disagreement", **options)
