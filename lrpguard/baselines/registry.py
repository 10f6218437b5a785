"""Every baseline, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lrpguard.baselines.base import Baseline
from lrpguard.baselines.outputs import Energy, MaxLogit, MaxSoftmax
from lrpguard.errors import ConfigurationError

BASELINES: Mapping[str, Callable[..., Baseline]] = MappingProxyType(
    {cls.name: cls for cls in (MaxSoftmax, MaxLogit, Energy)}
)
"""From a name to what makes the unfitted baseline of its options."""


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
