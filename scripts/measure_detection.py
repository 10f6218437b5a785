"""Count what the detectors flag under static PGD attacks; write docs/detection.md and its card.

Weights and images come from the folder that the environment variable LRPGUARD_DATA names.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from lrpguard import Smoothing, __version__
from lrpguard.evaluation.detection import as_record, detection_table, measure_detection
from lrpguard.evaluation.paper.setup import MODELS, Paths, load_experiment

ROOT = Path(__file__).resolve().parents[1]

PAGE = """# Detection under static PGD attacks

Made by `{command}`; do not edit.

{model}, {test} test images, {clean} other clean images (for `combined` half of them fit it and
half calibrate it; for `paper` all calibrate it); drawn with seed {seed}. n = {n} copies,
sigma = {sigma}, threshold at {alpha:.0%} false positives, PGD with {steps} steps and random start
in the maximum norm. Shares with 95 % Wilson intervals. *Successful*: right before the attack, wrong
after. The attacks are static: they do not know of the guard. `paper` is the paper's score with a
clean-only threshold.

{table}

{seconds:.0f} s on {threads} thread(s); lrpguard {version}, torch {torch}.
"""


def main() -> None:
    """Run the measurement and write its card and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet20")
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--clean", type=int, default=600)
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--eps", type=int, nargs="+", default=[1, 2, 4, 8], help="in 1/255")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = load_experiment(
        args.model, Paths(), test=args.test, conformal=args.clean, seed=args.seed
    )
    begun = time.perf_counter()
    rows = measure_detection(
        found.model,
        found.splits.conformal,
        found.splits.test,
        smoothing=Smoothing(n=args.n, sigma=args.sigma, seed=args.seed),
        strengths=args.eps,
        alpha=args.alpha,
        steps=args.steps,
        seed=args.seed,
    )
    about = {
        "model": args.model,
        "test": args.test,
        "clean": len(found.splits.conformal),
        "n": args.n,
        "sigma": args.sigma,
        "alpha": args.alpha,
        "steps": args.steps,
        "seed": args.seed,
        "seconds": time.perf_counter() - begun,
        "threads": torch.get_num_threads(),
        "version": __version__,
        "torch": torch.__version__,
    }
    splits = {
        "test_indices": found.splits.test.indices,
        "clean_indices": found.splits.conformal.indices,
    }
    (args.out / "results").mkdir(parents=True, exist_ok=True)
    card = args.out / "results" / f"detection_{args.model}.json"
    card.write_text(json.dumps(as_record(rows, **about, **splits)) + "\n", encoding="utf-8")
    eps = " ".join(str(e) for e in args.eps)
    command = (
        f"python scripts/measure_detection.py --model {args.model} --test {args.test} "
        f"--clean {args.clean} --n {args.n} --sigma {args.sigma} --alpha {args.alpha} "
        f"--steps {args.steps} --eps {eps} --seed {args.seed}"
    )
    page = PAGE.format(**about, command=command, table=detection_table(rows))
    (args.out / "detection.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
