"""A Ray cluster of two nodes on this machine, and what its workers judge with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.conftest import ROOT, files
from tests.serving.models import FOLDER_VARIABLE

__all__ = ["files"]  # a fixture


@pytest.fixture(scope="session")
def behaviour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder whose files change the behaviour of the model on the workers."""
    return tmp_path_factory.mktemp("behaviour")


@pytest.fixture(scope="session")
def cluster(behaviour_folder: Path) -> Iterator[str]:
    """The address of a cluster of two nodes of two CPUs; this process is connected to it."""
    ray = pytest.importorskip("ray")
    utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LRPGUARD_")]:
            patch.delenv(name)
        patch.setenv("PYTHONPATH", str(ROOT))  # the nodes and their workers inherit these
        patch.setenv(FOLDER_VARIABLE, str(behaviour_folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: on a busy machine, never
        for check in ("READY_CHECK", "HEALTH_CHECK"):  # 5 and 10 s by default: the same
            patch.setenv(f"RAY_SERVE_PROXY_{check}_TIMEOUT_S", "300")
        nodes = utils.Cluster()
        try:
            for _ in range(2):
                nodes.add_node(num_cpus=2, object_store_memory=512 * 2**20, include_dashboard=False)
            ray.init(address=nodes.address, log_to_driver=False)
            patch.setenv("RAY_ADDRESS", nodes.address)
            patch.delenv(FOLDER_VARIABLE)  # of the workers alone
            yield nodes.address
        finally:
            ray.shutdown()
            nodes.shutdown()
