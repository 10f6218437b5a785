"""``lrpguard doctor``: does everything that a guard needs work here?"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from lrpguard.calibration import Calibration
from lrpguard.cli.audit import ConservationAudit, Residual
from lrpguard.cli.console import FAILED, OK, Console, describe
from lrpguard.cli.opening import open_model, smoothing
from lrpguard.cli.options import ModelOptions, NoiseOptions
from lrpguard.errors import ConfigurationError
from lrpguard.fingerprint import model_fingerprint, model_precision
from lrpguard.guard import Guard
from lrpguard.inputs import check_model
from lrpguard.loading import LoadedModel, find_device, load_data
from lrpguard.lrp.engine import saved_bytes
from lrpguard.secret import secret_key
from lrpguard.serving.audit import AuditTrail
from lrpguard.serving.chain import chain_key
from lrpguard.serving.config import ServiceConfig
from lrpguard.serving.opening import check_selftest, open_guard
from lrpguard.smoothing import ChunkSizes, Smoothing, clean_logits, to_model
from lrpguard.version import __version__

_EXTRAS = {
    "plots": "matplotlib",
    "demo": "scikit-learn",
    "attacks": "torchattacks",
    "timm": "timm",
    "serve": "fastapi",
    "tracing": "opentelemetry-sdk",
}
_BARE_RUNS = 20
_GUARD_RUNS = 5
_SECONDS_EACH = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Finding(Generic[T]):
    """What a check found.

    Attributes:
        detail: The finding, for people.
        result: What later checks build on.
        ok: Whether it is as it should be.
        values: The finding, for programs.
    """

    detail: str
    result: T
    ok: bool = True
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Examination:
    """Runs checks, one after the other, and prints each as it is done.

    Attributes:
        console: Where they are printed.
        records: Outcome of each, for programs.
    """

    console: Console
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Number of checks that failed."""
        return sum(not record["ok"] for record in self.records)

    def run(self, name: str, check: Callable[[], Finding[T]]) -> T | None:
        """Run one check; return its result, None where it failed or raised."""
        found: Finding[T] | None = None
        try:
            found = check()
            ok, detail, values = found.ok, found.detail, found.values
        except Exception as error:  # a doctor reports every illness
            ok, detail, values = False, describe(error), {}
        self.records.append({"name": name, "ok": ok, "detail": detail, **values})
        self.console.line(f"{'ok' if ok else 'FAIL':<6}{name:<13}{detail}")
        return found.result if ok and found is not None else None


def run(
    model: ModelOptions,
    noise: NoiseOptions,
    *,
    data: str | None,
    calibration: Path | None,
    console: Console,
    service: ServiceConfig | None = None,
) -> int:
    """Check the installation, a model, and its calibration where there is one.

    Args:
        model: The model.
        noise: Noise to measure the guard's cost with, where there is no calibration.
        data: Images to try the model on; None takes noise.
        calibration: Calibration file of the model.
        console: Where the findings go.
        service: Settings of a service to check, whose model and calibration the others are.

    Returns:
        The exit code.
    """
    examination = Examination(console)
    examination.run("versions", _versions)
    examination.run("extras", _extras)
    if examination.run("device", lambda: _device(model.device)) is not None:
        _examine_model(examination, model, noise, data, calibration)
    if service is not None:
        examination.run("selftest", lambda: _selftest(service))
        examination.run("audit", lambda: _audit(service))
    failed = examination.failed
    console.record({"ok": not failed, "checks": examination.records})
    console.line(f"{failed} of {len(examination.records)} FAILED" if failed else "all well")
    return FAILED if failed else OK


def _examine_model(
    examination: Examination,
    options: ModelOptions,
    noise: NoiseOptions,
    data: str | None,
    calibration: Path | None,
) -> None:
    loaded = examination.run("model", lambda: _model(options))
    if loaded is None:
        return
    model, known = loaded.model, None
    if calibration is not None:
        known = examination.run("calibration", lambda: _calibration(calibration, model))
    image = examination.run("output", lambda: _output(loaded, data, known))
    if image is None or examination.run("engine", lambda: _engine(model, image)) is None:
        return
    settings = known.smoothing if known else smoothing(noise)
    examination.run("memory", lambda: _memory(model, image, settings))
    examination.run("latency", lambda: _latency(model, image, settings))


def _versions() -> Finding[None]:
    found = {"lrpguard": __version__, "python": platform.python_version()}
    found |= {name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "scipy")}
    return Finding(", ".join(f"{k} {v}" for k, v in found.items()), None, values=found)


def _extras() -> Finding[None]:
    found: dict[str, str | None] = {}
    for extra, package in _EXTRAS.items():
        try:
            found[extra] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[extra] = None
    have = [f"{extra} ({_EXTRAS[extra]} {version})" for extra, version in found.items() if version]
    lack = [extra for extra, version in found.items() if not version]
    detail = ", ".join(have) or "none"
    if lack:
        detail += f"; without {', '.join(lack)}: pip install 'lrpguard[{','.join(lack)}]'"
    return Finding(detail, None, values={"extras": found})


def _device(name: str | None) -> Finding[torch.device]:
    chosen = find_device(name)
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        what = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        what = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    float(torch.ones(4, device=chosen).sum())  # fails here where the device does not work
    return Finding(f"{chosen}: {what}", chosen, values={"device": str(chosen)})


def _model(options: ModelOptions) -> Finding[LoadedModel]:
    loaded = open_model(options)
    check_model(loaded.model)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    fingerprint, precision = model_fingerprint(loaded.model), model_precision(loaded.model)
    return Finding(
        f"{loaded.name}, {parameters:,} parameters, {precision}, in eval mode, fingerprint "
        f"{fingerprint[:12]}",
        loaded,
        values={"fingerprint": fingerprint, "precision": precision, "parameters": parameters},
    )


def _calibration(file: Path, model: nn.Module) -> Finding[Calibration]:
    found = Calibration.load(file)
    found.check_matches(model_fingerprint(model), model_precision(model))
    low, high = found.fpr_band()
    days = (datetime.now(UTC) - datetime.fromisoformat(found.created)).days
    return Finding(
        f"matches the model; {found.detector.name} detector, n = {found.n}, alpha "
        f"{found.alpha:g}, false positives {100 * low:.1f} to {100 * high:.1f} % (95 % band), "
        f"{days} day(s) old; copies run {found.smoothing.way}",
        found,
        values={
            "detector": found.detector.name,
            "n": found.n,
            "alpha": found.alpha,
            "fpr_band_95": [low, high],
            "age_days": days,
            "way": asdict(found.smoothing.way),
        },
    )


def _output(loaded: LoadedModel, data: str | None, known: Calibration | None) -> Finding[Tensor]:
    image = to_model(_image(loaded, data, known), loaded.model)
    logits = clean_logits(loaded.model, image)
    detail = f"images {list(image.shape)} to logits {list(logits.shape)}"
    finite = bool(torch.isfinite(logits).all())
    return Finding(
        detail if finite else f"{detail}, NaN or infinite",
        image,
        finite,
        {"image_shape": list(image.shape[1:]), "classes": logits.shape[1]},
    )


def _image(loaded: LoadedModel, data: str | None, known: Calibration | None) -> Tensor:
    """Return one image to try the model on [1, C, H, W]: the user's own, or noise of its size."""
    if data is not None:
        source = load_data(data, preprocessing=loaded.preprocessing)
        image = next((item.image for item in source if item.image is not None), None)
        if image is None:
            raise ConfigurationError(f"no image of --data {data} can be read. Name others.")
        return image[None]
    if known is not None:
        shape = known.image_shape
    elif loaded.image_size is not None:
        shape = (loaded.channels, *loaded.image_size)
    else:
        raise ConfigurationError(
            "the size of this model's images is not known. Give --image-size H,W, or --data."
        )
    return torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))


def _engine(model: nn.Module, image: Tensor) -> Finding[Residual]:
    residual = ConservationAudit(model).measure(image)
    only = "" if residual.is_rounding else "only "
    return Finding(
        f"relevance is {only}conserved to {residual.value:.0e} ({residual.precision})",
        residual,
        residual.is_rounding,
        {"residual": residual.value, "residual_precision": residual.precision},
    )


def _memory(model: nn.Module, image: Tensor, settings: Smoothing) -> Finding[None]:
    per_copy = saved_bytes(model, image, composite=settings.composite)
    chunk = min(ChunkSizes(model, None).of(image, settings), settings.n)
    return Finding(
        f"{_size(per_copy)} a noisy copy, {chunk} of {settings.n} copies at a time",
        None,
        values={"bytes_per_copy": per_copy, "chunk": chunk, "copies": settings.n},
    )


def _latency(model: nn.Module, image: Tensor, settings: Smoothing) -> Finding[None]:
    guard = Guard(model, smoothing=settings)
    bare = _median_seconds(lambda: clean_logits(model, image), _BARE_RUNS, image)
    guarded = _median_seconds(lambda: guard.evidence(image), _GUARD_RUNS, image)
    return Finding(
        f"{_duration(guarded)} an image with {settings.n} copies, {guarded / bare:.0f} times the "
        f"bare model's {_duration(bare)}",
        None,
        values={
            "guard_seconds": guarded,
            "model_seconds": bare,
            "factor": guarded / bare,
            "copies": settings.n,
        },
    )


def _selftest(service: ServiceConfig) -> Finding[None]:
    opened = open_guard(service, os.environ)
    difference = check_selftest(service, opened)
    return Finding(
        f"score reproduced, difference {difference:.2g}",
        None,
        values={"difference": difference, "secret_key": opened.key is not None},
    )


def _audit(service: ServiceConfig) -> Finding[None]:
    section = service.audit
    if section.folder is None:
        return Finding("none: audit.folder is not set", None)
    trail = AuditTrail(
        section.folder,
        fsync=section.fsync,
        rotate_bytes=section.rotate_bytes,
        key=chain_key(secret_key(service.guard.key_file, os.environ)),
    )
    try:
        trail.probe()
        lines = trail.head.seq
    finally:
        trail.close()
    return Finding(f"{section.folder} can be written, {lines} lines", None, values={"lines": lines})


def model_options(service: ServiceConfig) -> ModelOptions:
    """Return the model of a service, as the other commands name it.

    Raises:
        ConfigurationError: The settings name none.
    """
    section = service.model
    if section.spec is None:
        raise ConfigurationError("model.spec is not set in the settings.")
    mean, std, size = (
        None if values is None else ",".join(str(value) for value in values)
        for values in (section.mean, section.std, section.image_size)
    )
    return ModelOptions(
        spec=section.spec,
        weights=section.weights,
        mean=mean,
        std=std,
        image_size=size,
        device=section.device,
    )


def _median_seconds(call: Callable[[], object], runs: int, image: Tensor) -> float:
    """Return the median time of a call, after one that warms up; of fewer where it is slow."""
    times: list[float] = []
    while len(times) <= runs and sum(times) < _SECONDS_EACH:
        start = time.perf_counter()
        call()
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def _size(count: int) -> str:
    return f"{count / 1024:.0f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
