"""The benchmark of the rules runs, and says what it has measured; no speed is asserted."""

import json
from pathlib import Path

import pytest
import torch

from scripts import bench_engine


def test_quick_run_writes_its_section_and_record(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Performance\n\nBy hand.\n\n<!-- bench_engine -->\nold\n", encoding="utf-8")
    arguments = ["--quick", "--networks", "squeezenet1_1", "--batch", "1", "--size", "64"]

    assert bench_engine.main([*arguments, "--out", str(tmp_path)]) == 0

    record = json.loads((tmp_path / "results" / "bench_engine.json").read_text())
    network = record["networks"]["squeezenet1_1"]
    assert set(network["rules"]) == {"epsilon", "gamma", "z-plus"}
    for lines in network["rules"].values():
        assert [line["method"] for line in lines] == ["lrpguard", "zennit 0.5.1", "captum"]
        assert lines[0]["low"] <= lines[0]["ratio"] <= lines[0]["high"]
    kept = network["kept"]
    assert 5 * kept["epsilon, bits"] < kept["plain autograd"]
    text = page.read_text()
    assert text.startswith("# Performance\n\nBy hand.\n")
    assert "| squeezenet1_1, 1 | gamma | lrpguard |" in text
    assert "old" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet50"])
def test_zennit_is_asked_for_the_same_relevance(name: str) -> None:
    pytest.importorskip("zennit")
    case = bench_engine.make_case(name, batch=1, size=64, device="cpu")
    for rule in bench_engine.RULES:
        expected = bench_engine.ours(case, rule)()
        distance = (bench_engine.zennit(case, rule)() - expected).norm() / expected.norm()
        assert float(distance) <= 1e-4


def test_the_limit_is_the_gradient_of_the_explained_class() -> None:
    case = bench_engine.make_case("squeezenet1_1", batch=2, size=64, device="cpu")
    leaf = case.images.clone().requires_grad_()
    top = case.model(leaf).max(1).values.sum()
    assert torch.equal(bench_engine.limit(case), torch.autograd.grad(top, leaf)[0])


def test_peak_of_a_process_of_its_own() -> None:
    found = bench_engine.peak("squeezenet1_1", "gamma", batch=1, size=64, device="cpu")
    assert found > 50 * 2**20
