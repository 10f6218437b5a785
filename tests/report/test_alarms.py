"""Base rates, by hand."""

from __future__ import annotations

import pytest

from lrpguard.errors import ConfigurationError
from lrpguard.report.alarms import Rate, Traffic, alarm_table, false_alarms, precision, promised


def test_precision_by_hand() -> None:
    assert precision(0.01, 0.05, 1.0) == pytest.approx(0.01 / (0.01 + 0.99 * 0.05))
    assert precision(0.0, 0.05, 1.0) == 0
    assert precision(0.5, 0.0, 0.0) is None


def test_false_alarms_of_a_day() -> None:
    traffic = Traffic(requests=1000, prevalence=0.1)
    assert false_alarms(Rate(0.05, 0.01, 0.1), traffic) == "45 (9-90)"


def test_the_table_holds_the_stated_prevalence() -> None:
    rate = Rate(0.05, 0.04, 0.06)
    table = alarm_table(
        [("5 %", rate, Rate(0.9, 0.8, 1.0))], Traffic(requests=1e6, prevalence=2e-4)
    )
    assert "1 in 5,000 (stated)" in table
    assert "1,000,000 requests a day" in table
    assert "180 of 200" in table
    share = 100 * 2e-4 * 0.9 / (2e-4 * 0.9 + (1 - 2e-4) * 0.05)
    assert f"{share:.2g} % (" in table


def test_what_a_calibration_promises() -> None:
    rate = promised(0.05, 199)
    assert rate.value == pytest.approx(0.05)
    assert rate.low < 0.05 < rate.high
    assert promised(0.001, 100) == Rate(0, 0, 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"requests": 0.0}, "--requests-per-day"),
        ({"requests": float("nan")}, "--requests-per-day"),
        ({"prevalence": 1.5}, "--prevalence"),
        ({"prevalence": float("nan")}, "--prevalence"),
    ],
)
def test_what_cannot_be(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Traffic(**fields)
