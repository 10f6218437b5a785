"""From the settings to a guard that is fit to serve."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lrpguard.calibration import Calibration
from lrpguard.errors import ConfigurationError
from lrpguard.guard import Guard
from lrpguard.loading import Preprocessing, find_device, load_model
from lrpguard.secret import secret_key
from lrpguard.serving.config import ServiceConfig
from lrpguard.serving.selftest import SelfTest


@dataclass(frozen=True, eq=False)
class Opened:
    """A guard with all that serving it needs.

    Attributes:
        guard: The guard.
        calibration: Its calibration.
        calibration_id: Digest of the calibration file, 16 hexadecimal digits.
        preprocessing: What is done to an image file.
        class_names: Name of each class, where known.
        key: Secret noise key, None for the public seed.
    """

    guard: Guard
    calibration: Calibration
    calibration_id: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    key: bytes | None

    def class_name(self, label: int | None) -> str | None:
        """Return the name of a class, None where it is not known."""
        names = self.class_names
        return names[label] if names and label is not None and label < len(names) else None


def open_guard(config: ServiceConfig, environment: Mapping[str, str]) -> Opened:
    """Load the model and its calibration, and put the guard together.

    Raises:
        ConfigurationError: The settings name no model or no calibration.
        CalibrationError: The calibration is not one of this model.
        LrpGuardError: The model cannot be loaded or guarded.
    """
    section = config.model
    if section.spec is None or config.guard.calibration is None:
        what = "model.spec" if section.spec is None else "guard.calibration"
        raise ConfigurationError(
            f"{what} is not set. Name it in the settings file, or try: lrpguard serve --demo"
        )
    calibration = Calibration.load(config.guard.calibration)
    size = section.image_size
    if size is not None and len(size) not in (1, 2):
        raise ConfigurationError(f"model.image_size is {size}; expected height and width.")
    loaded = load_model(
        section.spec,
        weights=section.weights,
        mean=section.mean,
        std=section.std,
        image_size=None if size is None else (size[0], size[-1]),
        device=find_device(section.device, option="model.device"),
    )
    key = secret_key(config.guard.key_file, environment)
    guard = Guard(
        loaded.model,
        calibration=calibration,
        restoration=None if config.policy.on_flag == "reject" else "auto",
        on_failure=config.policy.on_failure,
        key=key,
        stopping=config.guard.stopping,
    )
    channels, height, width = calibration.image_shape
    preprocessing = loaded.preprocessing
    if preprocessing.image_size is None:
        preprocessing = replace(preprocessing, channels=channels, image_size=(height, width))
    return Opened(
        guard,
        calibration,
        file_id(config.guard.calibration),
        preprocessing,
        loaded.class_names,
        key,
    )


def check_selftest(config: ServiceConfig, opened: Opened) -> float:
    """Reproduce the score of the stored self-test image; return the difference.

    Raises:
        SelfTestError: The score differs, or there is no self-test.
        CalibrationMismatchError: The self-test is another guard's.
    """
    file = config.selftest_file
    if file is None:
        raise ConfigurationError("guard.selftest is not set. Make one: lrpguard selftest")
    return SelfTest.load(file).check(opened.guard, key=opened.key)


def file_id(path: Path) -> str:
    """Return the digest of a file's content, 16 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def set_threads(config: ServiceConfig, cores: int) -> None:
    """Share the cores out among the workers."""
    torch.set_num_threads(config.server.threads or max(1, cores // config.server.workers))
