"""The self-test: what reproduces its score passes, anything else is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lrpguard import Guard
from lrpguard.errors import CalibrationMismatchError, SelfTestError
from lrpguard.serving.selftest import SelfTest, key_id
from tests.serving.conftest import Files

KEY = b"k" * 32


def test_it_is_reproduced_after_a_round_through_its_file(
    files: Files, guard: Guard, tmp_path: Path
) -> None:
    SelfTest.make(guard, files.clean[0], key=None).save(tmp_path / "t.safetensors")
    assert SelfTest.load(tmp_path / "t.safetensors").check(guard, key=None) == 0.0


def test_another_score_or_label_is_not_reproduced(files: Files, guard: Guard) -> None:
    made = SelfTest.make(guard, files.clean[0], key=None)
    within = replace(made, score=made.score + 0.9 * made.tolerance)
    assert within.check(guard, key=None) == pytest.approx(0.9 * made.tolerance)
    for changed in (
        replace(made, score=made.score + 1.1 * made.tolerance),
        replace(made, score=float("nan")),
        replace(made, label=made.label + 1),
    ):
        with pytest.raises(SelfTestError, match="expected"):
            changed.check(guard, key=None)


def test_another_model_or_key_is_named(files: Files, guard: Guard) -> None:
    made = SelfTest.make(guard, files.clean[0], key=None)
    with pytest.raises(CalibrationMismatchError, match="model"):
        replace(made, fingerprint="0" * 64).check(guard, key=None)
    with pytest.raises(CalibrationMismatchError, match="key"):
        made.check(guard, key=KEY)


def test_a_guard_that_scores_by_another_key_is_found(files: Files, guard: Guard) -> None:
    keyed = Guard(guard.model, calibration=files.calibration, key=KEY)
    made = SelfTest.make(keyed, files.clean[0], key=None)  # its key is not told
    with pytest.raises(SelfTestError):
        made.check(guard, key=None)


def test_a_missing_or_broken_file_is_named(files: Files, guard: Guard, tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    with pytest.raises(SelfTestError, match="lrpguard selftest"):
        SelfTest.load(file)
    SelfTest.make(guard, files.clean[0], key=None).save(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(SelfTestError, match="no whole self-test"):
        SelfTest.load(file)
    with pytest.raises(SelfTestError, match="no whole self-test"):
        SelfTest.load(files.calibration)


def test_key_ids_tell_keys_apart_and_no_key() -> None:
    assert key_id(None) is None
    assert key_id(KEY) != key_id(b"l" * 32)
