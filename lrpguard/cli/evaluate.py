"""``lrpguard evaluate``: attacks, detectors and restoration measured on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lrpguard.attacks import choose
from lrpguard.baselines import attack_free, baseline
from lrpguard.cli.console import INTERRUPTED, OK, Console
from lrpguard.cli.opening import chosen_smoothing, keep_to_fastest, open_model
from lrpguard.cli.options import ModelOptions, NoiseOptions
from lrpguard.errors import ConfigurationError, ModelOutputError
from lrpguard.evaluation.adversarial import default_cache
from lrpguard.evaluation.candidates import ALL
from lrpguard.evaluation.candidates import choose as choose_restorations
from lrpguard.evaluation.evaluate import SCORES_FILE, Settings, evaluate
from lrpguard.evaluation.judging import content_halves
from lrpguard.evaluation.labelled import labelled
from lrpguard.evaluation.paper.card import write_card
from lrpguard.evaluation.protocol import draw_splits
from lrpguard.evaluation.tables import card_tables
from lrpguard.guard import Guard
from lrpguard.loading import LoadedModel, load_data
from lrpguard.smoothing import clean_logits, to_model
from lrpguard.tuning import TRIAL_IMAGES

QUICK_POOL, QUICK_TEST = 400, 100
FULL_POOL, FULL_TEST = 2000, 300


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure.

    Attributes:
        data: Images with their classes.
        labels: File of ``name,label`` lines.
        pool: Clean images that fit and calibrate; None takes the default.
        test: Images that are judged; None takes the default.
        attacks: Names with commas between them; None takes all, or the quick ones.
        quick: A first look, in minutes.
        prepare: Whether to time the ways to run the copies, and keep to the fastest.
        halves: Whether one half of the pool calibrates the guard and the other fits it.
        baselines: Names with commas between them; ``all`` stands for those that clean images
            alone fit.
        restorations: Names with commas between them, ``all``, ``none``; None takes those that
            need no further pass.
        out: Folder of the card and the rows.
        cache: Folder of attacked images; None takes the default.
        seed: Seed of splits, attacks and bootstrap.
        name: What the card calls the model; None takes its specification.
        command: The command as it may be shown to others.
    """

    data: str
    labels: Path | None
    pool: int | None
    test: int | None
    attacks: str | None
    quick: bool
    prepare: bool
    halves: bool
    baselines: str | None
    restorations: str | None
    out: Path
    cache: Path | None
    seed: int
    name: str | None
    command: str


def run(
    model: ModelOptions, noise: NoiseOptions, options: EvaluateOptions, *, console: Console
) -> int:
    """Evaluate, print the tables, write the card.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: The model, the images or the settings do not allow it.
    """
    attacks = choose(_names(options.attacks), quick=options.quick)
    baselines = _baselines(options.baselines)
    restorations = choose_restorations(options.restorations)
    loaded = open_model(model)
    source = load_data(options.data, preprocessing=loaded.preprocessing)
    data = labelled(source, classes=classes_of(loaded, source[0].image), labels_file=options.labels)
    splits = draw_splits(
        data,
        pool=options.pool or (QUICK_POOL if options.quick else FULL_POOL),
        test=options.test or (QUICK_TEST if options.quick else FULL_TEST),
        seed=options.seed,
    )
    trial = content_halves(splits.pool)[0].pixels()[:TRIAL_IMAGES]
    guard = Guard(
        loaded.model, smoothing=chosen_smoothing(loaded.model, trial, noise), key=noise.key
    )
    if guard.noise_why:
        console.note(f"noise: {guard.noise_why}.")
    if options.prepare:
        keep_to_fastest(guard, trial[0], options.out / SCORES_FILE, console)
    try:
        card = evaluate(
            loaded.model,
            splits,
            guard=guard,
            settings=Settings(
                attacks=attacks,
                baselines=baselines,
                restorations=restorations,
                halves=options.halves,
                seed=options.seed,
                out=options.out,
                cache=options.cache or default_cache(),
                progress=not (console.quiet or console.json),
            ),
            about={
                "model": options.name or model.spec,
                "data": Path(options.data).name,
                "command": options.command,
                "noise": guard.noise_why or "as asked for",
            },
        )
    except KeyboardInterrupt:
        console.note(
            f"interrupted. What is done is kept in {options.out} and the cache of attacked images: "
            "run the same command again to go on from there."
        )
        return INTERRUPTED
    path = options.out / "card.json"
    write_card(card, path)
    console.record(card)
    console.line(card_tables(card))
    console.line(f"\nwrote {path}")
    return OK


def _baselines(text: str | None) -> tuple[str, ...]:
    """Return names of baselines that exist, each once; ``all`` stands for the attack-free ones.

    Raises:
        ConfigurationError: There is no such baseline.
        MissingDependencyError: One needs a package that is not installed.
    """
    every = [attack_free() if name == ALL else (name,) for name in _names(text)]
    names = tuple(dict.fromkeys(name for some in every for name in some))
    for name in names:
        baseline(name)  # refuse an unknown one before the work
    return names


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def classes_of(loaded: LoadedModel, image: torch.Tensor | None) -> int:
    """Return the number of the model's classes K, from its answer to one image."""
    if image is None:
        raise ConfigurationError("the first image cannot be read. Remove it from the data.")
    logits = clean_logits(loaded.model, to_model(image[None], loaded.model))
    if logits.shape[1] < 2:
        raise ModelOutputError(f"the model gives {logits.shape[1]} logit; expected 2 or more.")
    return logits.shape[1]
