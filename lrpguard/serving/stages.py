"""How long each stage of a request took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """One stage of a request.

    Attributes:
        name: ``decode``, ``queue``, ``guard``, ``bare`` or ``audit``.
        start: Seconds from the arrival of the request.
        seconds: Duration.
    """

    name: str
    start: float
    seconds: float


@dataclass
class Stages:
    """The clock of a request, which no change of the wall clock moves.

    Attributes:
        arrived: When the request came, by ``time.perf_counter``.
        wall: The same by the wall clock, in seconds since 1970; for people only.
        done: The stages so far.
    """

    arrived: float = field(default_factory=lambda: time.perf_counter())
    wall: float = field(default_factory=lambda: time.time())
    done: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, begun, time.perf_counter())

    def add(self, name: str, begun: float, ended: float) -> None:
        """Enter a stage by its times, of ``time.perf_counter``."""
        self.done.append(Stage(name, begun - self.arrived, ended - begun))

    @property
    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.arrived

    def milliseconds(self) -> dict[str, float]:
        """Return the duration of each stage, in milliseconds."""
        found: dict[str, float] = {}
        for stage in self.done:
            found[stage.name] = round(found.get(stage.name, 0.0) + 1e3 * stage.seconds, 3)
        return found
