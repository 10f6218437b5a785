"""A toy whose guard is known to be weak: an attack written by hand passes it, plain PGD does not.

Its images are three smooth bands, the brightest of which is the class; its linear model looks at
the bands' brightness, and a little at every pixel, as an overfitted one would. The signs of that
are noise, which the guard notices; a change of the bands' brightness is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Guard, Looks, Smoothing, Verdict
from lrpguard.attacks import quantize

SIZE, BANDS = 16, 3
EPS = 24 / 255
KEY = b"k" * 32
LOOKS = Looks((2, 4), (0.5,), (0.2, 1.0))


@dataclass(frozen=True)
class Toy:
    """The guard, and images that it has not seen and its model gets right."""

    guard: Guard
    images: Tensor
    labels: Tensor
    donors: Tensor

    @property
    def model(self) -> nn.Module:
        return self.guard.model

    def passed(self, attacked: Tensor) -> float:
        """Return the share that fools the model and is not flagged."""
        verdict: Verdict = self.guard(attacked)
        return float(((verdict.label != self.labels) & ~verdict.flagged).double().mean())

    def by_hand(self) -> Tensor:
        """Darken the brightest band by all that is allowed, and brighten the next one."""
        with torch.no_grad():
            logits = self.model(self.images)
        after = logits.scatter(1, self.labels[:, None], -torch.inf).argmax(1)
        attacked = self.images.clone()
        for i, (band, other) in enumerate(zip(self.labels.tolist(), after.tolist(), strict=True)):
            attacked[i, :, rows(band)] -= EPS
            attacked[i, :, rows(other)] += EPS
        return quantize(attacked)


def rows(band: int) -> slice:
    return slice(band * SIZE // BANDS, (band + 1) * SIZE // BANDS)


def bands(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(kind: str, *shape: int) -> Tensor:
        return (torch.rand if kind == "uniform" else torch.randn)(shape, generator=generator)

    labels = torch.randint(BANDS, (count,), generator=generator)
    ramp = torch.linspace(-1, 1, SIZE)
    images = 0.35 + 0.3 * draw("uniform", count, 3, 1, 1)
    images = images + 0.05 * draw("normal", count, 3, 1, 1) * ramp
    images = images + 0.02 * draw("normal", count, 3, 1, 1) * ramp[:, None]
    for i, band in enumerate(labels.tolist()):
        images[i, :, rows(band)] += 0.08 + 0.06 * draw("uniform", 1)
    return quantize(images + 0.01 * draw("normal", count, 3, SIZE, SIZE)), labels


def band_model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    weight = torch.full((BANDS, 3, SIZE, SIZE), -0.5)
    for band in range(BANDS):
        weight[band, :, rows(band)] = 1.0
    rough = torch.randn(weight.shape, generator=generator)
    linear = nn.Linear(3 * SIZE * SIZE, BANDS, bias=False)
    with torch.no_grad():
        linear.weight.copy_((weight + 0.3 * rough).flatten(1) / 20)
    return nn.Sequential(nn.Flatten(), linear).eval()


@pytest.fixture(scope="session")
def toy() -> Toy:
    model = band_model()
    guard = Guard(model, smoothing=Smoothing(n=4, sigma=0.02), key=KEY)
    pool = bands(400, 1)[0]
    guard.calibrate([pool], looks=LOOKS)
    images, labels = bands(24, 2)
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    return Toy(guard, images[right], labels[right], pool[:50])
