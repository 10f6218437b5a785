"""What each part of the combined detector adds: the same images, judged without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrpguard.conformal import conformal_p_values
from lrpguard.consistency import RANK_WEIGHT
from lrpguard.detector import COMBINED_SCORES, CombinedDetector, Detector, PaperDetector
from lrpguard.evaluation.bootstrap import (
    Floats,
    Interval,
    image_weights,
    interval,
    mean_of,
    weighted_share,
)
from lrpguard.evaluation.metrics import Proportion, proportion
from lrpguard.readings import VALUES, Readings
from lrpguard.views import VIEWS

GAP, NOISE, CHANGED = (0,), (1,), tuple(range(2, VALUES))
"""Which of a candidate's values say what: the gap, the noisy copies, the changed views."""

MOVED = tuple(2 + list(VIEWS).index(name) for name in ("mirrored", "shifted"))
STILL = tuple(value for value in CHANGED if value not in MOVED)
"""Views whose pixels have other places, and those that only smooth or cover."""

EVERY = COMBINED_SCORES


@dataclass(frozen=True)
class Variant:
    """A detector with parts left out.

    Attributes:
        title: What tables call it.
        values: Values of the candidates that its consistency sees.
        scores: Scores beside the consistency; None for the paper's score alone.
        rank_weight: What a candidate's rank costs it.
    """

    title: str
    values: tuple[int, ...]
    scores: tuple[str, ...] | None
    rank_weight: float = RANK_WEIGHT


def _without(*names: str) -> tuple[str, ...]:
    return tuple(name for name in EVERY if name not in names)


VARIANTS = (
    Variant("the detector", GAP + NOISE + CHANGED, EVERY),
    Variant(
        "with the roughness of the relevance",
        GAP + NOISE + CHANGED,
        (*EVERY, "relevance_roughness"),
    ),
    Variant(
        "without noise of the pixels", GAP + NOISE + CHANGED, _without("chroma_noise", "line_noise")
    ),
    Variant("without the roughest place", GAP + NOISE + CHANGED, _without("place_roughness")),
    Variant("without margin", GAP + NOISE + CHANGED, _without("margin")),
    Variant("without the candidates' ranks", GAP + NOISE + CHANGED, EVERY, 0.0),
    Variant("without noisy copies", GAP + CHANGED, EVERY),
    Variant("without the mirrored and the shifted view", GAP + NOISE + STILL, EVERY),
    Variant("without smoothing and covering views", GAP + NOISE + MOVED, EVERY),
    Variant("without any view", GAP + NOISE, EVERY),
    Variant("logits alone: consistency and margin", GAP + NOISE + CHANGED, ("margin",)),
    Variant("consistency alone", GAP + NOISE + CHANGED, ()),
    Variant("consistency of the noisy copies alone", GAP + NOISE, ()),
    Variant("the paper's score", (), None),
)


@dataclass(frozen=True)
class Judged:
    """Readings of attacked images.

    Attributes:
        readings: Of all attempts [A].
        fooled: Whether each fooled the model [A].
        positions: Which test image each is made of [A].
    """

    readings: Readings
    fooled: Tensor
    positions: Tensor


@dataclass(frozen=True)
class AblationRow:
    """What one variant does at one false-positive rate.

    Attributes:
        title: The variant.
        false_positives: Flagged, of the clean test images.
        mean: Mean over the attacks of the share flagged of the successful, bootstrap interval.
        lost: The detector's mean less this one's, paired by image.
        detected: For each attack, flagged of the successful.
    """

    title: str
    false_positives: Proportion
    mean: Interval
    lost: Interval
    detected: dict[str, Proportion]

    def to_dict(self) -> dict[str, Any]:
        """Return it with JSON values only."""
        return asdict(self)


def ablate(
    fit: Readings,
    calibration: Readings,
    clean: Readings,
    attacked: Mapping[str, Judged],
    *,
    alpha: float,
    seed: int,
) -> list[AblationRow]:
    """Fit, calibrate and judge every variant on the same images.

    Args:
        fit: Readings of the clean images that fit.
        calibration: Readings of those that calibrate.
        clean: Readings of the n clean test images.
        attacked: Readings of the attacked ones, by attack.
        alpha: False-positive rate.
        seed: Seed of the bootstrap.
    """
    weights = image_weights(len(clean), seed=seed)
    rows: list[AblationRow] = []
    whole: Floats | None = None
    for variant in VARIANTS:
        detector = _fitted(variant, fit)
        threshold = detector.anomaly(_seen(variant, calibration)).sort().values

        def flags(
            readings: Readings,
            variant: Variant = variant,
            detector: Detector = detector,
            threshold: Tensor = threshold,
        ) -> Tensor:
            anomaly = detector.anomaly(_seen(variant, readings))
            return conformal_p_values(threshold, anomaly) <= alpha

        flagged = {name: flags(judged.readings) for name, judged in attacked.items()}
        draws = mean_of(
            [_draws(weights, attacked[name], flagged[name], len(clean)) for name in attacked]
        )
        whole = draws if whole is None else whole
        false = int(flags(clean).sum())
        rows.append(
            AblationRow(
                title=variant.title,
                false_positives=proportion(false, len(clean)),
                mean=interval(draws),
                lost=interval(whole - draws),
                detected={
                    name: proportion(
                        int((flagged[name] & judged.fooled).sum()), int(judged.fooled.sum())
                    )
                    for name, judged in attacked.items()
                },
            )
        )
    return rows


def ablation_table(rows: list[AblationRow]) -> str:
    """Return the rows as a Markdown table, in per cent."""
    lines = [
        "| | false positives | mean of the attacks | lost to the detector | worst attack |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        worst = min(row.detected, key=lambda name: row.detected[name].rate)
        lines.append(
            f"| {row.title} | {row.false_positives} | {_percent(row.mean)} | {_percent(row.lost)} "
            f"| {worst}: {row.detected[worst]} |"
        )
    return "\n".join(lines)


def _percent(value: Interval) -> str:
    if value.value is None or value.low is None or value.high is None:
        return "-"
    low, middle, high = (f"{100 * v:.1f}" for v in (value.low, value.value, value.high))
    return f"{middle} ({low} to {high})"


def _fitted(variant: Variant, fit: Readings) -> Detector:
    if variant.scores is None:
        return PaperDetector()
    return CombinedDetector.fit(_seen(variant, fit), variant.scores, variant.rank_weight)


def _seen(variant: Variant, readings: Readings) -> Readings:
    """Return the readings with those values of the candidates that the variant sees."""
    found = readings.candidates
    if variant.scores is None or found is None:
        return readings
    values = torch.zeros_like(found.values)  # a shift that never varies says nothing
    values[..., list(variant.values)] = found.values[..., list(variant.values)]
    return replace(readings, candidates=replace(found, values=values))


def _draws(weights: Floats, judged: Judged, flagged: Tensor, n: int) -> Floats:
    """Return the share flagged of the successful in each resample of the test images."""
    among, hits = np.zeros(n), np.zeros(n)
    positions = judged.positions.numpy()
    among[positions] = judged.fooled.numpy()
    hits[positions] = (flagged & judged.fooled).numpy()
    return weighted_share(weights, hits, among)
