"""The combined detector with a gradient: its exact anomaly score, and which way it rises.

The detector is asked as it is, through its public functions: its slope in each of the few scores
that it reads is measured by differences, and from the scores to the pixels autograd goes on.
Ranks and the cone, which have corners, thus need no model of their own, and a detector that
combines its scores in another way is attacked all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrpguard.attacks.adaptive.looks import Looks
from lrpguard.attacks.adaptive.standins import STAND_INS
from lrpguard.calibration import Calibration
from lrpguard.consistency import CANDIDATES, Candidates
from lrpguard.detector import SIDES, CombinedDetector
from lrpguard.errors import ConfigurationError, NotCalibratedError
from lrpguard.guard import Guard
from lrpguard.readings import Readings
from lrpguard.views import STRONG_VIEWS

DIFFERENCE = 0.1
"""Half the distance over which a slope is measured, in deviations of clean images' scores: wide
enough to see past the single values of the empirical distribution."""


@dataclass(frozen=True)
class Surrogate:
    """What an attacker who has the calibration knows of the detector.

    Attributes:
        detector: The detector.
        scale: What a clean image's scores deviate by on the suspicious side, consistency first
            [1 + S].
        typical: The median clean image's scores, turned so that large is suspicious [1 + S].
        aim: Anomaly of the median clean image: below it there is nothing more to gain.
        threshold: Largest anomaly that passes at the calibration's alpha.
    """

    detector: CombinedDetector
    scale: Tensor
    typical: Tensor
    aim: float
    threshold: float

    @staticmethod
    def of(guard: Guard) -> Surrogate:
        """Return what there is to know of a guard; its key is not looked at.

        Raises:
            NotCalibratedError: The guard has no calibration.
            ConfigurationError: The detector is not the combined one.
        """
        if guard.calibration is None:
            raise NotCalibratedError(
                "the guard has no calibration, so there is nothing to pass. Call "
                "guard.calibrate(...)."
            )
        return Surrogate.at(guard.calibration)

    @staticmethod
    def at(calibration: Calibration) -> Surrogate:
        """Return what there is to know of a calibration, of all copies or of one look.

        Raises:
            ConfigurationError: The detector is not the combined one.
        """
        detector = calibration.detector
        if not isinstance(detector, CombinedDetector):
            raise ConfigurationError(
                f"the guard's detector is {detector.name!r}; this attack knows the parts of "
                "'combined'."
            )
        known = detector.reference
        middle, high = known[len(known) // 2], known[int(0.95 * (len(known) - 1))]
        return Surrogate(
            detector=detector,
            scale=((high - middle) / 1.645).clamp(min=1e-3),
            typical=middle,
            aim=float(calibration.anomalies.median()),
            threshold=calibration.threshold,
        )

    @property
    def ignored(self) -> tuple[str, ...]:
        """Scores without a stand-in, which the attack takes for a clean image's."""
        return tuple(name for name in self.detector.score_names if name not in STAND_INS)

    def anomaly(self, images: Tensor, looks: Looks, label: Tensor) -> Tensor:
        """Return the anomaly score of each request with a gradient, float64 on the CPU [B].

        The value is the detector's own, for these copies and the class ``label`` in place of the
        predicted one.

        Args:
            images: The requests [B, C, H, W], with a gradient.
            looks: What is looked at of them.
            label: The class that they are to be taken for [B].
        """
        found = candidates_for(looks, label)
        columns = [self._column(i, images, looks, label) for i in range(self.typical.numel() - 1)]
        scores = torch.stack(columns, dim=1)
        anomaly, (steepest, rises, slopes) = self._slopes(found, scores.detach())
        through = (steepest * (found.values - found.values.detach())).sum((1, 2))
        anomaly = anomaly + rises * through
        return anomaly + (slopes * (scores - scores.detach())).sum(1)

    def excess(self, anomaly: Tensor) -> Tensor:
        """Return by how much the anomaly's root exceeds that of a median clean image, >= 0 [B].

        The anomaly is a squared norm; its root is in deviations of clean images.
        """
        floor = max(self.aim, 1e-6)
        return anomaly.clamp(min=floor).sqrt() - math.sqrt(floor)

    def _column(self, i: int, images: Tensor, looks: Looks, label: Tensor) -> Tensor:
        name = self.detector.score_names[i]
        if name in STAND_INS:
            return STAND_INS[name](images, looks, label).cpu()
        return (SIDES[name] * self.typical[1 + i]).expand(len(label)).double()

    def _slopes(
        self, found: Candidates, scores: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the anomaly [B]; and, with a slope in each direction, how it rises.

        The slopes are that of the largest consistency in the candidates' values [B, C, 1 + J],
        that of the anomaly in the consistency [B], and in the other scores [B, S].
        """
        values = found.values.detach().requires_grad_()
        most = self.detector.consistency.suspicion(replace(found, values=values))
        (steepest,) = torch.autograd.grad(most.sum(), values)
        along = steepest / steepest.square().sum((1, 2), keepdim=True).clamp(min=1e-12)
        still = values.detach()
        asked = [(still, scores)]
        for sign in (1.0, -1.0):
            step = sign * DIFFERENCE * self.scale
            asked.append((still + step[0] * along, scores))
            for i in range(scores.shape[1]):
                moved = scores.clone()
                moved[:, i] += step[1 + i]
                asked.append((still, moved))
        answers = self._ask(found, asked)
        up, down = answers[1:].chunk(2)
        slopes = (up - down) / (2 * DIFFERENCE * self.scale[:, None])
        return answers[0], (steepest, slopes[0], slopes[1:].T)

    def _ask(self, found: Candidates, asked: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the detector's anomaly for several candidates' values and scores [A, B]."""
        times = len(asked)
        every = Candidates(
            label=found.label.repeat(times),
            classes=found.classes.repeat(times, 1),
            values=torch.cat([values for values, _ in asked]),
            support=found.support.repeat(times, 1, 1),
            kept=found.kept.repeat(times, 1),
        )
        scores = torch.cat([scores for _, scores in asked])
        readings = Readings(self.detector.score_names, scores, every)
        answers: Tensor = self.detector.anomaly(readings).unflatten(0, (times, -1))
        return answers


def candidates_for(looks: Looks, label: Tensor) -> Candidates:
    """Return the candidates against a class, with a gradient, as the guard would read them.

    The strong views are not run: they have a say only in which of more than ten classes are the
    candidates.
    """
    label = label.cpu()
    own, noisy = looks.own.cpu(), looks.noisy.cpu().mean(0, keepdim=True)
    moved = torch.cat([noisy, looks.views.cpu()])
    index = label.view(1, -1, 1).expand(len(moved), -1, 1)
    others = moved.detach().scatter(2, index, -torch.inf)
    count = min(CANDIDATES, own.shape[1] - 1)
    classes = others.softmax(2).mean(0).topk(count, dim=1).indices
    gap = own - own.gather(1, label[:, None])
    shifts = [(view - view.gather(1, label[:, None])) - gap for view in moved]
    values = torch.stack([part.gather(1, classes) for part in (gap, *shifts)], dim=2)
    return Candidates(
        label=label,
        classes=classes,
        values=values,
        support=values.new_zeros(*classes.shape, len(STRONG_VIEWS)),  # the scores read neither
        kept=values.new_zeros(len(label), len(STRONG_VIEWS)),
    )
