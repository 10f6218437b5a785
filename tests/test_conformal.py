"""What is said of the clean images; p-values and sizes are tested with the calibration."""

from __future__ import annotations

import pytest

from lrpguard.conformal import images_text


@pytest.mark.parametrize(
    ("fit", "calibrate", "crossed", "text"),
    [
        (0, 60, False, "60 calibrate"),
        (50, 60, False, "50 fit, 60 calibrate"),
        (60, 60, True, "60 fit and calibrate, crossed"),
    ],
)
def test_images_text(fit: int, calibrate: int, crossed: bool, text: str) -> None:
    assert images_text(fit, calibrate, crossed=crossed) == text
