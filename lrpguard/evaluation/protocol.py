"""Who may see what: the clean pool, the test images, and proof that they are disjoint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpguard.attacks import quantize
from lrpguard.errors import EvaluationError
from lrpguard.evaluation.labelled import Labelled
from lrpguard.noise import image_digest


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of 8-bit levels with their classes.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: True classes, int64 [N].
        digests: Digest of each image's content.
        indices: Position of each in the source.
    """

    images: Tensor
    labels: Tensor
    digests: tuple[str, ...]
    indices: tuple[int, ...]

    @staticmethod
    def of(images: Tensor, labels: Tensor, indices: Sequence[int] | None = None) -> ImageSet:
        """Round images to 8 bits, and take their digests.

        Args:
            images: Pixels in [0, 1], [N, C, H, W].
            labels: Classes [N].
            indices: Position of each in its source; 0 … N - 1 by default.
        """
        levels = quantize(images.float()).mul(255).round().to(torch.uint8)
        digests = tuple(image_digest(image.float().div(255), b"").hex() for image in levels)
        positions = tuple(range(len(levels)) if indices is None else indices)
        return ImageSet(levels, labels.to(torch.int64), digests, positions)

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.digests)

    @property
    def digest(self) -> str:
        """Digest of images and classes, in this order."""
        text = "".join(f"{d}{c};" for d, c in zip(self.digests, self.labels.tolist(), strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    def pixels(self) -> Tensor:
        """Return the images as float32 in [0, 1], [N, C, H, W]."""
        return self.images.float().div(255)

    def select(self, rows: Sequence[int]) -> ImageSet:
        """Return some of the images, in the order given."""
        chosen = torch.tensor(list(rows), dtype=torch.int64)
        return ImageSet(
            self.images[chosen],
            self.labels[chosen],
            tuple(self.digests[i] for i in rows),
            tuple(self.indices[i] for i in rows),
        )

    def part(self, start: int, end: int) -> ImageSet:
        """Return images ``start`` … ``end - 1``."""
        return self.select(range(start, end))


@dataclass(frozen=True, eq=False)
class Splits:
    """The two parts of the data.

    Attributes:
        pool: Clean images for every detector: one half fits, the other calibrates; which, follows
            from their content.
        test: Images that are judged, clean and attacked, and decide nothing.

    Raises:
        EvaluationError: An image stands in both parts, or twice in one.
    """

    pool: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        both = set(self.pool.digests) & set(self.test.digests)
        if both:
            raise EvaluationError(
                f"{len(both)} images are in the clean pool and among the test images, {min(both)} "
                "one of them. A detector must not be judged on what fitted or calibrated it: "
                "remove the copies from the data."
            )
        for name, part in (("clean pool", self.pool), ("test images", self.test)):
            twice = [digest for digest, count in Counter(part.digests).items() if count > 1]
            if twice:
                raise EvaluationError(
                    f"{len(twice)} images stand more than once among the {name}, {min(twice)} one "
                    "of them; they would count as independent. Remove the copies from the data."
                )


def draw_splits(data: Labelled, *, pool: int, test: int, seed: int) -> Splits:
    """Draw the parts at random. The test images do not depend on the size of the pool.

    Args:
        data: Images with their classes, none of which trained the model.
        pool: Clean images to fit and calibrate with.
        test: Images to judge.
        seed: Seed of the draw.

    Raises:
        ConfigurationError: There are too few images.
        EvaluationError: An image is there twice.
        LoadingError: An image cannot be read.
    """
    tested, clean = data.split([test, pool], seed=seed)
    return Splits(pool=_read(clean), test=_read(tested))


def _read(part: Labelled) -> ImageSet:
    items = list(part)
    shapes = Counter(tuple(item.image.shape) for item in items if item.image is not None)
    if len(shapes) > 1:
        raise EvaluationError(
            f"images have the sizes {sorted(shapes)}; an evaluation takes one. Resize them, on the "
            "command line with --image-size H,W."
        )
    images = torch.stack([item.image for item in items if item.image is not None])
    labels = torch.tensor([item.label for item in items], dtype=torch.int64)
    return ImageSet.of(images, labels, [item.index for item in items])
