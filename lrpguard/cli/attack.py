"""``lrpguard attack``: the guard attacked by those who know it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lrpguard.cli.console import OK, Console
from lrpguard.cli.evaluate import classes_of
from lrpguard.cli.opening import open_model, smoothing
from lrpguard.cli.options import ModelOptions, NoiseOptions
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.labelled import labelled
from lrpguard.evaluation.paper.card import write_card
from lrpguard.evaluation.protocol import ImageSet, draw_splits
from lrpguard.guard import Guard
from lrpguard.loading import load_data
from lrpguard.noise import key_bytes
from lrpguard.redteam import Settings, red_team
from lrpguard.redteam.page import summary
from lrpguard.redteam.plan import Target
from lrpguard.smoothing import clean_logits, to_model

POOL, QUICK_POOL = 1000, 400
DONORS = 200
"""Clean images of the attacker's own: those that calibrate, or as many others."""

BATCH = 16


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """What to attack, and for how long.

    Attributes:
        data: Images with their classes.
        labels: File of ``name,label`` lines.
        calibration: The guard's calibration; None makes one.
        pool: Images that make it; None takes the default.
        test: Images drawn for the attacks.
        levels: Largest changes of a pixel, with commas between them.
        minutes: Time for the attacks.
        quick: A first look.
        other_model: Specification of another network.
        other_weights: Its weights.
        out: Folder of the card.
        name: What the card calls the model; None takes its specification.
        quiet: No progress.
        command: The command as it may be shown to others.
    """

    data: str
    labels: Path | None
    calibration: Path | None
    pool: int | None
    test: int
    levels: str
    minutes: float
    quick: bool
    other_model: str | None
    other_weights: Path | None
    out: Path
    name: str | None
    quiet: bool
    command: str


def run(
    model: ModelOptions, noise: NoiseOptions, options: AttackOptions, *, console: Console
) -> int:
    """Attack, print what passed, write the card.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: The model, the images or the settings do not allow it.
    """
    settings = Settings(
        levels=_levels(options.levels),
        minutes=options.minutes,
        quick=options.quick,
        progress=(lambda line: None) if options.quiet else console.note,
    )
    if options.calibration is not None and options.pool is not None:
        raise ConfigurationError("give --calibration, or --calibration-pool to make one; not both.")
    loaded = open_model(model)
    source = load_data(options.data, preprocessing=loaded.preprocessing)
    data = labelled(source, classes=classes_of(loaded, source[0].image), labels_file=options.labels)
    pool = options.pool or (QUICK_POOL if options.quick else POOL)
    splits = draw_splits(
        data,
        pool=pool if options.calibration is None else min(DONORS, len(data) - options.test),
        test=options.test,
        seed=noise.seed,
    )
    key = noise.key or _key(noise.seed)
    guard = _guard(loaded.model, noise, key, options, splits.pool)
    images, labels = _on_device(splits.test, loaded.model)
    right = clean_logits(loaded.model, images).argmax(1) == labels
    card = red_team(
        Target(
            guard=guard,
            key=key_bytes(noise.seed, key),
            images=images[right],
            labels=labels[right],
            donors=_on_device(splits.pool, loaded.model)[0][:DONORS],
            substitute=_substitute(model, options),
            seed=noise.seed,
        ),
        (images, labels),
        settings,
        about={
            "model": options.name or model.spec,
            "data": Path(options.data).name,
            "command": options.command,
            "other": options.other_model,
        },
    )
    path = options.out / "card.json"
    write_card(card, path)
    console.record(card)
    console.line(summary(card))
    console.line(f"\nwrote {path}")
    return OK


def _guard(
    model: torch.nn.Module,
    noise: NoiseOptions,
    key: bytes,
    options: AttackOptions,
    pool: ImageSet,
) -> Guard:
    """Return the guard of the calibration, or one calibrated on the pool."""
    if options.calibration is not None:
        if noise.n is not None or noise.sigma is not None:
            raise ConfigurationError(
                "--n and --sigma are the calibration's own; leave them out, or leave out "
                "--calibration."
            )
        return Guard(model, calibration=options.calibration, key=key)
    given = noise.n is not None or noise.sigma is not None
    # With looks, since early stopping is attacked, too; the other attacks are on all copies.
    guard = Guard(model, smoothing=smoothing(noise) if given else None, key=key, stopping=True)
    calibration = guard.calibrate(
        pool.pixels().split(BATCH),
        checkpoint=options.out / "scores.jsonl",
        progress=not options.quiet,
    )
    calibration.save(options.out / "guard.safetensors")
    return Guard(model, calibration=calibration, key=key)


def _substitute(model: ModelOptions, options: AttackOptions) -> torch.nn.Module | None:
    if options.other_model is None:
        return None
    return open_model(replace(model, spec=options.other_model, weights=options.other_weights)).model


def _on_device(images: ImageSet, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = to_model(images.pixels(), model)
    return pixels, images.labels.to(pixels.device)


def _key(seed: int) -> bytes:
    """Return a key that no attack is given, the same for a seed so that a run can be repeated."""
    return hashlib.blake2b(f"red team {seed}".encode(), digest_size=32).digest()


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(
            f"--levels is {text!r}; expected whole levels of 255 with commas between them: 2,4,8"
        ) from None
