"""What detectors are fitted on and judge: a request's scores, and its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpguard.consistency import Candidates, candidates
from lrpguard.evidence import Evidence
from lrpguard.scores import score_matrix
from lrpguard.views import STRONG_VIEWS, VIEWS

VALUES = 3 + len(VIEWS)
"""Values of one candidate: the gap, and the shifts by noise, each mild view, and covering."""

SUPPORTS = len(STRONG_VIEWS)
"""Values of support of one candidate: one a strong view."""


@dataclass(frozen=True)
class Readings:
    """Everything that a detector reads of a batch, small enough to keep for each image.

    Attributes:
        names: Names of the scores.
        scores: The scores, float64 on the CPU [B, S].
        candidates: Which other classes noise and views speak for; None where the views were
            not run.
    """

    names: tuple[str, ...]
    scores: Tensor
    candidates: Candidates | None

    def __len__(self) -> int:
        """Return the number of requests B."""
        return len(self.scores)

    def column(self, name: str) -> Tensor:
        """Return one score of each request [B]."""
        return self.scores[:, self.names.index(name)]

    def select(self, rows: Tensor | slice) -> Readings:
        """Return the readings of some of the requests."""
        some = None if self.candidates is None else self.candidates.select(rows)
        return Readings(self.names, self.scores[rows], some)

    def to_rows(self) -> list[list[float]]:
        """Return one flat list of numbers a request: scores, label, then the candidates."""
        parts = [self.scores]
        if self.candidates is not None:
            found = self.candidates
            parts += [found.label[:, None], found.classes, found.kept]
            parts += [found.support.flatten(1), found.values.flatten(1)]
        return torch.cat([part.double() for part in parts], dim=1).tolist()

    @staticmethod
    def from_rows(names: tuple[str, ...], rows: Sequence[Sequence[float]]) -> Readings:
        """Return the readings whose :meth:`to_rows` are given."""
        whole = torch.tensor(rows, dtype=torch.float64)
        scores, rest = whole[:, : len(names)], whole[:, len(names) :]
        if rest.shape[1] == 0:
            return Readings(names, scores, None)
        count = (rest.shape[1] - 1 - SUPPORTS) // (1 + SUPPORTS + VALUES)
        sizes = [1, count, SUPPORTS, count * SUPPORTS, count * VALUES]
        label, classes, kept, support, values = rest.split(sizes, dim=1)
        found = Candidates(
            label=label[:, 0].long(),
            classes=classes.long(),
            values=values.reshape(-1, count, VALUES),
            support=support.reshape(-1, count, SUPPORTS),
            kept=kept,
        )
        return Readings(names, scores, found)


def read(evidence: Evidence, names: Sequence[str]) -> Readings:
    """Return the named scores and, where the views were run, the candidates.

    Request by request, since a reduction over a larger batch may round differently.

    Raises:
        ConfigurationError: A name is not in the registry.
    """
    scores = score_matrix(evidence, names)
    if evidence.view_logits is None:
        return Readings(tuple(names), scores, None)
    return Readings(tuple(names), scores, candidates(evidence))
