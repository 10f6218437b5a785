"""What the tests of all scripts share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    """Undo a script's own choice of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
