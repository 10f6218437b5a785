"""Settings for every test."""

import torch


def pytest_configure() -> None:
    """Use one thread: the networks of the tests are small, and more threads only contend."""
    torch.set_num_threads(1)
