"""Early stopping: looks at a few copies first, under one false-positive rate for all looks.

Most clean requests look harmless after five copies, and strong attacks stand out as early. So a
request is looked at after 5, 10, 20 and 50 copies, and each look flags it, clears it, or asks
for more. The looks share one false-positive rate: however they depend on each other,
``P(a clean request is flagged at any look) <= alpha`` (docs/method.md, section 8).

The time that an answer takes then tells how it was found. An operator who minds that leaves early
stopping off.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lrpguard.conformal import check_size, flagged_rank
from lrpguard.errors import ConfigurationError, InputShapeError, NonFiniteScoreError

_APART = 1e-9
"""Keeps weighted ranks of different looks apart."""


def check_rising(copies: Sequence[int]) -> None:
    """Refuse numbers of copies to look at that do not rise from at least 2.

    Raises:
        ConfigurationError: They do not.
    """
    if not copies or copies[0] < 2 or any(a >= b for a, b in itertools.pairwise(copies)):
        raise ConfigurationError(
            f"looks are at {list(copies)} copies; they must rise, from 2 or more."
        )


@dataclass(frozen=True)
class Looks:
    """When to look, when to clear, and how the looks share the false-positive rate.

    They must not be chosen on the images that calibrate.

    Args:
        copies: Noisy copies at each look [L], ascending.
        clear: At each look but the last: clear a request whose p-value there is above this
            [L - 1], in (0, 1]. For clean requests it is uniform, so at most the share
            ``clear[k]`` of them goes on: see :attr:`most_copies`.
        weight: Share of the false-positive rate that each look may spend, relative to the
            others [L], > 0. A look of few copies deserves little: its scores are noisy.

    Raises:
        ConfigurationError: The lengths do not fit each other, or a value is out of its range.
    """

    copies: tuple[int, ...] = (5, 10, 20, 50)
    clear: tuple[float, ...] = (0.4, 0.2, 0.08)
    weight: tuple[float, ...] = (0.1, 0.2, 0.4, 1.0)

    def __post_init__(self) -> None:
        if not len(self.copies) == len(self.clear) + 1 == len(self.weight):
            raise ConfigurationError(
                f"{len(self.copies)} looks, {len(self.clear)} clear levels and {len(self.weight)} "
                "weights; give a weight for each look and a clear level for each but the last."
            )
        check_rising(self.copies)
        if not all(0 < c <= 1 for c in self.clear):
            raise ConfigurationError(f"clear levels are {list(self.clear)}; each lies in (0, 1].")
        if not all(0 < w < float("inf") for w in self.weight):
            raise ConfigurationError(f"weights are {list(self.weight)}; each must be above 0.")

    @staticmethod
    def of(n: int) -> Looks:
        """Return looks at 10, 20, 40 and 100 % of n copies, with the default levels and weights.

        For small n some coincide, or would be of one copy, and are left out.

        Raises:
            ConfigurationError: n is below 2.
        """
        usual = Looks()
        at = [max(2, round(n * m / usual.copies[-1])) for m in usual.copies[:-1]] + [n]
        kept = [k for k, m in enumerate(at) if m not in at[k + 1 :] and m <= n]
        return Looks(
            tuple(at[k] for k in kept),
            tuple(usual.clear[k] for k in kept[:-1]),
            tuple(usual.weight[k] for k in kept),
        )

    @staticmethod
    def from_dict(record: Mapping[str, Sequence[float]]) -> Looks:
        """Return the looks whose :meth:`to_dict` is given.

        Raises:
            KeyError: A part is missing.
            ConfigurationError: A value is out of its range.
        """
        return Looks(
            tuple(int(m) for m in record["copies"]),
            tuple(float(c) for c in record["clear"]),
            tuple(float(w) for w in record["weight"]),
        )

    def to_dict(self) -> dict[str, list[float]]:
        """Return what they are, in JSON's terms."""
        return {name: list(values) for name, values in asdict(self).items()}

    @property
    def most_copies(self) -> float:
        """Bound of the mean copies of a clean request, up to 1 / (n + 1) a look.

        Look k + 1 is reached only where the p-value at look k is at most ``clear[k]``.
        """
        steps = [b - a for a, b in itertools.pairwise(self.copies)]
        return self.copies[0] + sum(s * c for s, c in zip(steps, self.clear, strict=True))

    def calibrate(self, anomalies: Tensor, alpha: float) -> CalibratedLooks:
        """Choose the thresholds of all looks on clean images.

        Args:
            anomalies: Anomaly score of each clean calibration image at each look [n, L], by a
                detector fitted on other images. Every image is scored at every look.
            alpha: False-positive rate of the whole procedure, in (0, 1).

        Raises:
            InputShapeError: ``anomalies`` is not [n, L].
            NonFiniteScoreError: A score is NaN or infinite.
            ConfigurationError: ``alpha`` lies outside (0, 1).
            CalibrationSizeError: n is too small for alpha.
        """
        if anomalies.ndim != 2 or anomalies.shape[1] != len(self.copies):
            raise InputShapeError(
                f"anomalies have shape {list(anomalies.shape)}; give a score for each image at "
                f"each of the {len(self.copies)} looks [n, {len(self.copies)}]."
            )
        if not bool(torch.isfinite(anomalies).all()):
            raise NonFiniteScoreError("a calibration score at some look is NaN or infinite.")
        check_size(len(anomalies), alpha)
        anomalies = anomalies.double()
        ordered = anomalies.sort(0).values
        # Among themselves: a request that joins raises a rank by one at most, and never lowers it.
        columns = zip(ordered.unbind(1), anomalies.unbind(1), strict=True)
        ranks = torch.stack([_count_at_least(*column) for column in columns], 1)
        levels = self._levels(ranks.double())
        return CalibratedLooks(self, ordered, levels.sort().values, alpha)

    def _levels(self, ranks: Tensor) -> Tensor:
        """Return the smallest weighted rank that each request of [n, L] reaches, [n]."""
        n = len(ranks)
        clear = torch.tensor([*self.clear, 1.0], dtype=ranks.dtype) * (n + 1)
        columns = [self._weighted(column, look) for look, column in enumerate(ranks.unbind(1))]
        weighted = torch.stack(columns, 1)
        going_on = (ranks <= clear).to(ranks.dtype).cumprod(1).bool()
        reached = torch.cat([torch.ones(n, 1, dtype=torch.bool), going_on[:, :-1]], 1)
        return weighted.masked_fill(~reached, float("inf")).min(1).values

    def _weighted(self, ranks: Tensor, look: int) -> Tensor:
        """Return ranks over the look's weight; two looks never give the same value.

        So a tie of a request with a calibration image is one of ranks at the same look. There
        the request stands above the image, and the tie need not count against it.
        """
        return ranks / self.weight[look] + look * _APART


@dataclass(frozen=True)
class Decision:
    """What one look says of each request.

    Attributes:
        flagged: Flag now, bool [B].
        cleared: Clear now, bool [B].
        p_value: Upper bound of the procedure's p-value, float64 [B]: exact once cleared.
        level: Smallest weighted rank so far, to hand on to the next look, float64 [B].
    """

    flagged: Tensor
    cleared: Tensor
    p_value: Tensor
    level: Tensor

    @property
    def goes_on(self) -> Tensor:
        """Requests that need more copies, bool [B]."""
        return ~(self.flagged | self.cleared)


@dataclass(frozen=True, eq=False)
class CalibratedLooks:
    """Looks with their thresholds; made by :meth:`Looks.calibrate`.

    Attributes:
        looks: When to look.
        anomalies: Clean anomaly scores at each look, each column ascending, float64 [n, L].
        levels: Smallest weighted rank that each clean image reaches, ascending, float64 [n].
        alpha: False-positive rate of the whole procedure.
    """

    looks: Looks
    anomalies: Tensor
    levels: Tensor
    alpha: float

    @property
    def n(self) -> int:
        """Number of calibration images."""
        return len(self.levels)

    @property
    def flag_level(self) -> float:
        """A request is flagged where its weighted rank is at most this."""
        return float(self.levels[flagged_rank(self.n, self.alpha) - 1])

    def decide(self, look: int, anomalies: Tensor, level: Tensor | None = None) -> Decision:
        """Decide at one look about requests that no earlier look has decided.

        Args:
            look: Index of the look, from 0.
            anomalies: Anomaly score of each request at this look [B].
            level: :attr:`Decision.level` of the look before [B], None at the first.
        """
        ordered = self.anomalies[:, look]
        ranks = 1 + _count_at_least(ordered, anomalies.to(ordered)).double()
        weighted = self.looks._weighted(ranks, look)
        level = weighted if level is None else torch.minimum(level, weighted)
        flagged = level <= self.flag_level
        last = look == len(self.looks.copies) - 1
        above = True if last else ranks > self.looks.clear[look] * (self.n + 1)
        p_value = (1 + torch.searchsorted(self.levels, level)).double() / (self.n + 1)
        return Decision(flagged, ~flagged & above, p_value, level)


@dataclass(frozen=True)
class Outcome:
    """What became of requests that were scored at every look.

    Attributes:
        flagged: Whether some look flagged it, bool [B].
        copies: Copies it took to decide, int64 [B].
        p_value: p-value when it was decided, float64 [B].
    """

    flagged: Tensor
    copies: Tensor
    p_value: Tensor


def replay(rule: CalibratedLooks, anomalies: Tensor) -> Outcome:
    """Decide look after look about requests whose scores at every look are known.

    Args:
        rule: The calibrated looks.
        anomalies: Anomaly score of each request at each look [B, L].
    """
    count = len(anomalies)
    flagged = torch.zeros(count, dtype=torch.bool)
    copies = torch.zeros(count, dtype=torch.int64)
    p_value, level = torch.ones(count, dtype=torch.float64), torch.empty(count, dtype=torch.float64)
    active = torch.arange(count)
    for look, spent in enumerate(rule.looks.copies):
        decision = rule.decide(look, anomalies[active, look], level[active] if look else None)
        level[active], p_value[active] = decision.level, decision.p_value
        flagged[active], copies[active] = decision.flagged, spent
        active = active[decision.goes_on]
    return Outcome(flagged, copies, p_value)


def _count_at_least(ordered: Tensor, values: Tensor) -> Tensor:
    """Return how many of the ascending values are at least each of ``values``."""
    return len(ordered) - torch.searchsorted(ordered.contiguous(), values.contiguous())
