"""Judge attacked images by the detector without this or that part; write docs/ablation.md.

Weights and images come from the folder that the environment variable LRPGUARD_DATA names.
Attacked images are taken from the cache of `lrpguard evaluate`, or made; scores of clean images
from --checkpoint, the scores.jsonl of an evaluation with the same settings, or made.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from lrpguard import Guard, Smoothing, __version__
from lrpguard.attacks.suite import choose
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.ablation import Judged, ablate, ablation_table
from lrpguard.evaluation.adversarial import attacked_set, default_cache
from lrpguard.evaluation.judging import content_halves
from lrpguard.evaluation.paper.setup import MODELS, load_model_and_data
from lrpguard.evaluation.protocol import draw_splits
from lrpguard.fingerprint import model_fingerprint
from lrpguard.readings import Readings, read
from lrpguard.scores import SCORES
from lrpguard.smoothing import clean_logits

ROOT = Path(__file__).resolve().parents[1]

ATTACKS = (
    "fgsm_2,fgsm_4,pgd_1_10,pgd_2_10,pgd_8_10,pgd_l2_0.5,"
    "apgd_ce_4,apgd_dlr_4,cw_0,cw_5,ead,square_8,patch"
)

PAGE = """# What each part of the detector adds

Made by `{command}`; do not edit.

{model}: {fit} clean images fit and {calibration} others calibrate; {test} test images, of which
{right} are classified correctly and attacked; seed {seed}, n = {n} copies, sigma = {sigma},
threshold at {alpha:.0%} false positives. Shares are of the successful attacks, right before and
wrong after rounding to 8 bits; shares with 95 % Wilson intervals, means and paired differences
with 95 % bootstrap intervals over the test images. The attacks are static.
Each row fits and calibrates a detector anew, without the part it names.

{table}

Attacks: {attacks}. {seconds:.0f} s on {threads} thread; lrpguard {version}, torch {torch}.
"""


def main() -> None:
    """Run the ablation and write its card and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet20")
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--attacks", default=ATTACKS, help="names, with commas between them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="scores.jsonl of an evaluation")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    model, data = load_model_and_data(args.model)
    splits = draw_splits(data, pool=args.pool, test=args.test, seed=args.seed)
    guard = Guard(model, smoothing=Smoothing(n=args.n, sigma=args.sigma), restoration=None)
    fit, calibration = (
        _readings(guard, part.pixels(), args.checkpoint, part.digests)
        for part in content_halves(splits.pool)
    )
    clean = splits.test.pixels()
    right = (_labels(model, clean) == splits.test.labels).nonzero().flatten()
    chosen = splits.test.select(right.tolist())
    attacked = {}
    for attack in choose(tuple(args.attacks.split(","))):
        made = attacked_set(
            attack,
            model,
            chosen,
            seed=args.seed,
            cache=default_cache(),
            clock=time.perf_counter,
        )
        images = made.pixels(0, len(chosen))
        fooled = _labels(model, images) != chosen.labels
        attacked[attack.title] = Judged(_readings(guard, images), fooled, right)
    rows = ablate(
        fit, calibration, _readings(guard, clean), attacked, alpha=args.alpha, seed=args.seed
    )
    about = {
        "model": args.model,
        "fit": len(fit),
        "calibration": len(calibration),
        "test": len(clean),
        "right": len(chosen),
        "seed": args.seed,
        "n": args.n,
        "sigma": args.sigma,
        "alpha": args.alpha,
        "seconds": time.perf_counter() - begun,
        "threads": torch.get_num_threads(),
        "version": __version__,
        "torch": torch.__version__,
    }
    card = {**about, "test_indices": splits.test.indices, "rows": [row.to_dict() for row in rows]}
    path = args.docs / "results" / f"ablation_{args.model}.json"
    path.write_text(json.dumps(card) + "\n", encoding="utf-8")
    command = (
        f"python scripts/make_ablation.py --model {args.model} --pool {args.pool} "
        f"--test {args.test} --n {args.n} --sigma {args.sigma} --seed {args.seed} "
        f"--alpha {args.alpha}"
    )
    if args.checkpoint is not None:
        command += f" --checkpoint {Path(*args.checkpoint.parts[-3:])}"
    page = PAGE.format(
        **about, command=command, table=ablation_table(rows), attacks=", ".join(attacked)
    )
    (args.docs / "ablation.md").write_text(page, encoding="utf-8")
    print(page)


def _labels(model: nn.Module, images: Tensor) -> Tensor:
    return clean_logits(model, images).argmax(1)


def _readings(
    guard: Guard,
    images: Tensor,
    checkpoint: Path | None = None,
    digests: tuple[str, ...] = (),
) -> Readings:
    """Return the readings of images, taken from a checkpoint where it holds them."""
    kept: dict[str, list[float]] = {}
    if checkpoint is not None:
        lines = [json.loads(line) for line in checkpoint.read_text(encoding="utf-8").splitlines()]
        run, noise = lines[0].get("run", {}), guard.smoothing
        found = [run.get(name) for name in ("fingerprint", "n", "sigma", "scores")]
        if found != [model_fingerprint(guard.model), noise.n, noise.sigma, list(SCORES)]:
            raise ConfigurationError(
                f"{checkpoint} holds scores of other settings; give that of an evaluation with "
                f"this model, n = {noise.n} and sigma = {noise.sigma:g}."
            )
        kept = {line["key"]: line["scores"] for line in lines if "key" in line}
    names = tuple(SCORES)
    rows = []
    for i, image in enumerate(images):
        row = kept.get(digests[i]) if digests else None
        if row is None:
            row = read(guard.evidence(image[None], views=True), names).to_rows()[0]
        rows.append(row)
    return Readings.from_rows(names, rows)


if __name__ == "__main__":
    main()
