"""``lrpguard serve`` and ``lrpguard selftest``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from lrpguard.cli.console import OK, Console
from lrpguard.cli.options import PACKAGED_MODEL, PACKAGED_SIZE
from lrpguard.errors import ConfigurationError
from lrpguard.guard import Guard
from lrpguard.loading import load_data
from lrpguard.secret import secret_key
from lrpguard.serving.config import ServiceConfig, defaults_toml, selftest_beside
from lrpguard.serving.configure import load_config
from lrpguard.serving.launch import require_serve
from lrpguard.serving.launch import serve as serve_config
from lrpguard.serving.opening import open_guard
from lrpguard.serving.selftest import SelfTest
from lrpguard.smoothing import Smoothing

DEMO_ALPHA = 0.05
DEMO_SMOOTHING = Smoothing(n=50, sigma=0.1)


def print_defaults(console: Console) -> int:
    """Print all settings with their defaults.

    Returns:
        The exit code.
    """
    console.record({"toml": defaults_toml()})
    console.line(defaults_toml().rstrip())
    return OK


def run(
    file: Path | None,
    assignments: Sequence[str],
    *,
    demo: bool,
    environment: Mapping[str, str],
    console: Console,
) -> int:
    """Serve until a signal ends it.

    Args:
        file: Settings.
        assignments: Settings in place of the file's.
        demo: Whether to serve the packaged model, with a calibration made now.
        environment: Variables.
        console: Where the demo tells its address.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: The settings are wrong, or the extra is not installed.
    """
    require_serve()
    if not demo:
        serve_config(load_config(file, environment=environment, assignments=assignments))
        return OK
    if file is not None:
        raise ConfigurationError("--demo brings its own settings; leave --config out.")
    with tempfile.TemporaryDirectory(prefix="lrpguard-demo-") as folder:
        calibration = Path(folder, "digits.safetensors")
        console.note("calibrating on 600 digits; this takes some seconds")
        calibrate_demo(calibration, key=secret_key(None, environment))
        named = demo_assignments(calibration)
        config = load_config(None, environment=environment, assignments=[*named, *assignments])
        serve_config(config, bound=partial(_tell_address, console))
    return OK


def _tell_address(console: Console, url: str) -> None:
    console.record({"url": url})
    console.say(f"open {url}/ in a browser, or: curl -F file=@digit.png {url}/predict")


def calibrate_demo(file: Path, *, key: bytes | None, images: int | None = None) -> None:
    """Calibrate the packaged model, and store a self-test beside.

    Args:
        file: Calibration file to write.
        key: Secret noise key.
        images: Calibration images to use; None takes all.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    from lrpguard.demo.digits import load_digit_splits, load_digits_model

    clean = load_digit_splits().calibration.images[:images]
    guard = Guard(load_digits_model(), smoothing=DEMO_SMOOTHING, key=key)
    guard.calibrate(clean.split(100), alpha=DEMO_ALPHA).save(file)
    SelfTest.make(guard, clean[0], key=key).save(selftest_beside(file))


def demo_assignments(calibration: Path) -> list[str]:
    """Return the settings under which the packaged model is served."""
    return [
        f"model.spec={PACKAGED_MODEL}",
        f"model.image_size={PACKAGED_SIZE}",
        "model.device=cpu",
        "model.name=digits",
        "server.threads=1",
        f"guard.calibration={calibration}",
        "answer.expose_scores=true",
        "telemetry.log_format=text",
    ]


def make_selftest(
    file: Path | None,
    assignments: Sequence[str],
    *,
    data: str,
    tolerance: float | None,
    environment: Mapping[str, str],
    console: Console,
) -> int:
    """Judge an image, and store its score.

    Args:
        file: Settings.
        assignments: Settings in place of the file's.
        data: Images, of which the first that can be read is taken.
        tolerance: Largest difference of the score that is rounding.
        environment: Variables.
        console: Where it is told.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: There is no such image, or no guard.
    """
    config = load_config(file, environment=environment, assignments=assignments)
    opened = open_guard(config, environment)
    source = load_data(data, preprocessing=opened.preprocessing)
    item = next((item for item in source if item.image is not None), None)
    if item is None or item.image is None:
        raise ConfigurationError(f"no image of --data {data} can be read. Name another.")
    test = SelfTest.make(opened.guard, item.image, key=opened.key, tolerance=tolerance)
    out = _selftest_file(config)
    test.save(out)
    console.record(
        {
            "file": str(out),
            "image": item.name,
            "score": test.score,
            "label": test.label,
            "tolerance": test.tolerance,
        }
    )
    console.line(f"image      {item.name}, label {test.label}")
    console.line(f"score      {test.score:.6g}, to be reproduced within {test.tolerance:.2g}")
    console.line(f"wrote      {out}")
    return OK


def _selftest_file(config: ServiceConfig) -> Path:
    if config.selftest_file is None:
        raise ConfigurationError("guard.calibration is not set.")
    return config.selftest_file
