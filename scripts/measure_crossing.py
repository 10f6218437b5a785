"""Measure the false-positive rate of split and crossed calibration; write docs/crossing.md.

    python scripts/measure_crossing.py                                          # packaged digits
    python scripts/measure_crossing.py --name NAME --scores build/eval/scores.jsonl

The second takes the checkpoint that `lrpguard evaluate --out build/eval` or `lrpguard calibrate`
leaves: everything that detectors read of its clean images. Again and again some of the images,
drawn at random, calibrate, and others are judged.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import betabinom
from torch import Tensor
from tqdm import tqdm

from lrpguard import Guard, Smoothing, __version__
from lrpguard.calibrator import Fitted, fit_crossed, fit_split
from lrpguard.conformal import conformal_p_values, flagged_rank
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.readings import Readings, read
from lrpguard.scores import SCORES

ROOT = Path(__file__).resolve().parents[1]
ALPHA = 0.05
SIZES = (60, 100, 200, 440)
DRAWS = 40
JUDGED = 400
DIGITS_NOISE = Smoothing(n=8, sigma=0.1)
WAYS: dict[str, Callable[[str, Readings], Fitted]] = {"split": fit_split, "crossed": fit_crossed}


@dataclass(frozen=True)
class Rate:
    """Realised false-positive rates over draws.

    Attributes:
        mean: Their mean.
        low: Their 2.5 % quantile.
        high: Their 97.5 % quantile.
        within: Share of the draws within the exact 95 % band of a split calibration of as many
            calibrating images.
    """

    mean: float
    low: float
    high: float
    within: float


def digit_readings() -> Readings:
    """Return what is read of the digits that did not train the packaged model."""
    guard, splits = Guard(load_digits_model(), smoothing=DIGITS_NOISE), load_digit_splits()
    images = torch.cat([splits.calibration.images, splits.test.images])
    parts = [guard.evidence(batch, views=True) for batch in tqdm(images.split(20), "digits")]
    rows = [row for part in parts for row in read(part, tuple(SCORES)).to_rows()]
    return Readings.from_rows(tuple(SCORES), rows)


def checkpoint_readings(path: Path) -> Readings:
    """Return what a calibration's checkpoint holds."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if lines[0]["run"]["scores"] != list(SCORES):
        raise SystemExit(f"{path} holds other scores than this lrpguard's; calibrate again.")
    rows = [line["scores"] for line in lines[1:]]
    return Readings.from_rows(tuple(SCORES), rows)


def realised(flagged: Tensor, judged: int, calibrating: int) -> Rate:
    """Return the rates of flagged counts [D] of so many judged images each."""
    k = flagged_rank(calibrating, ALPHA)
    low, high = betabinom.ppf([0.025, 0.975], judged, k, calibrating + 1 - k)
    rates = flagged.double() / judged
    ends = rates.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    within = ((flagged >= low) & (flagged <= high)).double().mean()
    return Rate(rates.mean().item(), ends[0], ends[1], within.item())


def measure(readings: Readings, *, sizes: tuple[int, ...], draws: int, judged: int) -> list[Any]:
    """Return a row for each size and way: the realised false-positive rates."""
    rows = []
    for size in sizes:
        for way, fit in WAYS.items():
            if way == "split" and size < 2 * 40:
                continue  # too few to fit one half
            flagged = torch.zeros(draws, dtype=torch.int64)
            for draw in tqdm(range(draws), f"{way} {size}"):
                order = torch.from_numpy(np.random.default_rng(draw).permutation(len(readings)))
                fitted = fit("combined", readings.select(order[:size]))
                rest = readings.select(order[size : size + judged])
                p_values = conformal_p_values(
                    fitted.anomalies.sort().values, fitted.detector.anomaly(rest)
                )
                flagged[draw] = (p_values <= ALPHA).sum()
            rate = realised(flagged, judged, len(fitted.anomalies))
            rows.append({"images": size, "way": way, "draws": draws, "judged": judged} | vars(rate))
    return rows


def page(cards: list[dict[str, Any]]) -> str:
    """Return the page of all cards."""
    lines = [
        "# Crossed calibration",
        "",
        "Made by `python scripts/measure_crossing.py`; do not edit.",
        "",
        "How often clean images are flagged that neither fitted nor calibrated, where alpha is "
        f"{100 * ALPHA:g} %. *Split*: one half of the images fits, the other calibrates: exact, "
        "and used from 1,000 images on. *Crossed*: all fit, and each calibrates by a detector "
        "fitted without its tenth: used with fewer images ([method.md](method.md), section 4). "
        "Each draw takes its images at random from all there are; the rate's mean, in brackets "
        "the central 95 % of the draws. *In the band*: draws whose count lies in the exact "
        "95 % band of as many calibrating images; 95 % is the aim. Draws share images, so they "
        "are not independent.",
    ]
    for card in cards:
        lines += ["", f"## {card['name']}", "", f"    {card['command']}", ""]
        lines += [
            f"{card['images']} clean images, detector `combined`; a draw's seed is its number.",
            "",
            "| images | way | draws, judged | false-positive rate, % | in the band |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row['images']} | {row['way']} | {row['draws']}, {row['judged']} | "
            f"{100 * row['mean']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f}) | "
            f"{100 * row['within']:.0f} % |"
            for row in card["rows"]
        ]
        lines += ["", f"lrpguard {card['version']}, torch {card['torch']}."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the card, and write the page anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="digits", help="what the card calls the images")
    parser.add_argument("--scores", type=Path, help="checkpoint of a calibration")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args(arguments)
    command = "python scripts/measure_crossing.py"
    if options.scores is None:
        readings = digit_readings()
    else:
        readings = checkpoint_readings(options.scores)
        shown = Path(*options.scores.parts[-3:])  # without the folders of this machine
        command += f" --name {options.name} --scores {shown}"
    sizes = tuple(size for size in SIZES if size <= math.floor(len(readings) / 2))
    judged = min(JUDGED, len(readings) - max(sizes))
    card = {
        "kind": "crossing",
        "name": options.name,
        "command": command,
        "images": len(readings),
        "rows": measure(readings, sizes=sizes, draws=options.draws, judged=judged),
        "version": __version__,
        "torch": torch.__version__,
    }
    folder = options.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"crossing_{options.name}.json"
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    found = [json.loads(p.read_text()) for p in sorted(folder.glob("crossing_*.json"))]
    (options.out / "crossing.md").write_text(page(found), encoding="utf-8")
    print(page([card]))


if __name__ == "__main__":
    main()
