"""The page of architectures: one row of its table, and the page around rows."""

from __future__ import annotations

import pytest

from scripts.make_architectures import SHOWN, main, page


def test_a_row_and_the_page_around_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--only", "squeezenet1_1"])
    row = capsys.readouterr().out.strip()
    name, size, *residuals = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, size) == ("squeezenet1_1", "64")
    assert len(residuals) == len(SHOWN) + 1
    assert all(float(cell) <= 1e-12 for cell in residuals)
    lines = page([row]).splitlines()
    header = next(line for line in lines if line.startswith("| Network"))
    assert row in lines
    assert header.count("|") == row.count("|")
