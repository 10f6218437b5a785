"""Every baseline, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lrpguard.baselines.art import ArtBinaryActivation, ArtBinaryInput, ArtSubsetScan
from lrpguard.baselines.base import Baseline
from lrpguard.baselines.copies import Disagreement
from lrpguard.baselines.gradients import GradNorm, InputGradient, SmoothGradVariance
from lrpguard.baselines.lid import Lid, LidOneClass
from lrpguard.baselines.odds import Odds
from lrpguard.baselines.outputs import Energy, MaxLogit, MaxSoftmax
from lrpguard.baselines.penultimate import Mahalanobis, NearestNeighbours
from lrpguard.baselines.squeezing import FeatureSqueezing, FeatureSqueezingLarge
from lrpguard.baselines.supervised import Supervised, SupervisedOnBounded, SupervisedOnMinimal
from lrpguard.baselines.two_sided import TwoSided
from lrpguard.errors import ConfigurationError

_ONE_SIDED = (MaxSoftmax, MaxLogit, Energy, GradNorm, InputGradient, SmoothGradVariance)

_OTHERS = (
    Disagreement,
    Odds,
    FeatureSqueezing,
    FeatureSqueezingLarge,
    Mahalanobis,
    NearestNeighbours,
    LidOneClass,
    Lid,
    ArtSubsetScan,
    ArtBinaryInput,
    ArtBinaryActivation,
    Supervised,
    SupervisedOnBounded,
    SupervisedOnMinimal,
)


def _two_sided(inner: Callable[..., Baseline]) -> Callable[..., Baseline]:
    return lambda **options: TwoSided(inner=inner(**options))


BASELINES: Mapping[str, Callable[..., Baseline]] = MappingProxyType(
    {cls.name: cls for cls in (*_ONE_SIDED, *_OTHERS)}
    | {f"{cls.name}-two-sided": _two_sided(cls) for cls in _ONE_SIDED}
)
"""From a name to what makes the unfitted baseline of its options."""


def attack_free() -> tuple[str, ...]:
    """Return the names of the baselines that clean images alone fit, in the registry's order.

    Raises:
        MissingDependencyError: One of them needs a package that is not installed.
    """
    return tuple(name for name in BASELINES if baseline(name).attack_free)


def baseline(name: str, **options: Any) -> Baseline:
    """Return the named baseline, not yet fitted.

    Args:
        name: One of ``BASELINES``.
        options: Fields of its class, e.g. ``temperature=2`` for ``"energy"``.

    Raises:
        ConfigurationError: There is no such baseline, or it does not take the options.
        MissingDependencyError: It needs a package that is not installed.
    """
    if name not in BASELINES:
        raise ConfigurationError(f"no baseline is named {name!r}; there are {sorted(BASELINES)}.")
    try:
        return BASELINES[name](**options)
    except TypeError as error:
        raise ConfigurationError(
            f"the baseline {name!r} does not take these options: {error}."
        ) from error
