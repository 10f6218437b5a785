"""Digits that the packaged model reads rightly, and that model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import quantize
from lrpguard.demo.digits import load_digit_splits, load_digits_model


@pytest.fixture(scope="session")
def digits_model() -> nn.Module:
    return load_digits_model()


@pytest.fixture(scope="session")
def digits(digits_model: nn.Module) -> tuple[Tensor, Tensor]:
    """Forty test digits in 8 bits that the model reads rightly, and their classes."""
    pytest.importorskip("sklearn", reason="needs lrpguard[demo]")
    test = load_digit_splits().test
    images = quantize(test.images[:60])
    with torch.no_grad():
        right = digits_model(images).argmax(1) == test.labels[:60]
    return images[right][:40], test.labels[:60][right][:40]
