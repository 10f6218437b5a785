"""The card of a measurement of explanations: every figure with its interval."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lrpguard.evaluation.bootstrap import DRAWS, interval
from lrpguard.evaluation.explanations.measure import PLAIN, Plan, Row
from lrpguard.version import __version__

SCHEMA = 1
"""Version of the card's form."""

KIND = "explanations"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One figure of merit.

    Attributes:
        title: What tables call it.
        centre: How the values of images are summed up, along the last axis.
        word: The name of that.
        sign: 1 where larger is better, -1 where smaller is.
        needs_probe: Whether it is measured on the probed images alone.
    """

    title: str
    centre: Callable[[Floats], Floats]
    word: str
    sign: int
    needs_probe: bool = False


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(-1))


def _median(values: Floats) -> Floats:
    return np.asarray(np.median(values, -1))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "gain": Metric("relevance gain", _mean, "mean", 1),
        "road": Metric("gain, imputed", _mean, "mean", 1),
        "sensitivity": Metric("max-sensitivity", _median, "median", -1, needs_probe=True),
        "gap": Metric("conservation gap", _median, "median", -1),
        "randomisation": Metric("like a random model's", _mean, "mean", -1, needs_probe=True),
        "gini": Metric("sparseness", _mean, "mean", 1),
    }
)
"""Every figure, in the order of the tables. The gap and the sensitivity have long tails."""


def make_card(
    model: str,
    data: str,
    rows: Sequence[Row],
    *,
    plan: Plan,
    indices: Sequence[int],
    command: str,
    seconds: float,
) -> dict[str, Any]:
    """Sum up the rows of a run.

    Args:
        model: Name of the model.
        data: Name of the images.
        rows: One an image, in the order of the draw.
        plan: What was measured.
        indices: Which images of the source they are.
        command: Command that makes this card again.
        seconds: Time the measurement took.

    Returns:
        JSON-ready record. A figure is ``{"n", "value", "low", "high", "difference", "verdict"}``:
        the interval is a 95 % percentile bootstrap over images, the difference that to the plain
        map of the same images, and the verdict says whether its interval leaves out 0.
    """
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "model": model,
        "data": data,
        "command": command,
        "plan": asdict(plan),
        "indices": list(indices),
        "rules": {rule: _rule(rows, rule, plan) for rule in plan.rules},
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "versions": {
            "lrpguard": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _rule(rows: Sequence[Row], rule: str, plan: Plan) -> dict[str, Any]:
    return {
        configuration: {
            name: _figure(rows, rule, configuration, name, plan.seed)
            for name in METRICS
            if _values(rows, rule, PLAIN, name)
        }
        for configuration in plan.configurations
    }


def _figure(
    rows: Sequence[Row], rule: str, configuration: str, name: str, seed: int
) -> dict[str, Any]:
    """Return one figure with its intervals, over the images that have it in both maps."""
    metric = METRICS[name]
    plain, here = (_values(rows, rule, key, name) for key in (PLAIN, configuration))
    shared = sorted(plain.keys() & here.keys())
    before, after = (np.array([found[i] for i in shared]) for found in (plain, here))
    draws = _resampled(after, metric.centre, seed)
    difference = interval(draws - _resampled(before, metric.centre, seed))
    record = {"n": len(shared), **asdict(interval(draws))}
    if configuration == PLAIN:
        return record
    return record | {
        "difference": asdict(difference),
        "verdict": _verdict(difference.low, difference.high, metric.sign),
    }


def _values(rows: Sequence[Row], rule: str, configuration: str, name: str) -> dict[int, float]:
    found = ((i, row[rule][configuration].get(name)) for i, row in enumerate(rows))
    return {i: value for i, value in found if value is not None}


def _resampled(values: Floats, centre: Callable[[Floats], Floats], seed: int) -> Floats:
    """Return the centre of the values themselves, and then of each resample [1 + DRAWS]."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(values), size=(DRAWS, len(values)))
    return np.concatenate([centre(values)[None], centre(values[drawn])])


def _verdict(low: float | None, high: float | None, sign: int) -> str:
    if low is None or high is None or low <= 0 <= high:
        return "same"
    return "better" if sign * low > 0 else "worse"
