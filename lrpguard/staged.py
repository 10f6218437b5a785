"""What clean data look like after fewer copies than all: one detector and one column a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpguard.conformal import conformal_p_values
from lrpguard.detector import Detector, load_detector
from lrpguard.errors import InputShapeError, NonFiniteScoreError, NotCalibratedError
from lrpguard.stopping import Looks


@dataclass(frozen=True, eq=False)
class Staged:
    """The clean calibration images at each look.

    Attributes:
        looks: When to look; the last look is at all copies.
        detectors: The detector of each look, fitted to the scores of so many copies.
        anomalies: Anomaly score of each calibration image at each look, float64 [n, L].
        proposals: Evidence for another label of each calibration image at each look, float64
            [n, L]; None where the detector has no candidates.

    Raises:
        InputShapeError: The numbers of looks differ.
        NonFiniteScoreError: A score is NaN or infinite.
    """

    looks: Looks
    detectors: tuple[Detector, ...]
    anomalies: Tensor
    proposals: Tensor | None

    def __post_init__(self) -> None:
        count = len(self.looks.copies)
        for table in self._tables().values():
            if table.ndim != 2 or table.shape[1] != count or len(self.detectors) != count:
                raise InputShapeError(
                    f"{len(self.detectors)} detectors and scores of shape {list(table.shape)} for "
                    f"{count} looks; expected one detector and one column for each."
                )
            if not bool(torch.isfinite(table).all()):
                raise NonFiniteScoreError("a calibration score at some look is NaN or infinite.")

    def replacement_p_values(self, evidence: Tensor) -> Tensor:
        """Return p-values of the evidence for another label, at whatever look it stopped [B].

        Compared with the largest evidence that each clean image shows at any look, which is
        at least that at its last one: so P(p <= harm) <= harm holds for a clean request over
        the whole procedure, wherever it stops.

        Args:
            evidence: Evidence of the proposals of the requests [B].

        Raises:
            NotCalibratedError: The detector has no candidates, so nothing was kept of them.
        """
        if self.proposals is None:
            raise NotCalibratedError("the detector proposes no other label.")
        return conformal_p_values(self.proposals.amax(1).sort().values, evidence)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a calibration file holds of it, the last look's detector left out."""
        state = {f"looks.{name}": table.contiguous() for name, table in self._tables().items()}
        for look, detector in enumerate(self.detectors[:-1]):
            for name, tensor in detector.state().items():
                state[f"looks.{look}.{name}"] = tensor.contiguous()
        return state

    @staticmethod
    def load(
        looks: Mapping[str, Sequence[float]], tensors: Mapping[str, Tensor], last: Detector
    ) -> Staged:
        """Return what :meth:`tensors` was made from.

        Args:
            looks: Of :meth:`lrpguard.stopping.Looks.to_dict`.
            tensors: Tensors of the file.
            last: Detector of the last look.

        Raises:
            KeyError: A tensor is missing.
            ConfigurationError: The looks are out of their range.
        """
        known = Looks.from_dict(looks)
        earlier = [
            load_detector(last.name, last.score_names, _under(f"looks.{look}.", tensors))
            for look in range(len(known.copies) - 1)
        ]
        return Staged(
            looks=known,
            detectors=(*earlier, last),
            anomalies=tensors["looks.anomalies"],
            proposals=tensors["looks.proposals"] if last.takes_views else None,
        )

    def _tables(self) -> dict[str, Tensor]:
        tables = {"anomalies": self.anomalies}
        return tables if self.proposals is None else tables | {"proposals": self.proposals}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, without the beginning."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
