"""Train a small adversarially trained CIFAR-10 classifier, and measure it on test images.

    python scripts/train_robust.py

Images come from the folder that LRPGUARD_DATA names. A ResNet-8 is trained on 19,500 of the 20,000
training images by one-step attacks from noise (N-FGSM), random crops and flips, in bfloat16 on one
core; about 4 minutes. One-step training can overfit to its own step and lose all its robustness
from one epoch to the next: after each epoch 500 images set aside are attacked by PGD, the best
epoch is kept, and training ends where the share falls far below it. The test images decide nothing;
they are judged once, in float32, at the end. Writes the weights, and a card with the counts.

Source: de Jorge et al. 2022, "Make some noise: reliable and efficient single-step adversarial
training"; Wong, Rice, Kolter 2020, "Fast is better than free".
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional

import lrpguard
from lrpguard.attacks import pgd, quantize
from lrpguard.evaluation.cifar_resnet import MEAN, STD, resnet8
from lrpguard.evaluation.metrics import proportion
from lrpguard.evaluation.paper.card import write_card
from lrpguard.evaluation.paper.setup import DATA_VARIABLE

ROOT = Path(__file__).resolve().parents[1]

SEED = 0
EPOCHS = 15
BATCH_SIZE = 128
PEAK_RATE = 0.2
WEIGHT_DECAY = 5e-4
HELD_OUT = 500
LEVELS = 8
NOISE = 2.0  # of eps: N-FGSM starts outside the ball, and does not go back into it
MARGIN = 4  # pixels that a crop may be off
COLLAPSE = 0.1  # fall of the robust share that ends training
JUDGED_STEPS = 20


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1], [N, 3, 32, 32], and classes [N], of an .npz file."""
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float().div(255)
        return images.contiguous(), torch.from_numpy(arrays["labels"]).long()


def cropped(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return images [B, C, H, W] moved by up to ``MARGIN`` pixels, half of them mirrored."""
    batch, _, height, width = images.shape
    padded = functional.pad(images, (MARGIN,) * 4)
    corner = torch.randint(0, 2 * MARGIN + 1, (2, batch, 1, 1), generator=generator)
    rows = corner[0] + torch.arange(height).view(1, -1, 1)
    columns = corner[1] + torch.arange(width).view(1, 1, -1)
    columns = torch.where(
        torch.rand(batch, 1, 1, generator=generator) < 0.5, columns, columns.flip(2)
    )
    places = torch.arange(batch).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[places, rows, columns].permute(0, 3, 1, 2)


def perturbed(
    model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Return images one step of the gradient's sign away from noise around them (N-FGSM)."""
    eps = LEVELS / 255
    noise = (2 * torch.rand(images.shape, generator=generator) - 1) * NOISE * eps
    noisy = (images + noise).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = functional.cross_entropy(model(noisy), labels)
    (gradient,) = torch.autograd.grad(loss, noisy)
    return (noisy.detach() + eps * gradient.sign()).clamp(0, 1)


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, seed: int
) -> list[dict[str, Any]]:
    """Train the model in place, and leave it in eval mode at its best epoch.

    Args:
        model: From [B, 3, 32, 32] in [0, 1] to logits.
        images: The first ``HELD_OUT`` choose the epoch, the others train [N, 3, 32, 32].
        labels: Their classes [N].
        epochs: How many at most.
        seed: Seed of order, crops and noise.

    Returns:
        One record an epoch: mean loss, shares of the images set aside that are right, clean and
        attacked.
    """
    generator = torch.Generator().manual_seed(seed)
    seen, held = slice(HELD_OUT, None), slice(HELD_OUT)
    many = len(images[seen]) // BATCH_SIZE
    optimizer = torch.optim.SGD(
        model.parameters(), PEAK_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=epochs * many, pct_start=0.3, anneal_strategy="linear"
    )
    best, kept, records = -1.0, copy.deepcopy(model.state_dict()), list[dict[str, Any]]()
    for epoch in range(epochs):
        model.train()
        losses = []
        order = torch.randperm(len(images) - HELD_OUT, generator=generator) + HELD_OUT
        for rows in order[: many * BATCH_SIZE].split(BATCH_SIZE):
            batch = cropped(images[rows], generator=generator)
            attacked = perturbed(model, batch, labels[rows], generator)
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(attacked), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        model.eval()
        clean, robust = judge(model, images[held], labels[held], steps=10)
        shares = {"clean": clean / HELD_OUT, "robust": robust / HELD_OUT}
        records.append({"epoch": epoch + 1, "loss": round(sum(losses) / many, 4)} | shares)
        print(records[-1], flush=True)
        if shares["robust"] > best:
            best, kept = shares["robust"], copy.deepcopy(model.state_dict())
        elif shares["robust"] < best - COLLAPSE:
            print("the robust share has collapsed; the best epoch is kept")
            break
    model.load_state_dict(kept)
    return records


def judge(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int) -> tuple[int, int]:
    """Return how many images are right, and how many still are after PGD and 8-bit rounding."""
    clean = robust = 0
    for part, of in zip(images.split(250), labels.split(250), strict=True):
        attacked = quantize(pgd(model, part, of, eps=LEVELS / 255, steps=steps, seed=SEED))
        with torch.no_grad():
            right = model(part).argmax(1) == of
            clean += int(right.sum())
            robust += int((right & (model(attacked).argmax(1) == of)).sum())
    return clean, robust


def main(arguments: list[str]) -> int:
    """Train, measure, write; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args(arguments)
    folder = Path(os.environ.get(DATA_VARIABLE, ROOT.parent / "shared" / "data")) / "cifar10"

    torch.set_num_threads(1)  # the same weights whatever the number of cores
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)  # the initial weights
    images, labels = load(folder / "train_20000.npz")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    network = resnet8().to(memory_format=torch.channels_last)
    model = lrpguard.normalized(network, MEAN, STD)
    begun = time.monotonic()
    records = train(model, images[order], labels[order], epochs=args.epochs, seed=SEED)
    minutes = (time.monotonic() - begun) / 60

    images, labels = load(folder / "test_5000.npz")
    clean, robust = judge(model, images, labels, steps=JUDGED_STEPS)
    card = {
        "kind": "robust_classifier",
        "model": "lrpguard.evaluation.cifar_resnet:resnet8",
        "command": "python scripts/train_robust.py",
        "seed": SEED,
        "train": f"train_20000.npz, all but {HELD_OUT} drawn with the seed",
        "test": "test_5000.npz, all",
        "levels": LEVELS,
        "attack": f"PGD, {JUDGED_STEPS} steps, one random start, 8-bit rounding",
        "clean": (clean, len(images)),
        "robust": (robust, len(images)),
        "epochs": records,
        "minutes": round(minutes, 1),
        "version": lrpguard.__version__,
        "torch": torch.__version__,
    }
    print(f"clean {proportion(clean, len(images))}")
    print(f"{card['attack']}, {LEVELS}/255: {proportion(robust, len(images))}")
    write_card(card, args.out / "robust_resnet8.json")
    weights = {name: part.contiguous() for name, part in network.state_dict().items()}
    # One key: safetensors writes several in a random order, and the file should be reproducible.
    made_by = {"made_by": f"scripts/train_robust.py, seed {SEED}, CIFAR-10 train_20000.npz"}
    path = args.out / "robust_resnet8.safetensors"
    path.write_bytes(save_safetensors(weights, metadata=made_by))
    print(f"wrote {path.name}, {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
