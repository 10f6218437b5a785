"""The ablation: on readings where it is known which part says what."""

from __future__ import annotations

import torch

from lrpguard.consistency import Candidates
from lrpguard.detector import SIDES
from lrpguard.evaluation.ablation import STILL, VARIANTS, Judged, ablate, ablation_table
from lrpguard.readings import SUPPORTS, VALUES, Readings

NAMES = ("relevance_variance", *SIDES)


def readings(count: int, *, seed: int, **shifts: float) -> Readings:
    """Return normal readings of ten classes, some scores shifted.

    ``views`` shifts what all views say, ``still`` those that are neither mirrored nor shifted.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = normal(count, 9, VALUES)
    values[..., 0] -= 10  # the label leads
    values[:, 3, 2:] += shifts.pop("views", 0.0)
    values[:, 3, list(STILL)] += shifts.pop("still", 0.0)
    scores = normal(count, len(NAMES))
    for name, shift in shifts.items():
        scores[:, NAMES.index(name)] += shift
    found = Candidates(
        label=torch.zeros(count, dtype=torch.long),
        classes=torch.arange(1, 10).expand(count, 9),
        values=values,
        support=torch.full((count, 9, SUPPORTS), 1 / 9, dtype=torch.float64).log(),
        kept=torch.ones(count, SUPPORTS, dtype=torch.float64),
    )
    return Readings(NAMES, scores, found)


def judged(count: int = 200, *, seed: int, **shifts: float) -> Judged:
    everyone = torch.ones(count, dtype=torch.bool)
    return Judged(readings(count, seed=seed, **shifts), everyone, torch.arange(count))


def run(**attacks: Judged) -> dict[str, dict[str, float]]:
    rows = ablate(
        readings(600, seed=0),
        readings(600, seed=1),
        readings(200, seed=2),
        attacks,
        alpha=0.05,
        seed=0,
    )
    assert [row.title for row in rows] == [variant.title for variant in VARIANTS]
    return {
        row.title: {name: share.rate for name, share in row.detected.items()}
        | {"mean": row.mean.value or 0.0, "lost": row.lost.value or 0.0}
        | {"false": row.false_positives.rate}
        for row in rows
    }


def test_an_attack_is_missed_without_the_one_part_that_sees_it() -> None:
    rates = run(
        noise=judged(seed=3, chroma_noise=6.0),
        margin=judged(seed=4, margin=-6.0),
        place=judged(seed=7, place_roughness=6.0),
        relevance=judged(seed=5, relevance_roughness=6.0),
        views=judged(seed=6, views=5.0),
        still=judged(seed=8, still=8.0),
    )
    assert all(rates["the detector"][name] > 0.9 for name in ("noise", "margin", "place"))
    assert rates["the detector"]["views"] > 0.9
    assert rates["without noise of the pixels"]["noise"] < 0.2
    assert rates["without the roughest place"]["place"] < 0.2
    assert rates["without margin"]["margin"] < 0.2
    assert rates["the detector"]["relevance"] < 0.2
    assert rates["with the roughness of the relevance"]["relevance"] > 0.9
    assert rates["without any view"]["views"] < 0.2
    assert rates["without smoothing and covering views"]["still"] < 0.2
    assert rates["without the mirrored and the shifted view"]["still"] > 0.9
    assert rates["without noisy copies"]["views"] > 0.9
    assert rates["the paper's score"]["noise"] < 0.2


def test_counts_successes_alone_and_pairs_what_is_lost() -> None:
    seen, unseen = readings(100, seed=3, chroma_noise=9.0), readings(100, seed=4)
    both = Readings(
        NAMES,
        torch.cat([seen.scores, unseen.scores]),
        Candidates(
            *(
                torch.cat([getattr(seen.candidates, part), getattr(unseen.candidates, part)])
                for part in ("label", "classes", "values", "support", "kept")
            )
        ),
    )
    fooled = torch.arange(200) < 100  # those that are seen
    rates = run(half=Judged(both, fooled, torch.arange(200)))
    assert rates["the detector"]["half"] == 1.0
    assert rates["the detector"]["lost"] == 0.0
    blind = rates["without noise of the pixels"]
    assert blind["lost"] == rates["the detector"]["mean"] - blind["mean"]


def test_false_positives_are_those_asked_for() -> None:
    rates = run(any=judged(seed=3))
    assert all(0.01 < rate["false"] < 0.12 for rate in rates.values())


def test_table_has_a_line_a_variant() -> None:
    rows = ablate(
        readings(200, seed=0),
        readings(200, seed=1),
        readings(50, seed=2),
        {"A": judged(50, seed=3)},
        alpha=0.05,
        seed=0,
    )
    lines = ablation_table(rows).splitlines()
    assert len(lines) == 2 + len(VARIANTS)
    assert lines[2].startswith("| the detector | ")
    assert "0.0 (0.0 to 0.0)" in lines[2]
