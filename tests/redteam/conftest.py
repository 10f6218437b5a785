"""The toy of the adaptive attacks, here for the red team."""

from __future__ import annotations

from tests.attacks.adaptive.conftest import toy

__all__ = ["toy"]
