"""Weights that rules have modified, made once and kept while the model's own stay the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class WeightCache:
    """What was made from a model's weights, by the weights it was made from.

    It holds no weight of the model, and notices one that was written to in place or exchanged.
    What it cannot notice is a write through ``parameter.data``, which leaves no trace in torch;
    so it should live as long as one explanation, or as a guard, whose calibration holds for the
    weights it was made with. Threads may share it: at worst two make the same thing.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[tuple[_Stamp, ...], Any]] = {}

    def get(self, key: Hashable, sources: tuple[Tensor | None, ...], make: Callable[[], T]) -> T:
        """Return what ``make`` makes of the sources, from the cache where they are unchanged.

        Args:
            key: What is made, e.g. the rule and the part of the weight.
            sources: The tensors it is made from.
            make: Makes it.
        """
        given = [t for t in sources if t is not None]
        if any(t.is_inference() for t in given):  # such a tensor counts no versions
            return make()
        place = (key, tuple(id(t) for t in sources))
        kept = self._made.get(place)
        if kept is not None and all(s.is_of(t) for s, t in zip(kept[0], given, strict=True)):
            found: T = kept[1]
            return found
        self._drop_orphans()
        stamps = tuple(_Stamp(t) for t in given)
        made = make()
        self._made[place] = stamps, made
        return made

    def _drop_orphans(self) -> None:
        """Forget what was made from tensors that are gone."""
        for place, (stamps, _) in self._made.copy().items():
            if not all(s.is_alive for s in stamps):
                self._made.pop(place, None)


class _Stamp:
    """A tensor at one moment, held weakly."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._state = (tensor._version, tensor.data_ptr())

    @property
    def is_alive(self) -> bool:
        return self._tensor() is not None

    def is_of(self, tensor: Tensor) -> bool:
        return self._tensor() is tensor and self._state == (tensor._version, tensor.data_ptr())
