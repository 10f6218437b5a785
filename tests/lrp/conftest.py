"""Settings of the engine's tests."""

import pytest

pytest.register_assert_rewrite("tests.nets")
