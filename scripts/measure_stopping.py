"""Measure early stopping, and fewer copies; write docs/results/stopping_MODEL.json and the page.

    python scripts/measure_stopping.py                     # the packaged digits model
    python scripts/measure_stopping.py --model resnet20    # ResNet-20 on CIFAR-10

The second needs weights and images in the folder that LRPGUARD_DATA names. A detector is fitted at
each look on clean images after that many copies. The looks are calibrated together on other clean
images, and judged on yet others and on attacks on them. Each image is run once, with all copies.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lrpguard import Guard, Looks, Smoothing, __version__
from lrpguard.attacks import quantize
from lrpguard.attacks.pgd import pgd
from lrpguard.attacks.suite import choose
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.demo.run import ATTACK_EPS, ATTACK_STEPS, DEMO_ALPHA, DEMO_SIGMA
from lrpguard.detector import Detector, fit_detector
from lrpguard.evaluation.paper.setup import load_model_and_data
from lrpguard.evaluation.protocol import draw_splits
from lrpguard.readings import Readings, read
from lrpguard.scores import SCORES
from lrpguard.stopping import replay

ROOT = Path(__file__).resolve().parents[1]
DETECTORS = ("combined", "paper")
SEED = 0
BATCH = 20

CIFAR_SIGMA = 0.02
CIFAR_POOL = 400
CIFAR_TEST = 150
CIFAR_ATTACKED = 40
CIFAR_ATTACKS = ("pgd_2_10", "fgsm_4", "cw_0")

Scores = list[Readings]
"""What is read of each image after the copies of each look, every score among it."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Attributes:
        title: The model and its images.
        data: Which images are which.
        model: From images in [0, 1] to logits.
        sigma: Noise of the copies.
        fit: Clean images that fit the detectors [F, C, H, W].
        clean: Other clean images, to be divided [M, C, H, W].
        calibrate: How many of these calibrate.
        attacked: Successful attacks, and which clean image each comes from, by name.
    """

    title: str
    data: str
    model: nn.Module
    sigma: float
    fit: Tensor
    clean: Tensor
    calibrate: int
    attacked: Mapping[str, tuple[Tensor, Tensor]]


def digits(limit: int | None) -> Subject:
    """Return the packaged digits model; ``limit`` takes fewer test digits."""
    model, splits = load_digits_model(), load_digit_splits()
    half = len(splits.calibration) // 2
    images, labels = splits.test.images[:limit], splits.test.labels[:limit]
    right = correct(model, images, labels)
    attacked = {}
    for eps in ATTACK_EPS:
        moved = pgd(model, images[right], labels[right], eps=eps, steps=ATTACK_STEPS, seed=SEED)
        name = f"PGD {round(255 * eps)}/255, {ATTACK_STEPS} steps"
        attacked[name] = successful(model, moved, labels[right], half + right)
    return Subject(
        title="Packaged CNN, scikit-learn's digits",
        data="half of the demo's calibration digits fit",
        model=model,
        sigma=DEMO_SIGMA,
        fit=splits.calibration.images[:half],
        clean=torch.cat([splits.calibration.images[half:], images]),
        calibrate=half,
        attacked=attacked,
    )


def resnet20(limit: int | None) -> Subject:
    """Return ResNet-20 on CIFAR-10's test images; ``limit`` takes fewer of each kind."""
    model, data = load_model_and_data("resnet20")
    splits = draw_splits(data, pool=limit or CIFAR_POOL, test=limit or CIFAR_TEST, seed=SEED)
    pool, test = splits.pool.pixels(), splits.test.pixels()
    half = len(pool) // 2
    images, labels = test[:CIFAR_ATTACKED], splits.test.labels[:CIFAR_ATTACKED]
    right = correct(model, images, labels)
    attacked = {}
    for attack in choose(CIFAR_ATTACKS):
        moved = quantize(attack.run(model, images[right], labels[right], SEED))
        found = successful(model, moved, labels[right], half + right)
        attacked[attack.title] = found
    return Subject(
        title="ResNet-20, CIFAR-10 test images",
        data=f"attacked are the right ones of {len(images)} judged images, rounded to 8 bits",
        model=model,
        sigma=CIFAR_SIGMA,
        fit=pool[:half],
        clean=torch.cat([pool[half:], test]),
        calibrate=len(pool) - half,
        attacked=attacked,
    )


SUBJECTS = {"digits": digits, "resnet20": resnet20}


def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the positions of the images that the model gets right."""
    with torch.no_grad():
        right: Tensor = model(images).argmax(1) == labels
    return right.nonzero().flatten()


def successful(
    model: nn.Module, moved: Tensor, labels: Tensor, origin: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the attacked images that are no longer right, and where they come from."""
    with torch.no_grad():
        changed = model(moved).argmax(1) != labels
    return moved[changed], origin[changed]


def score(subject: Subject, images: Tensor, looks: Looks, what: str) -> Scores:
    """Score images at every look, each run once."""
    smoothing = Smoothing(n=looks.copies[-1], sigma=subject.sigma, seed=SEED)
    guard = Guard(subject.model, smoothing=smoothing, restoration=None)
    rows: list[list[list[float]]] = [[] for _ in looks.copies]
    for batch in tqdm(images.split(BATCH), what):
        at_looks = guard.evidence_at(batch, looks.copies, views=True)
        for known, shown in zip(rows, at_looks, strict=True):
            known += read(shown, tuple(SCORES)).to_rows()
    return [Readings.from_rows(tuple(SCORES), known) for known in rows]


def anomalies(detectors: list[Detector], scores: Scores) -> Tensor:
    """Return the anomaly score of each image at each look [B, L]."""
    pairs = zip(detectors, scores, strict=True)
    return torch.stack([detector.anomaly(at) for detector, at in pairs], 1)


def measure(name: str, *, limit: int | None, divisions: int) -> dict[str, Any]:
    """Return the shares; ``limit`` takes fewer images, to see that it runs."""
    subject, looks = SUBJECTS[name](limit), Looks()
    fit = score(subject, subject.fit, looks, "fit")
    clean = score(subject, subject.clean, looks, "clean")
    attacks = {
        kind: (score(subject, moved, looks, kind), origin)
        for kind, (moved, origin) in subject.attacked.items()
    }
    rows = []
    for detector in DETECTORS:
        detectors = [fit_detector(detector, at) for at in fit]
        pool = anomalies(detectors, clean)
        tables = {kind: (anomalies(detectors, at), of) for kind, (at, of) in attacks.items()}
        tables = {"clean": (pool, torch.arange(len(pool))), **tables}
        shares = divided(looks, tables, calibrate=subject.calibrate, divisions=divisions)
        rows += [
            {"detector": detector, "requests": kind, "images": len(tables[kind][0]), **found}
            for kind, found in shares.items()
        ]
    return {
        "model": name,
        "title": subject.title,
        "data": subject.data,
        "looks": looks.to_dict(),
        "most_copies": looks.most_copies,
        "alpha": DEMO_ALPHA,
        "sigma": subject.sigma,
        "seed": SEED,
        "fit": len(subject.fit),
        "calibrate": subject.calibrate,
        "test": len(subject.clean) - subject.calibrate,
        "divisions": divisions,
        "version": __version__,
        "torch": torch.__version__,
        "rows": rows,
    }


def divided(
    looks: Looks, tables: Mapping[str, tuple[Tensor, Tensor]], *, calibrate: int, divisions: int
) -> dict[str, dict[str, Any]]:
    """Divide the clean images into calibration and test again and again.

    In each division the judged requests are drawn anew with replacement, so that the quantiles
    hold what another calibration and other requests would change.

    Args:
        looks: The looks.
        tables: Anomaly scores [B, L] of each kind of request, with the clean image that each
            comes from [B]. An attack counts where its image is not among those that calibrate.
        calibrate: How many images calibrate.
        divisions: How often.

    Returns:
        Of each kind, mean and 2.5 and 97.5 % quantile over the divisions: of the share flagged
        early, of the share flagged at all copies, of their difference, of the mean copies; and of
        the shares flagged at each look alone.
    """
    alone = Looks(looks.copies[-1:], (), (1.0,))
    pool = tables["clean"][0]
    generator = torch.Generator().manual_seed(SEED)
    found: dict[str, list[list[float]]] = {kind: [] for kind in tables}
    for _ in range(divisions):
        chosen = torch.randperm(len(pool), generator=generator)[:calibrate]
        early = looks.calibrate(pool[chosen], DEMO_ALPHA)
        columns = [alone.calibrate(column[chosen, None], DEMO_ALPHA) for column in pool.T]
        for kind, (table, origin) in tables.items():
            judged = table[~torch.isin(origin, chosen)]
            judged = judged[torch.randint(len(judged), (len(judged),), generator=generator)]
            stopped = replay(early, judged)
            share = float(stopped.flagged.double().mean())
            by_look = [
                float(replay(rule, judged[:, look, None]).flagged.double().mean())
                for look, rule in enumerate(columns)
            ]
            copies = float(stopped.copies.double().mean())
            found[kind].append([share, by_look[-1], share - by_look[-1], copies, *by_look])
    names = ("early", "all_copies", "difference", "mean_copies")
    summaries = {kind: list(map(_summary, torch.tensor(v).T)) for kind, v in found.items()}
    return {
        kind: dict(zip(names, values[:4], strict=True)) | {"alone": values[4:]}
        for kind, values in summaries.items()
    }


def _summary(values: Tensor) -> list[float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return [float(values.mean()), low, high]


def page(records: list[dict[str, Any]]) -> str:
    """Return the results of all models as Markdown."""
    text = [
        "# Early stopping",
        "",
        "Made by `python scripts/measure_stopping.py` (and `--model resnet20`); do not edit.",
        "",
        "What the looks are, and why all of them together keep alpha: [method.md](method.md), "
        "section 8. Attacks are static. Of each model's clean images some fit the detector of each "
        "look; the others are divided at random, again and again, into those that calibrate and "
        "those that are judged, an attack counting where its image does not calibrate. The table "
        "gives the mean over the divisions, and in brackets the central 95 % of them, the judged "
        "requests drawn anew with replacement in each.",
        "",
        "*Flagged early*: by early stopping. *At m copies*: with so many copies for every request, "
        "by that look's own threshold, as where a service has little time (`guard(images, "
        "copies=m)`). All at the same alpha. *Difference*: early, less all copies.",
        "",
    ]
    for record in records:
        text += _section(record)
    return "\n".join(text)


def _section(record: dict[str, Any]) -> list[str]:
    looks = record["looks"]
    fewer, most = looks["copies"][:-1], looks["copies"][-1]
    head = ["detector", "requests", "images", "flagged early, %", f"at {most} copies, %"]
    head += ["difference, points", f"copies, of {most}", *(f"at {m}, %" for m in fewer)]
    lines = [
        f"## {record['title']}",
        "",
        f"{record['fit']} clean images fit, {record['calibrate']} calibrate, {record['test']} are "
        f"judged, {record['divisions']} divisions; {record['data']}. Looks at {looks['copies']} "
        f"copies, clear levels {looks['clear']}, weights {looks['weight']}; alpha = "
        f"{record['alpha']}, sigma = {record['sigma']}, seed {record['seed']}. A clean request "
        f"takes at most {record['most_copies']:.1f} copies in the mean, whatever its scores.",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---"] * len(head)) + " |",
    ]
    for row in record["rows"]:
        cells = [row["detector"], row["requests"], str(row["images"])]
        cells += [_cell(row[k], 100) for k in ("early", "all_copies", "difference")]
        cells += [_cell(row["mean_copies"], 1), *(_cell(at, 100) for at in row["alone"][:-1])]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", f"lrpguard {record['version']}, torch {record['torch']}.", ""]


def _cell(summary: list[float], scale: float) -> str:
    mean, low, high = (scale * value for value in summary)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def main(arguments: list[str]) -> int:
    """Measure, print and write; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(SUBJECTS), default="digits")
    parser.add_argument("--limit", type=int, help="fewer images, to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--divisions", type=int, default=1000)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = measure(args.model, limit=args.limit, divisions=args.divisions)
    results = args.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    card = results / f"stopping_{args.model}.json"
    card.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    cards = [json.loads(path.read_text()) for path in sorted(results.glob("stopping_*.json"))]
    args.out.joinpath("stopping.md").write_text(page(cards), encoding="utf-8")
    print("\n".join(_section(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
