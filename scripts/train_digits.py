"""Train the digit classifier packaged with lrpguard and measure it once on the test split.

Usage: python scripts/train_digits.py [--out FILE]

The recipe below was chosen by 4-fold cross-validation within the training split; the calibration
and test splits took no part in it. Takes about 20 s on one core. Exits 1, and writes nothing, when
the test accuracy is below 97 %.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional

from lrpguard.demo.digits import SPLIT_SEED, WEIGHTS_FILE, DigitSet, DigitsNet, load_digit_splits

TRAINING_SEED = 0
EPOCHS = 120
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
NOISE_STD = 0.1  # of pixels in [0, 1]
SHIFTED_SHARE = 0.5
MINIMUM_ACCURACY = 0.97
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "lrpguard" / "demo" / WEIGHTS_FILE


def shift_by_one(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Move each image by -1, 0 or 1 pixel in each direction, filling with black.

    Args:
        images: ``[B, 1, H, W]``.
        generator: Source of the shifts.

    Returns:
        The moved images ``[B, 1, H, W]``.
    """
    batch, _, height, width = images.shape
    padded = functional.pad(images, (1, 1, 1, 1))
    corner = torch.randint(0, 3, (2, batch, 1, 1), generator=generator)
    rows = corner[0] + torch.arange(height).view(1, -1, 1)
    columns = corner[1] + torch.arange(width).view(1, 1, -1)
    return padded[torch.arange(batch).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)


def augment(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Shift half of the images and add Gaussian noise to all.

    Args:
        images: ``[B, 1, H, W]`` in [0, 1].
        generator: Source of the shifts and the noise.

    Returns:
        The augmented images ``[B, 1, H, W]`` in [0, 1].
    """
    shifted = torch.rand(len(images), 1, 1, 1, generator=generator) < SHIFTED_SHARE
    images = torch.where(shifted, shift_by_one(images, generator=generator), images)
    noise = NOISE_STD * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(0.0, 1.0)


def train(model: nn.Module, digits: DigitSet, *, generator: torch.Generator) -> None:
    """Train the model in place, for a fixed number of epochs.

    Args:
        model: Maps ``[B, 1, 8, 8]`` to logits ``[B, 10]``.
        digits: The training images.
        generator: Source of the batch order and the augmentation.
    """
    starts = range(0, len(digits), BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * len(starts)
    )
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(digits), generator=generator)
        for start in starts:
            batch = digits.subset(order[start : start + BATCH_SIZE])
            logits = model(augment(batch.images, generator=generator))
            loss = functional.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    model.eval()


def main() -> int:
    """Train, measure, print and write.

    Returns:
        The exit code: 0, or 1 when the test accuracy is below the minimum.
    """
    parser = argparse.ArgumentParser(description="Train the packaged digit classifier.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: in the package")
    out: Path = parser.parse_args().out

    torch.set_num_threads(1)  # the same weights whatever the number of cores
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(TRAINING_SEED)  # the initial weights
    splits = load_digit_splits()
    model = DigitsNet()
    train(model, splits.train, generator=torch.Generator().manual_seed(TRAINING_SEED))

    with torch.no_grad():
        correct = int((model(splits.test.images).argmax(1) == splits.test.labels).sum())
    n = len(splits.test)
    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    print(f"trained on {len(splits.train)} images")
    print(
        f"test n = {n}, accuracy = {correct / n:.2%} ({correct}/{n}), "
        f"95 % Wilson interval [{interval.low:.2%}, {interval.high:.2%}]"
    )
    if correct / n < MINIMUM_ACCURACY:
        print(f"below {MINIMUM_ACCURACY:.0%}: {out.name} not written", file=sys.stderr)
        return 1
    # One key: safetensors writes several in a random order, and the file should be reproducible.
    made_by = f"scripts/train_digits.py, split seed {SPLIT_SEED}, test {correct}/{n}"
    # write_bytes, not save_file, which makes a file that only its owner can read.
    out.write_bytes(save_safetensors(model.state_dict(), metadata={"made_by": made_by}))
    print(f"wrote {out.name}, {out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
