"""Settings of the engine's tests."""

from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite("tests.nets")


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Run these small tensors on one thread: on a busy machine two wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
