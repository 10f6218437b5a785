"""Turns, ratios and peaks."""

import numpy as np
import pytest
import torch

from lrpguard.evaluation.timing import clock, machine, paired_ratio, peak_memory, take_turns


def test_methods_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []

    times = take_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, device="cpu"
    )

    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [len(seconds) for seconds in times.values()] == [2, 2]
    assert all(second >= 0 for seconds in times.values() for second in seconds)


def test_time_is_of_the_method_it_stands_for() -> None:
    large, small = torch.rand(400, 400), torch.rand(10, 10)

    times = take_turns(
        {"large": lambda: large @ large, "small": lambda: small @ small}, 9, device="cpu"
    )

    assert np.median(times["large"]) > np.median(times["small"])


def test_ratio_is_the_median_over_the_repeats_not_of_the_medians() -> None:
    found = paired_ratio([2.0, 30.0, 6.0], [1.0, 10.0, 4.0])

    assert found.ratio == 2.0
    assert found.seconds == 6.0
    assert found.repeats == 3
    assert 1.5 <= found.low <= 2.0 <= found.high <= 3.0


def test_ratio_of_equal_times_is_one_for_sure() -> None:
    found = paired_ratio([1.0, 2.0], [1.0, 2.0])

    assert (found.ratio, found.low, found.high) == (1.0, 1.0, 1.0)


def test_peak_grows_by_what_is_held() -> None:
    before = peak_memory("cpu")
    held = torch.ones(before // 4 + 2**24)

    assert peak_memory("cpu") >= before + 2**24
    assert len(held)


def test_clock_goes_forward() -> None:
    started = clock("cpu")
    torch.rand(200, 200) @ torch.rand(200, 200)

    assert clock("cpu") > started


def test_machine_is_described_without_its_name() -> None:
    import platform

    about = machine("cpu")

    assert about["torch"] == torch.__version__
    assert about["gpu"] is None
    assert platform.node() not in {str(value) for value in about.values()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_asking_for_one_fails() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        machine("cuda")
