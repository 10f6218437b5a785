"""What other restorations would have given, counted beside the guard's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lrpguard.evaluation.bootstrap import Floats, interval, mean_of, weighted_share
from lrpguard.evaluation.outcomes import GUARD, Attacked, Bools, Clean
from lrpguard.evaluation.paper.card import share

FLAGGED_ALPHA = 0.05
"""False-positive rate of the guard where a restoration acts on flagged images alone."""

Record = dict[str, Any]


def count_restored(clean: Clean, attacks: Sequence[Attacked], weights: Floats) -> Record:
    """Count the labels of other restorations; empty where none was noted.

    *Told*: the label is right, of all successful attacks, as if each were known to be one.
    *Flagged*: the same, of those alone that the guard flags; the others keep their wrong label.
    The guard's own figure is of the second kind, and it says ``unknown`` where it lacks evidence.

    Args:
        clean: The untouched test images.
        attacks: What attacks made of those that were right.
        weights: How often each image stands in each resample [D, n].
    """
    names = list(clean.restored)
    if not names:
        return {}
    worked = [attack for attack in attacks if attack.fooled.any()]
    own = _mean([_guard_right(attack) for attack in worked], worked, weights)
    suite: Record = {GUARD: {"flagged": asdict(interval(own))}}
    for name in names:
        told = _mean([_right(attack, name) for attack in worked], worked, weights)
        flagged = _mean([_right(a, name) & _flagged(a) for a in worked], worked, weights)
        suite[name] = {
            "told": asdict(interval(told)),
            "flagged": asdict(interval(flagged)),
            "guard_ahead": asdict(interval(own - flagged)),
        }
    return {
        "attacks": {attack.name: _attack(attack, names) for attack in attacks},
        "suite": suite,
        "clean_harm": {name: _harm(clean, name) for name in names},
    }


def _attack(attack: Attacked, names: Sequence[str]) -> Record:
    fooled, n = attack.fooled, int(attack.fooled.sum())
    record: Record = {GUARD: {"flagged": share(int((fooled & _guard_right(attack)).sum()), n)}}
    for name in names:
        right = fooled & _right(attack, name)
        record[name] = {
            "told": share(int(right.sum()), n),
            "flagged": share(int((right & _flagged(attack)).sum()), n),
        }
    return record


def _harm(clean: Clean, name: str) -> Record:
    """Return how many clean images have their right label replaced because they are flagged."""
    flagged = clean.p_values[GUARD] <= FLAGGED_ALPHA
    lost = flagged & clean.correct & (clean.restored[name] != clean.labels)
    return share(int(lost.sum()), len(clean.labels))


def _flagged(attack: Attacked) -> Bools:
    return np.asarray(attack.p_values[GUARD] <= FLAGGED_ALPHA)


def _right(attack: Attacked, name: str) -> Bools:
    return np.asarray(attack.restored[name] == attack.labels)


def _guard_right(attack: Attacked) -> Bools:
    return np.asarray(attack.final == attack.labels)


def _mean(right: Sequence[Bools], attacks: Sequence[Attacked], weights: Floats) -> Floats:
    """Return the mean over attacks of the share right of the successful, in each resample [D]."""
    shares = []
    for hit, attack in zip(right, attacks, strict=True):
        among = attack.fooled.astype(np.float64)
        shares.append(weighted_share(weights[:, attack.positions], among * hit, among))
    return mean_of(shares)
