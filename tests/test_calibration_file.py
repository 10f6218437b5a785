"""The calibration file: round trip, and refusal of every damaged one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrpguard import Calibration, Smoothing
from lrpguard.calibration import SCHEMA, _digest
from lrpguard.copies import PLAIN, Way
from lrpguard.detector import COMBINED_SCORES, CombinedDetector, fit_detector
from lrpguard.errors import CalibrationFileError, LrpGuardError
from lrpguard.lrp import ZERO
from tests.nets import epsilon
from tests.support import make_calibration, make_readings, small_net


def random(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def combined() -> Calibration:
    """A calibration of which no field has its default."""
    return make_calibration(
        random(60) ** 2,
        alpha=0.07,
        detector=fit_detector("combined", make_readings(50)),
        proposals=random(60) - 3,
        smoothing=Smoothing(8, 0.025, 2**64 - 1, epsilon(0.125), Way("channels_last", 3)),
        image_shape=(1, 28, 32),
        fingerprint="0123456789abcdef" * 4,
        precision="bfloat16",
        fit_n=50,
        data_digest="fedcba9876543210" * 4,
        created="2031-12-31T23:59:59+00:00",
        version="7.8.9",
    )


@pytest.fixture
def file(tmp_path: Path, combined: Calibration) -> Path:
    path = tmp_path / "clean.safetensors"
    combined.save(path)
    return path


def refused(path: Path) -> str:
    """Load a file that must be refused; return the message, which must name it and a mend."""
    with pytest.raises(CalibrationFileError) as caught:
        Calibration.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "alibrate" in message
    return message


def opened(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file's record and tensors as they stand there."""
    with safe_open(str(file), framework="pt") as old:
        record: dict[str, Any] = json.loads(old.metadata()["lrpguard"])
        return record, {name: old.get_tensor(name) for name in old.keys()}  # noqa: SIM118


def edited(file: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """Write the file again after a change that its digest does not betray."""
    record, tensors = opened(file)
    change(record, tensors)
    record.pop("digest", None)
    record["digest"] = _digest(tensors, record)
    save_file(tensors, str(file), metadata={"lrpguard": json.dumps(record)})
    return file


class TestRoundTrip:
    def test_of_every_field(self, file: Path, combined: Calibration) -> None:
        again = Calibration.load(file)
        for field in dataclasses.fields(Calibration):
            if field.name not in ("detector", "anomalies", "proposals"):
                assert getattr(again, field.name) == getattr(combined, field.name), field.name
        assert torch.equal(again.anomalies, combined.anomalies)
        assert again.proposals is not None
        assert combined.proposals is not None
        assert torch.equal(again.proposals, combined.proposals)
        assert bool((again.proposals.diff() >= 0).all())
        assert isinstance(again.detector, CombinedDetector)
        assert again.detector.score_names == combined.detector.score_names
        assert again.detector.state().keys() == combined.detector.state().keys()
        for name, tensor in combined.detector.state().items():
            assert torch.equal(again.detector.state()[name], tensor)

    def test_of_a_file_without_a_way(self, file: Path) -> None:
        """It was written before a way could be chosen."""
        old = Calibration.load(edited(file, lambda record, _: record["smoothing"].pop("way")))
        assert old.smoothing.way == PLAIN

    def test_answers_are_the_same(self, file: Path, combined: Calibration) -> None:
        again, fresh = Calibration.load(str(file)), make_readings(40, seed=1)
        anomaly = combined.detector.anomaly(fresh)
        assert torch.equal(again.detector.anomaly(fresh), anomaly)
        assert torch.equal(again.p_values(anomaly), combined.p_values(anomaly))
        evidence = 2 * random(40)
        assert torch.equal(
            again.replacement_p_values(evidence), combined.replacement_p_values(evidence)
        )
        assert again.threshold == combined.threshold
        assert again.fpr_band() == combined.fpr_band()

    def test_of_a_file_that_is_written_over_afterwards(
        self, file: Path, combined: Calibration
    ) -> None:
        loaded = Calibration.load(file)
        file.write_bytes(bytes(file.stat().st_size))  # the same file, as cp does it
        asked = random(20)
        assert torch.equal(loaded.p_values(asked), combined.p_values(asked))
        for name, tensor in combined.detector.state().items():
            assert torch.equal(loaded.detector.state()[name], tensor)

    def test_of_the_papers_detector_and_another_rule(self, tmp_path: Path) -> None:
        paper = make_calibration([float(i) for i in range(20)], smoothing=Smoothing(composite=ZERO))
        paper.save(tmp_path / "paper.safetensors")
        again = Calibration.load(tmp_path / "paper.safetensors")
        assert again.detector == paper.detector
        assert again.proposals is None
        assert again.smoothing == paper.smoothing

    def test_saved_again_is_the_same_file(self, file: Path, tmp_path: Path) -> None:
        Calibration.load(file).save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == file.read_bytes()

    def test_metadata_is_json_that_says_what_matters(self, file: Path) -> None:
        record, _ = opened(file)
        assert record["schema"] == SCHEMA
        assert record["alpha"] == 0.07
        assert (record["n"], record["fit_n"]) == (60, 50)
        assert len(record["fpr_band_95"]) == 2
        assert record["scores"] == list(COMBINED_SCORES)
        assert record["preprocessing"] == {
            "layout": "NCHW",
            "range": [0, 1],
            "shape": [1, 28, 32],
        }

    def test_numbers_of_numpy(self, tmp_path: Path) -> None:
        numbers = Smoothing(n=np.int64(8), sigma=np.float32(0.25), seed=np.uint64(3))  # type: ignore[arg-type]
        path = tmp_path / "numpy.safetensors"
        alpha: Any = np.float32(0.125)
        make_calibration([0.0] * 30, alpha=alpha, smoothing=numbers).save(path)
        assert Calibration.load(path).smoothing == Smoothing(n=8, sigma=0.25, seed=3)

    def test_overwrites_and_leaves_nothing_else(self, file: Path) -> None:
        make_calibration([1.0] * 30).save(file)
        assert Calibration.load(file).n == 30
        assert list(file.parent.iterdir()) == [file]

    def test_saving_where_there_is_no_folder_is_an_oserror(
        self, tmp_path: Path, combined: Calibration
    ) -> None:
        with pytest.raises(OSError, match="nowhere"):
            combined.save(tmp_path / "nowhere" / "clean.safetensors")


class TestDamage:
    def test_missing(self, tmp_path: Path) -> None:
        assert "there is no calibration file" in refused(tmp_path / "nothing.safetensors")
        assert "there is no calibration file" in refused(tmp_path)

    def test_truncated_anywhere(self, file: Path) -> None:
        whole = file.read_bytes()
        for length in {*range(0, len(whole), 61), 1, 7, 8, 9, len(whole) - 1}:
            file.write_bytes(whole[:length])
            refused(file)

    def test_bytes_behind_the_end(self, file: Path) -> None:
        file.write_bytes(file.read_bytes() + b"\0" * 8)
        refused(file)

    @pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
    def test_one_flipped_byte_anywhere_in_the_tensors(self, file: Path, flip: int) -> None:
        whole = bytearray(file.read_bytes())
        (header,) = struct.unpack("<Q", whole[:8])
        for place in range(8 + header, len(whole), 7):
            whole[place] ^= flip
            file.write_bytes(whole)
            assert "digest" in refused(file)
            whole[place] ^= flip

    @pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
    def test_one_flipped_byte_in_the_header(self, file: Path, flip: int) -> None:
        clean = file.read_bytes()
        whole = bytearray(clean)
        (header,) = struct.unpack("<Q", whole[:8])
        for place in {*range(16), *range(16, 8 + header, 5)}:
            whole[place] ^= flip
            file.write_bytes(whole)
            try:
                Calibration.load(file).save(file)
            except CalibrationFileError:
                pass
            else:  # a change without meaning, such as 1E-09 for 1e-09
                assert file.read_bytes() == clean
            whole[place] ^= flip

    @pytest.mark.parametrize(
        "content", [b"", b"not safetensors at all", b"\x80\x04pickle", b"{}", b"\xff" * 64]
    )
    def test_another_kind_of_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.safetensors"
        path.write_bytes(content)
        assert "another kind of file" in refused(path)

    def test_a_tensor_of_another_type(self, file: Path) -> None:
        record, tensors = opened(file)
        tensors["anomalies"] = tensors["anomalies"].bfloat16()
        save_file(tensors, str(file), metadata={"lrpguard": json.dumps(record)})
        refused(file)

    def test_weights_of_a_model(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.safetensors"
        save_file(small_net().state_dict(), str(path))
        assert "another kind of file" in refused(path)

    @pytest.mark.parametrize("record", ["[]", "3", '"text"', "null", "{", "{}"])
    def test_metadata_of_another_form(self, tmp_path: Path, record: str) -> None:
        path = tmp_path / "odd.safetensors"
        save_file({"anomalies": torch.zeros(20)}, str(path), metadata={"lrpguard": record})
        refused(path)

    def test_metadata_nested_without_end(self, tmp_path: Path) -> None:
        path = tmp_path / "deep.safetensors"
        save_file({"a": torch.zeros(2)}, str(path), metadata={"lrpguard": "[" * 100_000})
        refused(path)


class TestEdited:
    @pytest.mark.parametrize("key", ["alpha", "fingerprint", "precision", "scores", "created"])
    def test_metadata_against_the_digest(self, file: Path, key: str) -> None:
        record, tensors = opened(file)
        record[key] = 0.5 if key == "alpha" else ["max_logit"]
        save_file(tensors, str(file), metadata={"lrpguard": json.dumps(record)})
        assert "altered" in refused(file)

    @pytest.mark.parametrize("schema", [SCHEMA + 1, SCHEMA - 1, 0, None, "2"])
    def test_another_schema(self, file: Path, schema: object) -> None:
        def change(record: dict[str, Any], _: object) -> None:
            record["schema"] = schema

        message = refused(edited(file, change))
        assert f"schema {schema}" in message
        assert "Update lrpguard" in message
        assert "7.8.9" in message

    @pytest.mark.parametrize("key", ["schema", "digest"])
    def test_without_a_schema_or_digest(self, file: Path, key: str) -> None:
        record, tensors = opened(file)
        del record[key]
        save_file(tensors, str(file), metadata={"lrpguard": json.dumps(record)})
        refused(file)

    @pytest.mark.parametrize(
        "key",
        ["alpha", "detector", "scores", "smoothing", "preprocessing", "fingerprint", "fit_n"],
    )
    @pytest.mark.parametrize("value", ["missing", None, 7, "text", [], {}])
    def test_a_record_with_a_hole_gives_an_error_of_ours(
        self, file: Path, key: str, value: object
    ) -> None:
        def change(record: dict[str, Any], _: object) -> None:
            if value == "missing":
                del record[key]
            else:
                record[key] = value

        edited(file, change)
        with contextlib.suppress(LrpGuardError):  # some values do no harm
            Calibration.load(file)

    @pytest.mark.parametrize(
        "name",
        [
            "anomalies",
            "proposals",
            "detector.reference",
            "detector.root",
            "detector.consistency.pairs",
            "detector.consistency.weights",
        ],
    )
    def test_a_missing_tensor(self, file: Path, name: str) -> None:
        def change(_: object, tensors: dict[str, Tensor]) -> None:
            del tensors[name]

        assert name.split(".")[-1] in refused(edited(file, change))

    @pytest.mark.parametrize("name", ["anomalies", "proposals"])
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_non_finite_scores(self, file: Path, name: str, bad: float) -> None:
        def change(_: object, tensors: dict[str, Tensor]) -> None:
            tensors[name][3] = bad

        edited(file, change)
        with pytest.raises(LrpGuardError, match="NaN or infinite"):
            Calibration.load(file)

    def test_alpha_too_small_for_n(self, file: Path) -> None:
        edited(file, lambda record, _: record.update(alpha=1e-6))
        with pytest.raises(LrpGuardError, match="60 calibration images"):
            Calibration.load(file)
