"""The query monitor: small changes are near, other images are not, clients are apart."""

from __future__ import annotations

import torch

from lrpguard.demo.digits import load_digit_splits
from lrpguard.serving.monitor import QueryMonitor, perceptual_hash


def monitor(*, memory: int = 50) -> QueryMonitor:
    return QueryMonitor(memory=memory, clients=3, distance=4, alert_after=5)


def image(seed: int) -> torch.Tensor:
    small = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, 64, mode="bilinear")[0]


def test_an_attacks_queries_are_near_each_other() -> None:
    watch, start = monitor(), image(0)
    generator = torch.Generator().manual_seed(1)
    near = [
        watch.add("a", (start + 0.03 * torch.randn(start.shape, generator=generator)).clamp(0, 1))
        for _ in range(20)
    ]
    assert near == list(range(20))
    assert [watch.suspicious(n) for n in near[:7]] == [False] * 5 + [True] * 2


def test_other_images_are_not_near() -> None:
    watch = monitor()
    assert sum(watch.add("a", image(seed)) for seed in range(40)) == 0


def test_hashes_of_distinct_digits_mostly_differ() -> None:
    digits = load_digit_splits().test.images[:100]
    assert len({perceptual_hash(digit) for digit in digits}) > 90


def test_clients_are_apart_and_the_silent_one_is_forgotten() -> None:
    watch, same = monitor(), image(0)
    assert [watch.add(client, same) for client in "abca"] == [0, 0, 0, 1]
    watch.add("d", same)  # the fourth: b was silent longest
    assert watch.add("b", same) == 0
    assert watch.add("a", same) == 2


def test_only_the_last_images_are_remembered() -> None:
    watch = monitor(memory=2)
    assert [watch.add("a", image(0)) for _ in range(5)] == [0, 1, 2, 2, 2]
