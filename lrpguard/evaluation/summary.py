"""What a run shows: every figure with its interval and its n, from the rows alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import betabinom

from lrpguard.conformal import flagged_rank
from lrpguard.evaluation.bootstrap import (
    Floats,
    image_weights,
    interval,
    mean_of,
    weighted_auroc,
    weighted_share,
)
from lrpguard.evaluation.judging import ALPHAS
from lrpguard.evaluation.metrics import auroc
from lrpguard.evaluation.outcomes import GUARD, Attacked, Clean
from lrpguard.evaluation.paper.card import share
from lrpguard.evaluation.restored import count_restored

UNKNOWN = -1

Record = dict[str, Any]


def summarize(
    clean: Clean,
    attacks: Sequence[Attacked],
    controls: Sequence[Attacked],
    *,
    calibration_n: Mapping[str, int],
    seed: int,
    seen: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Record:
    """Count a run.

    Shares are ``{"successes", "n", "low", "high"}`` with Wilson intervals; means and areas are
    ``{"value", "low", "high"}`` with intervals of a bootstrap over images.

    Args:
        clean: The untouched test images.
        attacks: What attacks made of those that were right.
        controls: What controls made of all.
        calibration_n: Calibration images of each detector.
        seed: Seed of the bootstrap.
        seen: For each detector that was fitted with attacks, those of these attacks that it saw,
            kin included.
    """
    weights = image_weights(len(clean.labels), seed=seed)
    return {
        "clean": _clean(clean, calibration_n),
        "attacks": {attack.name: _attack(clean, attack, weights) for attack in attacks},
        "controls": {control.name: _control(control) for control in controls},
        "per_sample": _per_sample(clean, attacks, weights),
        "suite": _suite(clean, attacks, weights),
        "unseen": {name: _unseen(attacks, name, known, weights) for name, known in seen.items()},
        "restorations": count_restored(clean, attacks, weights),
    }


def level(alpha: float) -> str:
    """Return a false-positive rate as keys name it: 0.05 is ``"5"``."""
    return f"{100 * alpha:g}"


def _clean(clean: Clean, calibration_n: Mapping[str, int]) -> Record:
    n = len(clean.labels)
    return {
        "n": n,
        "accuracy": share(int(clean.correct.sum()), n),
        "accuracy_guarded": share(int((clean.final == clean.labels).sum()), n),
        **_harm(clean.final, clean.labels, clean.correct),
        "fpr": {
            name: {
                level(alpha): share(int((p_values <= alpha).sum()), n)
                | {"band": fpr_band(calibration_n[name], n, alpha)}
                for alpha in ALPHAS
            }
            for name, p_values in clean.p_values.items()
        },
    }


def fpr_band(calibration_n: int, test_n: int, alpha: float) -> list[float]:
    """Return the central 95 % band of the false-positive rate among test images.

    The number flagged follows a Beta-binomial law, over calibration and test sets of these
    sizes drawn anew, for scores without ties.

    Source: Vovk 2012, "Conditional validity of inductive conformal predictors".
    """
    k = flagged_rank(calibration_n, alpha)
    if k < 1:
        return [0.0, 0.0]
    low, high = betabinom.ppf([0.025, 0.975], test_n, k, calibration_n + 1 - k)
    return [float(low) / test_n, float(high) / test_n]


def _harm(final: Any, labels: Any, right: Any) -> Record:
    """Return of how many images a right label was made wrong, or unknown; of all images."""
    wrong = right & (final != labels) & (final != UNKNOWN)
    unknown = right & (final == UNKNOWN)
    n = len(right)
    return {"harm_wrong": share(int(wrong.sum()), n), "harm_unknown": share(int(unknown.sum()), n)}


def _attack(clean: Clean, attack: Attacked, weights: Floats) -> Record:
    fooled, attempts = attack.fooled, len(attack.labels)
    right = attack.final == attack.labels
    return {
        "attempts": attempts,
        "success": share(int(fooled.sum()), attempts),
        "restored_of_success": share(int((fooled & right).sum()), int(fooled.sum())),
        "unknown_of_success": share(
            int((fooled & (attack.final == UNKNOWN)).sum()), int(fooled.sum())
        ),
        "accuracy_guarded": share(int(right.sum()), attempts),
        "detectors": {name: _detector(clean, attack, name, weights) for name in attack.p_values},
    }


def _detector(clean: Clean, attack: Attacked, name: str, weights: Floats) -> Record:
    fooled, p_values = attack.fooled, attack.p_values[name]
    attempts, successes = len(fooled), int(fooled.sum())
    record: Record = {"auroc": _area(clean, attack, name, weights)}
    for alpha in ALPHAS:
        flagged = p_values <= alpha
        record[level(alpha)] = {
            "tpr": share(int((flagged & fooled).sum()), successes),
            "tpr_attempts": share(int(flagged.sum()), attempts),
            "sr": share(int((fooled & ~flagged).sum()), attempts),
        }
    return record


def _area(clean: Clean, attack: Attacked, name: str, weights: Floats) -> Record:
    fooled = attack.fooled
    if not fooled.any():
        return {"value": None, "low": None, "high": None, "n": 0}
    scores = attack.scores[name][fooled]
    draws = weighted_auroc(weights, clean.scores[name], scores, attack.positions[fooled])
    value = auroc(clean.scores[name], scores)
    return asdict(interval(draws)) | {"value": value, "n": int(fooled.sum())}


def _control(control: Attacked) -> Record:
    n = len(control.labels)
    return {
        "n": n,
        "accuracy": share(int((~control.fooled).sum()), n),
        "accuracy_guarded": share(int((control.final == control.labels).sum()), n),
        **_harm(control.final, control.labels, ~control.fooled),
        "flagged": {
            name: {level(alpha): share(int((p <= alpha).sum()), n) for alpha in ALPHAS}
            for name, p in control.p_values.items()
        },
    }


def _per_sample(clean: Clean, attacks: Sequence[Attacked], weights: Floats) -> Record:
    """Let the attacker take, for each image, whichever attack serves best (MEAD).

    An image counts as detected, or restored, only if every attack that fools the model on it is.

    Source: Granese et al. 2022, "MEAD: a multi-armed approach for evaluation of adversarial
    examples detectors".
    """
    n = len(clean.labels)
    attempted, fooled = np.zeros(n, bool), np.zeros(n, bool)
    restored = np.ones(n, bool)
    for attack in attacks:
        at, hit = attack.positions, attack.fooled
        attempted[at] = True
        fooled[at] |= hit
        restored[at] &= ~hit | (attack.final == attack.labels)
    attempts, successes = int(attempted.sum()), int(fooled.sum())
    detectors = {}
    for name in clean.p_values:
        least = _least(attacks, n, [attack.scores[name] for attack in attacks])
        largest_p = -_least(attacks, n, [-attack.p_values[name] for attack in attacks])
        at = np.flatnonzero(fooled)
        area = weighted_auroc(weights, clean.scores[name], least[at], at)
        record: Record = {"auroc": asdict(interval(area)) | {"n": successes}}
        for alpha in ALPHAS:
            missed = fooled & (largest_p > alpha)
            record[level(alpha)] = {
                "tpr": share(successes - int(missed.sum()), successes),
                "sr": share(int(missed.sum()), attempts),
            }
        detectors[name] = record
    return {
        "attempts": attempts,
        "success": share(successes, attempts),
        "restored_of_success": share(int((fooled & restored).sum()), successes),
        "detectors": detectors,
    }


def _least(attacks: Sequence[Attacked], n: int, values: Sequence[Floats]) -> Floats:
    """Return the least value of each image over the attacks that fool the model on it, [n]."""
    least = np.full(n, np.inf)
    for attack, value in zip(attacks, values, strict=True):
        hit = attack.fooled
        at = attack.positions[hit]
        least[at] = np.minimum(least[at], value[hit])
    return least


def _suite(clean: Clean, attacks: Sequence[Attacked], weights: Floats) -> Record:
    """Average over the attacks that succeeded at all, each counting once."""
    worked = [attack for attack in attacks if attack.fooled.any()]
    tpr = {
        (name, alpha): mean_of([_tpr_draws(attack, name, alpha, weights) for attack in worked])
        for name in clean.p_values
        for alpha in ALPHAS
    }
    area = {
        name: mean_of([_auroc_draws(clean, attack, name, weights) for attack in worked])
        for name in clean.p_values
    }
    detectors: Record = {}
    for name in clean.p_values:
        detectors[name] = {"auroc": asdict(interval(area[name]))}
        for alpha in ALPHAS:
            detectors[name][level(alpha)] = {
                "mean_tpr": asdict(interval(tpr[name, alpha])),
                "worst": _worst(worked, name, alpha),
            }
    differences: Record = {}
    for name in clean.p_values:
        if name != GUARD:
            differences[name] = {"auroc": asdict(interval(area[GUARD] - area[name]))}
            for alpha in ALPHAS:
                ahead = interval(tpr[GUARD, alpha] - tpr[name, alpha])
                differences[name][level(alpha)] = asdict(ahead)
    return {
        "attacks": [attack.name for attack in worked],
        "without_success": [a.name for a in attacks if not a.fooled.any()],
        "detectors": detectors,
        "guard_ahead_of": differences,
    }


def _unseen(
    attacks: Sequence[Attacked], name: str, seen: Collection[str], weights: Floats
) -> Record:
    """Average over the attacks that a detector was not fitted with, and their kin, left out."""
    rest = [attack for attack in attacks if attack.fooled.any() and attack.name not in seen]
    record: Record = {"attacks": [attack.name for attack in rest], "seen": sorted(seen)}
    for alpha in ALPHAS:
        theirs = mean_of([_tpr_draws(attack, name, alpha, weights) for attack in rest])
        own = mean_of([_tpr_draws(attack, GUARD, alpha, weights) for attack in rest])
        record[level(alpha)] = {
            "mean_tpr": asdict(interval(theirs)),
            "guard_mean_tpr": asdict(interval(own)),
            "guard_ahead": asdict(interval(own - theirs)),
            "worst": _worst(rest, name, alpha),
        }
    return record


def _tpr_draws(attack: Attacked, name: str, alpha: float, weights: Floats) -> Floats:
    fooled = attack.fooled.astype(np.float64)
    hits = fooled * (attack.p_values[name] <= alpha)
    return weighted_share(weights[:, attack.positions], hits, fooled)


def _auroc_draws(clean: Clean, attack: Attacked, name: str, weights: Floats) -> Floats:
    fooled = attack.fooled
    return weighted_auroc(
        weights, clean.scores[name], attack.scores[name][fooled], attack.positions[fooled]
    )


def _worst(attacks: Sequence[Attacked], name: str, alpha: float) -> Record | None:
    """Return the attack whose successes are detected least, with that share."""
    found = [
        (int((a.fooled & (a.p_values[name] <= alpha)).sum()), int(a.fooled.sum()), a.name)
        for a in attacks
    ]
    if not found:
        return None
    hits, n, worst = min(found, key=lambda item: item[0] / item[1])
    return {"attack": worst} | share(hits, n)
