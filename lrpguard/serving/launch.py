"""Runs the service under uvicorn: one process, or several that share a port."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lrpguard.errors import MissingDependencyError
from lrpguard.serving.config import ServiceConfig
from lrpguard.serving.logs import configure_logs, log
from lrpguard.serving.metrics import MULTIPROCESS_VARIABLE

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

PROTOCOL = "lrpguard.serving.protocol:PatientProtocol"
KEEP_ALIVE_SECONDS = 5
MAX_HEADER_BYTES = 32 * 1024
STARTING_SECONDS = 60
"""Time in which a worker must answer its parent; while it imports torch it cannot."""


def require_serve() -> None:
    """Refuse to go on without the extra.

    Raises:
        MissingDependencyError: A package of it is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"the service needs {error.name}. Install it with: pip install 'lrpguard[serve]'"
        ) from error


def serve(config: ServiceConfig, *, bound: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is open, and return.

    Args:
        config: The settings.
        bound: Told the address, e.g. ``"http://127.0.0.1:8000"``, once it is this service's: with
            port 0 it is known only then.

    Raises:
        MissingDependencyError: The extra ``serve`` is not installed.
        OSError: The address is taken, or not this machine's.
    """
    require_serve()
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    configure_logs(config.telemetry.log_format, config.telemetry.log_level)
    settings = uvicorn_settings(config, partial(worker_app, config))
    shared = _share_metrics() if config.server.workers > 1 else None
    socket = settings.bind_socket()
    url = _url(*socket.getsockname()[:2])
    log.info("listening", extra={"url": url, "workers": config.server.workers})
    try:
        if bound is not None:
            bound(url)
        if config.server.workers > 1:
            Multiprocess(settings, sockets=[socket]).run()
        else:
            # uvicorn raises the signal again when it is done: then it shall do nothing.
            signal.signal(signal.SIGTERM, lambda *_: None)
            uvicorn.Server(settings).run(sockets=[socket])
    finally:
        socket.close()
        if shared is not None:
            shutil.rmtree(shared, ignore_errors=True)


def uvicorn_settings(config: ServiceConfig, app: Callable[[], FastAPI]) -> uvicorn.Config:
    """Return how uvicorn shall serve an application; several workers need one that pickles.

    Args:
        config: The settings.
        app: Makes the application.
    """
    import uvicorn

    return uvicorn.Config(
        app,
        factory=True,
        host=config.server.host,
        port=config.server.port,
        workers=config.server.workers,
        http=PROTOCOL,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=config.limits.connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=config.server.drain_seconds,
        timeout_worker_healthcheck=STARTING_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


def worker_app(config: ServiceConfig) -> FastAPI:
    """Return the application of one worker process; uvicorn calls it there."""
    from lrpguard.serving.app import create_app

    configure_logs(config.telemetry.log_format, config.telemetry.log_level)
    return create_app(config, os.environ)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _share_metrics() -> str:
    """Name a folder in which the workers, which inherit the variable, share their counts."""
    folder = tempfile.mkdtemp(prefix="lrpguard-metrics-")
    os.environ[MULTIPROCESS_VARIABLE] = folder
    return folder
