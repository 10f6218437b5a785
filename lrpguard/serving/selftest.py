"""A stored image with its score, which a guard must reproduce before it serves."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lrpguard.calibration import Calibration
from lrpguard.errors import CalibrationMismatchError, SelfTestError
from lrpguard.guard import Guard

TOLERANCE = 0.01
"""Default tolerance, in interquartile ranges of the calibration's scores.

The same machine reproduces a score exactly. Another kind of processor rounds differently, by less
than a thousandth of that range, unless a noisy copy stands on the very edge between two classes.
"""

_RECORD = "lrpguard-selftest"


@dataclass(frozen=True, eq=False)
class SelfTest:
    """An image and what the guard said of it.

    Attributes:
        image: Pixels [C, H, W] in [0, 1].
        score: Anomaly score.
        label: The model's prediction.
        tolerance: Largest difference of the score that is rounding.
        fingerprint: Fingerprint of the model.
        key_id: Digest of the secret key; None for the public seed.
    """

    image: Tensor
    score: float
    label: int
    tolerance: float
    fingerprint: str
    key_id: str | None

    @staticmethod
    def make(
        guard: Guard, image: Tensor, *, key: bytes | None, tolerance: float | None = None
    ) -> SelfTest:
        """Judge an image, and keep what was said.

        Args:
            guard: A calibrated guard.
            image: Pixels [C, H, W] in [0, 1].
            key: The guard's secret key.
            tolerance: Largest difference of the score that is rounding; None takes
                ``TOLERANCE`` of the interquartile range of the calibration's scores.

        Raises:
            SelfTestError: The guard could not judge it.
        """
        score, label = _judge(guard, image)
        calibration = _calibration(guard)
        if tolerance is None:
            low, high = torch.quantile(calibration.anomalies, torch.tensor([0.25, 0.75]).double())
            tolerance = TOLERANCE * float(high - low)
        return SelfTest(image, score, label, tolerance, calibration.fingerprint, key_id(key))

    def check(self, guard: Guard, *, key: bytes | None) -> float:
        """Judge the image again.

        Returns:
            The difference of the score.

        Raises:
            CalibrationMismatchError: It was made with another model or key.
            SelfTestError: Score or label differ.
        """
        if self.fingerprint != _calibration(guard).fingerprint:
            raise CalibrationMismatchError(
                f"the self-test was made for the model {self.fingerprint[:12]}…; this one is "
                f"{_calibration(guard).fingerprint[:12]}…. Make it anew: lrpguard selftest."
            )
        if self.key_id != key_id(key):
            raise CalibrationMismatchError(
                f"the self-test was made with the key {self.key_id}; this guard has "
                f"{key_id(key)} (None: the public seed). Give the same key, or make it anew."
            )
        score, label = _judge(guard, self.image)
        difference = abs(score - self.score)
        if label != self.label or not difference <= self.tolerance:
            raise SelfTestError(
                f"the self-test image has score {score:.6g} and label {label}; expected "
                f"{self.score:.6g} within {self.tolerance:.2g} and label {self.label}. This guard "
                "does not score as the one that made the self-test: another calibration, other "
                "hardware, or a fault."
            )
        return difference

    def save(self, path: Path) -> None:
        """Write it to one ``.safetensors`` file, atomically.

        Raises:
            OSError: The file cannot be written.
        """
        record = {
            "score": self.score,
            "label": self.label,
            "tolerance": self.tolerance,
            "fingerprint": self.fingerprint,
            "key_id": self.key_id,
        }
        partial = path.with_name(path.name + ".writing")
        # Not save_file, which makes a file that only its owner can read.
        content = save({"image": self.image.contiguous().cpu()}, {_RECORD: json.dumps(record)})
        partial.write_bytes(content)
        os.replace(partial, path)

    @staticmethod
    def load(path: Path) -> SelfTest:
        """Read it from a file.

        Raises:
            SelfTestError: Missing, truncated, or another kind of file.
        """
        if not path.is_file():
            raise SelfTestError(
                f"there is no self-test {path}. Make it on the machine that calibrated, with: "
                "lrpguard selftest --config guard.toml --data IMAGE"
            )
        try:
            with safe_open(str(path), framework="pt") as file:
                image = file.get_tensor("image").clone()  # not the file's memory, which may change
                record = json.loads((file.metadata() or {})[_RECORD])
            numbers = (float(record["score"]), float(record["tolerance"]))
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError("a number is not finite")
            return SelfTest(
                image,
                numbers[0],
                int(record["label"]),
                numbers[1],
                str(record["fingerprint"]),
                record["key_id"],
            )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise SelfTestError(
                f"{path} is no whole self-test ({error}). Restore it from a copy, or make it "
                "anew: lrpguard selftest."
            ) from error


def key_id(key: bytes | None) -> str | None:
    """Return a short digest of a secret key, by which two may be told apart; None without one."""
    if key is None:
        return None
    return hashlib.blake2b(key, digest_size=8, person=b"lrpguard-key-id").hexdigest()


def _judge(guard: Guard, image: Tensor) -> tuple[float, int]:
    copies = _calibration(guard).smoothing.n  # all of them, also where the guard stops early
    verdict = guard(image[None], copies=copies)
    if verdict.status[0] == "unguarded":
        raise SelfTestError(f"the guard fails on the self-test image: {verdict.failure}")
    return float(verdict.score[0]), int(verdict.label[0])


def _calibration(guard: Guard) -> Calibration:
    if guard.calibration is None:
        raise SelfTestError("the guard has no calibration, so it has no score to test.")
    return guard.calibration
