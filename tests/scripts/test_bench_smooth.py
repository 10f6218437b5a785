"""The benchmark runs, and says what it has measured; no speed is asserted."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from scripts import bench_smooth


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return bench_smooth


def test_quick_run_writes_page_and_record(bench: ModuleType, tmp_path: Path) -> None:
    arguments = ["--quick", "--networks", "ResNet-20", "--n", "4", "--out", str(tmp_path)]

    assert bench.main(arguments) == 0

    record = json.loads((tmp_path / "results" / "bench_smooth.json").read_text())
    network = record["networks"]["ResNet-20"]
    limit, ours, by_pixel = network["lines"][:3]
    assert limit["ratio"] == 1.0
    assert ours["seconds"] > 0
    assert ours["low"] <= ours["ratio"] <= ours["high"]
    assert limit["note"].startswith("right")
    assert ours["note"].startswith("right")
    assert by_pixel["note"].startswith("right")
    assert {line["method"] for line in network["lines"][3:]} == {
        "zennit 0.5.1 Epsilon",
        "captum LRP",
    }
    assert set(network["parts"]) == {"noise", "clean prediction", "moments"}
    page = (tmp_path / "performance.md").read_text()
    assert "## ResNet-20, 32 x 32, chunks of 4" in page
    assert "| lrpguard SmoothLRP, all of it |" in page
    assert str(tmp_path) not in page


def test_the_limit_is_the_gradient_of_every_copy(bench: ModuleType) -> None:
    case = bench.make_case("ResNet-20", n=3, device="cpu", chunk=2)
    leaf = case.copies.clone().requires_grad_()

    (whole,) = torch.autograd.grad(case.model(leaf)[:, case.label].sum(), leaf)

    torch.testing.assert_close(bench.gradients(case), whole)


def test_the_copies_are_those_that_smooth_lrp_makes(bench: ModuleType) -> None:
    case = bench.make_case("ResNet-20", n=3, device="cpu")
    evidence = bench.smooth_lrp(case, 3)()

    with torch.no_grad():
        torch.testing.assert_close(evidence.noisy_logits[0], case.model(case.copies))
    assert int(evidence.label) == case.label


def test_a_peer_that_is_right_is_called_right(bench: ModuleType) -> None:
    pytest.importorskip("zennit")
    case = bench.make_case("SqueezeNet 1.1", n=2, device="cpu", chunk=2)

    assert bench.compare(bench.zennit_lrp(case)(), bench.exact_relevance(case)).startswith("right")


def test_what_is_wrong_is_called_wrong(bench: ModuleType) -> None:
    case = bench.make_case("ResNet-20", n=3, device="cpu")
    exact = bench.exact_relevance(case)
    one_off = exact.clone()
    one_off[0] *= 1.01

    assert bench.compare(exact * 1.001, exact).startswith("**wrong**: 1.0e-03")
    assert bench.compare(one_off, exact) == "right: 0.0e+00, worst copy 1.0e-02"


def test_peak_of_a_process_of_its_own_is_printed(bench: ModuleType) -> None:
    found = bench.peaks("ResNet-20", copies=[2], device="cpu", threads=1)

    assert found[2] > 50 * 2**20
