"""Settings for every test."""

import os

import torch


def pytest_configure() -> None:
    """Let parallel workers (pytest-xdist) share the cores rather than each take them all."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
