"""The HTTP service as a Ray Serve deployment.

    serve run lrpguard.cluster.deployment:build config=guard.toml

or, in the file that ``serve deploy`` and KubeRay take, ``import_path:
lrpguard.cluster.deployment:build`` and ``args: {config: /config/guard.toml}``. Settings, model,
calibration, self-test and key must be on each node, under the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrpguard.cluster.batching import BatchingRunner
from lrpguard.errors import ConfigurationError, MissingDependencyError
from lrpguard.serving.config import ServiceConfig
from lrpguard.serving.configure import load_config
from lrpguard.serving.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

NAME = "lrpguard"
RETRY_AFTER_SECONDS = 1
STARTS = 3
"""Attempts to start a replica before the deployment is said to have failed."""


def build(args: Mapping[str, Any]) -> Application:
    """Return the application of a settings file, as ``serve run`` and ``serve deploy`` call it.

    Args:
        args: ``config``: the settings file.

    Raises:
        ConfigurationError: There is no such file, or a setting is wrong.
        MissingDependencyError: The extra ``ray`` is not installed.
    """
    if set(args) != {"config"}:
        raise ConfigurationError(f"the arguments are {sorted(args)}; expected config=FILE.")
    return application(load_config(Path(args["config"]), environment=os.environ))


def application(config: ServiceConfig) -> Application:
    """Return a service as a Ray Serve application, for ``serve.run``.

    Ray Serve takes the place of the workers and of the queue: it starts replicas as load comes and
    goes, keeps requests that wait at its proxies, and answers 429 where these are too many.

    Args:
        config: The settings; section ``ray`` is of this deployment.

    Raises:
        ConfigurationError: A policy is one that Ray Serve cannot keep.
        MissingDependencyError: The extra ``ray`` is not installed.
    """
    try:
        from ray import serve
        from ray.serve.config import AutoscalingConfig, BackpressureConfig
    except ImportError as error:
        raise MissingDependencyError(
            f"the deployment needs {error.name}. Install it with: pip install 'lrpguard[ray,serve]'"
        ) from error

    if config.policy.on_overload != "shed":
        raise ConfigurationError(
            f"policy.on_overload is {config.policy.on_overload!r}; on Ray Serve requests wait at "
            "its proxies, which shed where too many do: set it to 'shed'."
        )
    section = config.ray
    if section.max_replicas < section.min_replicas:
        raise ConfigurationError(
            f"ray.max_replicas is {section.max_replicas}, less than ray.min_replicas "
            f"({section.min_replicas})."
        )
    # Of several replicas, a scrape would meet one at a time; Ray has metrics of its own.
    config = replace(config, answer=replace(config.answer, metrics=False))
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        ray_actor_options={"num_cpus": section.cpus, "num_gpus": section.gpus},
        max_ongoing_requests=section.batch_size + config.limits.queue,
        max_queued_requests=section.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_SECONDS),
        autoscaling_config=AutoscalingConfig(
            min_replicas=section.min_replicas,
            max_replicas=section.max_replicas,
            target_ongoing_requests=section.batch_size,
        ),
        graceful_shutdown_timeout_s=config.server.drain_seconds,
        max_constructor_retry_count=STARTS,
    )
    return deployment.bind(config)


class Replica:
    """One replica: the whole service of a worker, with its guard.

    Args:
        config: The settings.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._service = Service(
            config,
            os.environ,
            cores=max(1, int(config.ray.cpus)),
            make_runner=BatchingRunner,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Ray Serve starts it, and with it the loading."""
        from lrpguard.serving.app import app_of

        return app_of(self._service)

    async def check_health(self) -> None:
        """Say that requests may come: Ray Serve asks before the first, and from time to time.

        Raises:
            RefusedError: Model, calibration and self-test do not fit together.
        """
        await self._service.loaded()
        self._service.opened()
