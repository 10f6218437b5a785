"""Measure early stopping on the packaged digits; write docs/stopping.md and its JSON.

    python scripts/measure_stopping.py

A detector is fitted at each look on the scores of the fit digits after that many copies. The looks
are calibrated together on other digits, and judged on yet others and PGD on them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrpguard import Guard, Smoothing, __version__
from lrpguard.attacks.pgd import pgd
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.demo.run import ATTACK_EPS, ATTACK_STEPS, DEMO_ALPHA, DEMO_SIGMA
from lrpguard.detector import Detector, fit_detector
from lrpguard.readings import Readings, read
from lrpguard.scores import SCORES
from lrpguard.stopping import Looks, replay

ROOT = Path(__file__).resolve().parents[1]
DETECTORS = ("combined", "paper")
SEED = 0

Scores = list[Readings]
"""What is read of each image after the copies of each look, every score among it."""


def score(model: nn.Module, images: Tensor, looks: Looks) -> Scores:
    """Score images at every look."""
    guards = [
        Guard(model, smoothing=Smoothing(n=n, sigma=DEMO_SIGMA, seed=SEED), restoration=None)
        for n in looks.copies
    ]
    return [read(guard.evidence(images, views=True), tuple(SCORES)) for guard in guards]


def anomalies(detectors: list[Detector], scores: Scores) -> Tensor:
    """Return the anomaly score of each image at each look [B, L]."""
    pairs = zip(detectors, scores, strict=True)
    return torch.stack([detector.anomaly(at) for detector, at in pairs], 1)


def measure(*, limit: int | None, divisions: int) -> dict[str, Any]:
    """Return the shares; ``limit`` takes fewer test digits, to see that it runs."""
    model, splits, looks = load_digits_model(), load_digit_splits(), Looks()
    half = len(splits.calibration) // 2
    images, labels = splits.test.images[:limit], splits.test.labels[:limit]
    fit = score(model, splits.calibration.images[:half], looks)
    clean = score(model, torch.cat([splits.calibration.images[half:], images]), looks)
    attacks = {
        name: (score(model, moved, looks), half + origin)
        for name, (moved, origin) in attacked(model, images, labels).items()
    }
    rows = []
    for name in DETECTORS:
        detectors = [fit_detector(name, at) for at in fit]
        tables = {kind: (anomalies(detectors, at), of) for kind, (at, of) in attacks.items()}
        pool = anomalies(detectors, clean)
        tables = {"clean": (pool, torch.arange(len(pool))), **tables}
        shares = divided(looks, tables, calibrate=half, divisions=divisions)
        rows += [{"detector": name, "requests": kind, **found} for kind, found in shares.items()]
    return {
        "looks": list(looks.copies),
        "clear": list(looks.clear),
        "weight": list(looks.weight),
        "most_copies": looks.most_copies,
        "alpha": DEMO_ALPHA,
        "sigma": DEMO_SIGMA,
        "seed": SEED,
        "fit": half,
        "calibrate": half,
        "test": len(images),
        "divisions": divisions,
        "version": __version__,
        "torch": torch.__version__,
        "rows": rows,
    }


def divided(
    looks: Looks, tables: Mapping[str, tuple[Tensor, Tensor]], *, calibrate: int, divisions: int
) -> dict[str, dict[str, list[float]]]:
    """Divide the clean digits into calibration and test again and again.

    Args:
        looks: The looks.
        tables: Anomaly scores [B, L] of each kind of request, with the clean digit that each
            comes from [B]. An attack counts where its digit is not among those that calibrate.
        calibrate: How many digits calibrate.
        divisions: How often.

    Returns:
        Of each kind, mean and 2.5 and 97.5 % quantile over the divisions of the share flagged
        early, of the share flagged at all copies, of their difference, and of the mean copies.
    """
    last = Looks(looks.copies[-1:], (), (1.0,))
    pool = tables["clean"][0]
    generator = torch.Generator().manual_seed(SEED)
    found: dict[str, list[list[float]]] = {kind: [] for kind in tables}
    for _ in range(divisions):
        chosen = torch.randperm(len(pool), generator=generator)[:calibrate]
        early = looks.calibrate(pool[chosen], DEMO_ALPHA)
        once = last.calibrate(pool[chosen, -1:], DEMO_ALPHA)
        for kind, (table, origin) in tables.items():
            judged = table[~torch.isin(origin, chosen)]
            stopped = replay(early, judged)
            share = float(stopped.flagged.double().mean())
            whole = float(replay(once, judged[:, -1:]).flagged.double().mean())
            copies = float(stopped.copies.double().mean())
            found[kind].append([share, whole, share - whole, copies])
    names = ("early", "all_copies", "difference", "mean_copies")
    return {
        kind: dict(zip(names, map(_summary, torch.tensor(values).T), strict=True))
        for kind, values in found.items()
    }


def _summary(values: Tensor) -> list[float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return [float(values.mean()), low, high]


def attacked(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the attacks that changed a right label and their images' positions, by name."""
    found = {}
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).nonzero().flatten()
    for eps in ATTACK_EPS:
        moved = pgd(model, images[right], labels[right], eps=eps, steps=ATTACK_STEPS, seed=SEED)
        with torch.no_grad():
            changed = model(moved).argmax(1) != labels[right]
        found[f"PGD {round(255 * eps)}/255"] = (moved[changed], right[changed])
    return found


def page(record: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    text = [
        "# Early stopping on digits",
        "",
        "Made by `python scripts/measure_stopping.py`; do not edit.",
        "",
        f"Packaged CNN, scikit-learn's digits; {record['fit']} fit the detector; "
        f"{record['calibrate'] + record['test']} others are divided {record['divisions']} times at "
        f"random into {record['calibrate']} that calibrate and {record['test']} that are judged. "
        f"Looks at {record['looks']} copies, clear levels {record['clear']}, weights "
        f"{record['weight']} ([method.md](method.md), section 8); alpha = {record['alpha']}, "
        f"sigma = {record['sigma']}, seed {record['seed']}. PGD with {ATTACK_STEPS} steps, static: "
        "attacks that changed the right label of a judged digit. Mean over the divisions, and in "
        "brackets the central 95 % of them: a single calibration lies there. A clean request takes "
        f"at most {record['most_copies']:.1f} copies in the mean.",
        "",
        "| detector | requests | flagged early, % | at all copies, % | difference | copies |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        cells = [row["detector"], row["requests"]]
        cells += [_cell(row[k], 100) for k in ("early", "all_copies", "difference")]
        text.append("| " + " | ".join([*cells, _cell(row["mean_copies"], 1)]) + " |")
    return "\n".join([*text, "", f"lrpguard {record['version']}, torch {record['torch']}.", ""])


def _cell(summary: list[float], scale: float) -> str:
    mean, low, high = (scale * value for value in summary)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def main(arguments: list[str]) -> int:
    """Measure, print and write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="fewer test digits, to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--divisions", type=int, default=1000)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = measure(limit=args.limit, divisions=args.divisions)
    args.out.joinpath("results").mkdir(parents=True, exist_ok=True)
    card = args.out / "results" / "stopping.json"
    card.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    args.out.joinpath("stopping.md").write_text(page(record), encoding="utf-8")
    print(page(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
