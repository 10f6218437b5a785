"""The benchmark of whole requests runs, and counts their operations right."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lrpguard.copies import PLAIN, Way
from lrpguard.views import changed_views
from scripts import bench_requests
from tests.support import times

SMALL = ["--n", "2", "--size", "32", "--side", "64", "--networks", "resnet18"]


def test_a_run_writes_its_section_and_record(tmp_path: Path) -> None:
    arguments = [*SMALL, "--requests", "4", "--batches", "1", "2", "--no-memory"]
    assert bench_requests.main([*arguments, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "results" / "bench_requests.json").read_text())
    assert record["command"] == f"python scripts/bench_requests.py {' '.join(arguments)}"
    found = record["networks"]["resnet18"]
    assert [line["batch"] for line in found["lines"]] == [1, 2]
    assert [line["repeats"] for line in found["lines"]] == [4, 2]
    for line in found["lines"]:
        assert 0 < line["p50"] <= line["p99"]
        assert line["share"]["low"] <= line["share"]["ratio"] <= line["share"]["high"]
        assert line["flops_a_second"] > 0
    text = (tmp_path / "performance.md").read_text()
    assert "| resnet18 | 2 | 2 |" in text
    assert str(tmp_path) not in text


def test_operations_of_one_convolution_and_one_dense_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 5))
    model.eval().requires_grad_(False)
    image = torch.rand(1, 3, 8, 8)
    forward = 2 * (64 * 4 * 27 + 4 * 64 * 5)
    views = len(changed_views(image[0]))
    assert bench_requests.operations(model, image, 7) == (7 * 2 + 1 + views) * forward


@pytest.mark.parametrize("way", [PLAIN, Way("channels_last")], ids=str)
def test_peak_of_a_process_of_its_own(way: Way) -> None:
    assert bench_requests.peak("resnet18", way, bench_requests.parse(SMALL)) > 50 * 2**20


def test_the_peak_is_that_of_the_way_that_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def of_process(script: str, arguments: list[str]) -> int:
        asked.append(arguments)
        return 1

    monkeypatch.setattr(bench_requests, "peak_of_process", of_process)
    times(monkeypatch, 0.5)
    arguments = [*SMALL, "--requests", "1", "--batches", "1", "--out", str(tmp_path)]
    assert bench_requests.main(arguments) == 0
    assert asked[0][:3] == ["--peak", "resnet18", "channels_last"]
