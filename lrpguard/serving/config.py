"""The service's settings: one frozen dataclass a section of ``guard.toml``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

OnFlag = Literal["annotate", "restore", "reject"]
OnFailure = Literal["fail_closed", "fail_open"]
OnOverload = Literal["shed", "bypass", "block"]
OnDeadline = Literal["fewer", "all"]
Fsync = Literal["always", "interval", "never"]
OnAuditError = Literal["refuse", "continue"]


@dataclass(frozen=True)
class Setting:
    """What a setting is for, and its range.

    Attributes:
        about: For people.
        minimum: Smallest value.
        maximum: Largest value.
    """

    about: str
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Which model is served, and under which name."""

    spec: Annotated[
        str | None, Setting("torchvision:NAME[@WEIGHTS], timm:NAME or package.module:factory")
    ] = None
    weights: Annotated[Path | None, Setting("weights file")] = None
    mean: Annotated[tuple[float, ...] | None, Setting("mean of each channel, where normalised")] = (
        None
    )
    std: Annotated[tuple[float, ...] | None, Setting("standard deviation of each channel")] = None
    image_size: Annotated[
        tuple[int, ...] | None,
        Setting("height and width that image files are brought to; that of the calibration"),
    ] = None
    device: Annotated[str | None, Setting("cpu, cuda or cuda:0; a GPU where there is one")] = None
    name: Annotated[str, Setting("name in /v2/models/NAME")] = "classifier"


@dataclass(frozen=True, kw_only=True)
class GuardSection:
    """The guard's files."""

    calibration: Annotated[Path | None, Setting("calibration file, of 'lrpguard calibrate'")] = None
    selftest: Annotated[
        Path | None, Setting("self-test, of 'lrpguard selftest'; beside the calibration by default")
    ] = None
    key_file: Annotated[
        Path | None, Setting("secret noise key; else LRPGUARD_KEY; else the public seed")
    ] = None
    stopping: Annotated[
        bool,
        Setting(
            "decide clear cases after few copies; needs a calibration with looks. Latency then "
            "tells clients how clear the case was"
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class PolicySection:
    """What is done with flags, failures and too many requests."""

    on_flag: Annotated[
        OnFlag, Setting("annotate the model's answer, restore it, or reject the request")
    ] = "annotate"
    on_failure: Annotated[
        OnFailure,
        Setting("where the guard fails: an error, or the model's answer, marked unguarded"),
    ] = "fail_closed"
    on_overload: Annotated[
        OnOverload,
        Setting("shed with 429, bypass the guard (marked unguarded), or block until the deadline"),
    ] = "shed"
    on_deadline: Annotated[
        OnDeadline,
        Setting(
            "where time is short: the most copies that were calibrated and still fit, or always all"
        ),
    ] = "fewer"
    shadow: Annotated[
        bool, Setting("answer with the bare model, judge afterwards, for the log only")
    ] = False


@dataclass(frozen=True, kw_only=True)
class LimitsSection:
    """How much a client may ask for."""

    queue: Annotated[int, Setting("requests that may wait for the guard, a worker", minimum=0)] = 16
    deadline_ms: Annotated[
        int, Setting("time from a request's arrival to its answer", minimum=1)
    ] = 10_000
    body_bytes: Annotated[int, Setting("largest request body", minimum=1)] = 16 * 2**20
    body_seconds: Annotated[
        float, Setting("longest time a body may take to arrive", minimum=0.01)
    ] = 10.0
    header_seconds: Annotated[float, Setting("longest time the headers may take", minimum=0.01)] = (
        5.0
    )
    pixels: Annotated[int, Setting("largest width * height of an image file", minimum=1)] = (
        16 * 2**20
    )
    images: Annotated[int, Setting("most images of one request", minimum=1)] = 32
    connections: Annotated[int, Setting("most open connections, a worker", minimum=1)] = 512


@dataclass(frozen=True, kw_only=True)
class ServerSection:
    """Where and how the service runs."""

    host: Annotated[str, Setting("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Setting("port; 0 takes a free one", minimum=0, maximum=65535)] = 8000
    workers: Annotated[int, Setting("processes, each with its own model", minimum=1)] = 1
    threads: Annotated[
        int | None,
        Setting("CPU threads of torch, a worker; the cores divided by the workers", minimum=1),
    ] = None
    drain_seconds: Annotated[int, Setting("time for open requests after SIGTERM", minimum=1)] = 30


@dataclass(frozen=True, kw_only=True)
class AnswerSection:
    """What clients may see."""

    expose_scores: Annotated[
        bool,
        Setting(
            "p-values, scores and maps in answers: they help people, and attackers who optimise"
        ),
    ] = False
    page: Annotated[bool, Setting("the page for people at GET /")] = True
    metrics: Annotated[
        bool, Setting("Prometheus metrics at GET /metrics; keep it from the public")
    ] = True


@dataclass(frozen=True, kw_only=True)
class AuditSection:
    """The audit trail."""

    folder: Annotated[Path | None, Setting("folder of the trail; none without it")] = None
    fsync: Annotated[
        Fsync, Setting("always: before each answer; interval: once a second; never")
    ] = "interval"
    rotate_bytes: Annotated[int, Setting("size at which a new file begins", minimum=4096)] = (
        64 * 2**20
    )
    on_error: Annotated[
        OnAuditError,
        Setting("where a line cannot be written: refuse the request (503), or continue without"),
    ] = "refuse"


@dataclass(frozen=True, kw_only=True)
class DriftSection:
    """The watch for traffic that is unlike the calibration."""

    window: Annotated[
        int, Setting("distinct images of one window, a worker; 0: no watch", minimum=0)
    ] = 500
    level: Annotated[
        float, Setting("false alarms of one test of one window", minimum=1e-9, maximum=0.5)
    ] = 0.001


@dataclass(frozen=True, kw_only=True)
class MonitorSection:
    """The watch for near-duplicate requests of one client, a worker."""

    enabled: Annotated[bool, Setting("whether requests are compared")] = False
    memory: Annotated[int, Setting("last images of a client that are remembered", minimum=2)] = 256
    clients: Annotated[int, Setting("clients that are remembered", minimum=1)] = 4096
    distance: Annotated[
        int,
        Setting("largest Hamming distance of 64-bit hashes that is near", minimum=0, maximum=32),
    ] = 4
    alert_after: Annotated[
        int, Setting("near-duplicates among the remembered: alert", minimum=1)
    ] = 10
    client_header: Annotated[
        str | None,
        Setting("header, set by your proxy, that names the client; the peer's address by default"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TelemetrySection:
    """Logs and traces."""

    log_format: Annotated[Literal["json", "text"], Setting("one JSON object a line, or text")] = (
        "json"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Setting("least severe level")
    ] = "info"
    tracing: Annotated[
        Literal["off", "otlp"], Setting("OpenTelemetry spans to OTEL_EXPORTER_OTLP_ENDPOINT")
    ] = "off"


@dataclass(frozen=True, kw_only=True)
class RaySection:
    """Replicas on a Ray Serve cluster; `lrpguard serve` does not read it."""

    min_replicas: Annotated[int, Setting("replicas that always run", minimum=1)] = 1
    max_replicas: Annotated[int, Setting("replicas under load", minimum=1)] = 4
    cpus: Annotated[float, Setting("CPU cores of a replica", minimum=0.1)] = 1.0
    gpus: Annotated[float, Setting("GPUs of a replica; 0.5: two share one", minimum=0)] = 0.0
    batch_size: Annotated[int, Setting("requests judged together", minimum=1)] = 8
    batch_wait_ms: Annotated[
        float, Setting("how long a request may wait for others to be judged with", minimum=0)
    ] = 5.0
    max_queued_requests: Annotated[
        int, Setting("requests that may wait at a proxy; the next gets 429", minimum=1)
    ] = 64


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """All settings of the service."""

    model: ModelSection = ModelSection()
    guard: GuardSection = GuardSection()
    policy: PolicySection = PolicySection()
    limits: LimitsSection = LimitsSection()
    server: ServerSection = ServerSection()
    answer: AnswerSection = AnswerSection()
    audit: AuditSection = AuditSection()
    drift: DriftSection = DriftSection()
    monitor: MonitorSection = MonitorSection()
    telemetry: TelemetrySection = TelemetrySection()
    ray: RaySection = RaySection()

    @property
    def deadline_seconds(self) -> float:
        """Time from a request's arrival to its answer."""
        return self.limits.deadline_ms / 1000

    @property
    def selftest_file(self) -> Path | None:
        """Where the self-test is: as configured, or beside the calibration."""
        calibration = self.guard.calibration
        if self.guard.selftest is not None or calibration is None:
            return self.guard.selftest
        return selftest_beside(calibration)


def selftest_beside(calibration: Path) -> Path:
    """Return where the self-test of a calibration file is by default."""
    return calibration.with_name(calibration.stem + ".selftest.safetensors")


def sections() -> dict[str, type[Any]]:
    """Return the class of each section."""
    return {section.name: type(section.default) for section in fields(ServiceConfig)}


def settings(section: str) -> dict[str, tuple[Any, Setting]]:
    """Return type and description of each setting of a section."""
    hints = get_type_hints(sections()[section], include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in hints.items()}


def defaults_toml() -> str:
    """Return a TOML file of all settings with their defaults, each with what it is for."""
    lines: list[str] = []
    for section, kind in sections().items():
        lines += [f"# {(kind.__doc__ or '').strip()}", f"[{section}]"]
        for name, (_, setting) in settings(section).items():
            value = _toml(getattr(kind(), name))
            lines.append(f"# {setting.about}")
            lines.append(f"# {name} = ..." if value is None else f"{name} = {value}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
