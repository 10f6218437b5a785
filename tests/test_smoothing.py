"""SmoothLRP: against a slow loop, and the invariances it promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpguard import Evidence, Smoothing, explain, normalized
from lrpguard.errors import (
    ConfigurationError,
    InputRangeError,
    InputShapeError,
    ModelOutputError,
    TrainingModeError,
    UnsupportedOperatorError,
)
from lrpguard.lrp import EPSILON
from lrpguard.lrp.engine import saved_bytes
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from lrpguard.smoothing import PAPER_N, PAPER_SIGMA, chunk_size
from tests.nets import gradient_times_input, rel_l2
from tests.support import CLASSES, Wrapped, images, small_net

N, SIGMA, SEED = 7, 0.1, 3
EXACT = ["label", "noisy_logits", "relevance_mean", "relevance_variance", "relevance_total"]


def slow_maps(model: nn.Module, image: Tensor, target: int, *, key: bytes) -> tuple[Tensor, Tensor]:
    """Explain copy after copy by plain autograd: logits [N, K], channel-summed maps [N, H, W]."""
    digest = image_digest(image, key)
    rows, maps = [], []
    for number in range(N):
        noise = gaussian_copies(digest, number, 1, image.shape)[0]
        copy = (image.float() + SIGMA * noise).to(image.dtype)[None]
        rows.append(model(copy).detach())
        maps.append(gradient_times_input(model, copy, torch.tensor([target])).sum(1))
    return torch.cat(rows), torch.cat(maps)


def explained(model: nn.Module, batch: Tensor, **options: Any) -> Evidence:
    return explain(model, batch, **{"n": N, "sigma": SIGMA, "seed": SEED} | options)


class TestAgainstSlowLoop:
    @pytest.mark.parametrize("target", [None, 2])
    def test_mean_variance_totals_and_logits(self, target: int | None) -> None:
        model, batch = small_net(dtype=torch.float64), images(3, dtype=torch.float64)
        evidence = explained(model, batch, target=target)
        labels = model(batch).argmax(1) if target is None else torch.full((3,), target)
        assert evidence.label.tolist() == labels.tolist()
        torch.testing.assert_close(evidence.logits, model(batch).detach())
        for i, image in enumerate(batch):
            logits, maps = slow_maps(model, image, int(labels[i]), key=key_bytes(SEED))
            assert rel_l2(evidence.relevance_mean[i], maps.mean(0)) < 1e-6
            assert rel_l2(evidence.relevance_variance[i], maps.var(0)) < 1e-6
            assert rel_l2(evidence.relevance_total[i], maps.sum((1, 2))) < 1e-6
            assert rel_l2(evidence.noisy_logits[i], logits) < 1e-12

    @pytest.mark.parametrize("memory_budget", [1, None])
    def test_quantiles(self, memory_budget: int | None) -> None:
        model, batch = small_net(dtype=torch.float64), images(2, dtype=torch.float64)
        levels = (0.0, 0.25, 0.5, 1.0)
        found = explained(model, batch, quantiles=levels, memory_budget=memory_budget)
        assert found.relevance_quantiles is not None
        assert found.relevance_quantiles.shape == (2, 4, 8, 8)
        for i, image in enumerate(batch):
            _, maps = slow_maps(model, image, int(found.label[i]), key=key_bytes(SEED))
            wanted = torch.from_numpy(np.quantile(maps.numpy(), levels, axis=0))
            assert rel_l2(found.relevance_quantiles[i], wanted) < 1e-6

    def test_normalised_model_is_explained_behind_the_normalisation(self) -> None:
        inner, batch = small_net(dtype=torch.float64), images(1, dtype=torch.float64)
        model = normalized(inner, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
        evidence = explained(model, batch)
        digest = image_digest(batch[0], key_bytes(SEED))
        copies = batch.float() + SIGMA * gaussian_copies(digest, 0, N, batch.shape[1:])
        maps = gradient_times_input(
            inner, model.normalize(copies.double()), evidence.label.expand(N)
        ).sum(1)
        assert rel_l2(evidence.relevance_mean[0], maps.mean(0)) < 1e-6
        assert rel_l2(evidence.relevance_variance[0], maps.var(0)) < 1e-6

    def test_defaults_are_the_papers(self) -> None:
        evidence = explain(small_net(), images(1))
        assert (evidence.n, evidence.sigma) == (PAPER_N, PAPER_SIGMA) == (50, 0.05)


class TestInvariance:
    @pytest.fixture(scope="class")
    @staticmethod
    def batch() -> Tensor:
        return images(6)

    @pytest.fixture(scope="class")
    @staticmethod
    def whole(batch: Tensor) -> Evidence:
        return explained(small_net(), batch)

    @pytest.mark.parametrize("rows", [[0], [5], [3, 3], [5, 4, 3, 2, 1, 0]])
    def test_batch_and_position_exactly(
        self, batch: Tensor, whole: Evidence, rows: list[int]
    ) -> None:
        part = explained(small_net(), batch[rows])
        for name in EXACT:
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
        torch.testing.assert_close(part.logits, whole.logits[rows], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("copies", [1, 2, 3, 5])
    def test_chunk_size_to_rounding(self, batch: Tensor, whole: Evidence, copies: int) -> None:
        model, sizes = small_net(), []
        spy = Wrapped(model, lambda seen: sizes.append(len(seen)))
        first = len(batch) + 1  # the clean passes and the measured one
        budget = copies * saved_bytes(spy, batch[:1])
        sizes.clear()
        part = explained(spy, batch, memory_budget=budget)
        assert max(sizes[first:]) == copies
        assert sum(sizes[first:]) == N * len(batch)
        for name in EXACT:
            ours, theirs = getattr(part, name), getattr(whole, name)
            assert rel_l2(ours.double(), theirs.double()) < 1e-5, name

    def test_repeats_bit_for_bit(self, batch: Tensor, whole: Evidence) -> None:
        again = explained(small_net(), batch)
        assert all(torch.equal(getattr(again, n), getattr(whole, n)) for n in EXACT)

    def test_global_generators_do_not_matter(self, batch: Tensor, whole: Evidence) -> None:
        model = small_net()
        torch.manual_seed(5)
        state = torch.get_rng_state()
        again = explained(model, batch)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(again.relevance_variance, whole.relevance_variance)

    def test_memory_layout_and_type_of_the_images_do_not_matter(
        self, batch: Tensor, whole: Evidence
    ) -> None:
        for same in (batch.to(memory_format=torch.channels_last), batch.double()):
            part = explained(small_net(), same)
            assert all(torch.equal(getattr(part, n), getattr(whole, n)) for n in EXACT)

    def test_more_copies_begin_with_the_same_ones(self, batch: Tensor, whole: Evidence) -> None:
        more = explained(small_net(), batch, n=2 * N)
        torch.testing.assert_close(more.noisy_logits[:, :N], whole.noisy_logits)


class TestKey:
    def test_seed_and_secret_key_change_the_evidence(self) -> None:
        seeds: list[dict[str, Any]] = [{"seed": 0}, {"seed": 1}]
        secrets: list[dict[str, Any]] = [{"key": b"a" * 16}, {"key": b"b" * 16}]
        model, batch = small_net(), images(2)
        runs = [explained(model, batch, **key).relevance_variance for key in seeds + secrets]
        for i, run in enumerate(runs):
            assert all(rel_l2(run, other) > 0.01 for other in runs[:i])

    def test_secret_key_makes_the_seed_irrelevant(self) -> None:
        runs = [explained(small_net(), images(1), key=b"a" * 16, seed=seed) for seed in (0, 1)]
        assert torch.equal(runs[0].noisy_logits, runs[1].noisy_logits)

    def test_short_key_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="3 bytes"):
            explained(small_net(), images(1), key=b"abc")


class TestTargets:
    def test_one_for_all_one_each_and_the_predicted(self) -> None:
        model, batch = small_net(), images(3)
        predicted = explained(model, batch)
        given = explained(model, batch, target=predicted.label)
        assert torch.equal(predicted.relevance_mean, given.relevance_mean)
        each = explained(model, batch, target=torch.tensor([4, 1, 0]))
        for i, target in enumerate([4, 1, 0]):
            alone = explained(model, batch[i : i + 1], target=target)
            assert alone.label.tolist() == [target]
            assert torch.equal(alone.relevance_mean[0], each.relevance_mean[i])

    @pytest.mark.parametrize("target", [-1, CLASSES, torch.tensor([0, 1, CLASSES])])
    def test_unknown_class_is_refused(self, target: Tensor | int) -> None:
        with pytest.raises(ConfigurationError, match="classes 0 … 4"):
            explained(small_net(), images(3), target=target)

    @pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), (0,)])
    def test_wrong_number_of_classes_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputShapeError, match=r"\[3\]"):
            explained(small_net(), images(3), target=torch.zeros(shape, dtype=torch.long))


def limited(limit: int, error: type[RuntimeError], message: str) -> Callable[[Tensor], None]:
    """Return what refuses a batch above ``limit`` as an allocator would."""

    def refuse(batch: Tensor) -> None:
        if len(batch) > limit:
            raise error(message)

    return refuse


CPU_MESSAGE = "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"


class TestOutOfMemory:
    @pytest.mark.parametrize(
        ("error", "message"),
        [(torch.OutOfMemoryError, "CUDA out of memory."), (RuntimeError, CPU_MESSAGE)],
    )
    @pytest.mark.parametrize("limit", [1, 2, 3])
    def test_halves_the_chunk_and_gives_the_right_answer(
        self, error: type[RuntimeError], message: str, limit: int
    ) -> None:
        net, refused, sizes = small_net(), limited(limit, error, message), list[int]()

        def before(batch: Tensor) -> None:
            sizes.append(len(batch))
            refused(batch)

        small = explained(Wrapped(net, before), images(1), n=10)
        assert max(sizes) == 10  # it was really tried, and refused
        assert sum(size for size in sizes if size <= limit) == 1 + 1 + 10
        wanted = explained(net, images(1), n=10)
        for name in EXACT:
            ours, theirs = getattr(small, name), getattr(wanted, name)
            assert rel_l2(ours.double(), theirs.double()) < 1e-5, name

    def test_in_the_backward_pass(self) -> None:
        def after(batch: Tensor, logits: Tensor) -> Tensor:
            def refuse(_: Tensor) -> None:
                if len(batch) > 3:
                    raise torch.OutOfMemoryError("CUDA out of memory.")

            if logits.requires_grad:
                logits.register_hook(refuse)
            return logits

        model = Wrapped(small_net(), after=after)
        ours, theirs = explained(model, images(1)), explained(small_net(), images(1))
        assert rel_l2(ours.relevance_variance, theirs.relevance_variance) < 1e-5

    def test_that_refuses_even_one_copy_is_raised(self) -> None:
        sizes: list[int] = []

        def before(batch: Tensor) -> None:
            sizes.append(len(batch))
            if len(sizes) > 2:  # after the clean pass and the measured one
                raise torch.OutOfMemoryError("CUDA out of memory.")

        with pytest.raises(torch.OutOfMemoryError):
            explained(Wrapped(small_net(), before), images(1))
        assert sizes == [1, 1, 7, 3, 1]

    def test_other_runtime_errors_are_raised_at_once(self) -> None:
        sizes: list[int] = []

        def before(batch: Tensor) -> None:
            sizes.append(len(batch))
            if len(batch) == N:
                raise RuntimeError("cuDNN error")

        with pytest.raises(RuntimeError, match="cuDNN error"):
            explained(Wrapped(small_net(), before), images(1))
        assert sizes == [1, 1, N]

    def test_in_the_clean_pass_of_a_large_batch(self) -> None:
        refuse = limited(3, torch.OutOfMemoryError, "CUDA out of memory.")
        assert len(explained(Wrapped(small_net(), refuse), images(5))) == 5

    def test_in_a_model_whose_first_convolution_has_other_channels_than_the_images(self) -> None:
        class GreyToColour(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = Wrapped(
                    small_net(), limited(3, torch.OutOfMemoryError, "CUDA out of memory.")
                )
                self.eval()

            def forward(self, grey: Tensor) -> Tensor:
                logits: Tensor = self.net(torch.cat([grey, grey, grey], dim=1))
                return logits

        assert len(explained(GreyToColour(), images(1)[:, :1])) == 1


class TestBudget:
    def test_too_small_for_one_copy_means_one_at_a_time(self) -> None:
        sizes: list[int] = []
        model = Wrapped(small_net(), lambda batch: sizes.append(len(batch)))
        explained(model, images(2), memory_budget=1)
        assert sizes == [1, 1, 1] + [1] * (2 * N)

    @pytest.mark.parametrize("factor", [1, 2, 7.9])
    def test_holds_as_many_copies_as_fit(self, factor: float) -> None:
        model, one = small_net(), saved_bytes(small_net(), images(1))
        budget = int(factor * one)
        found = chunk_size(model, images(4), composite=EPSILON, memory_budget=budget)
        assert found == int(factor)

    @pytest.mark.parametrize("budget", [0, -5])
    def test_must_be_positive(self, budget: int) -> None:
        with pytest.raises(ConfigurationError, match=f"memory_budget is {budget}"):
            explained(small_net(), images(1), memory_budget=budget)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"n": 1}, "n is 1"),
            ({"n": 0}, "n is 0"),
            ({"sigma": 0.0}, "sigma is 0"),
            ({"sigma": -0.1}, "sigma is -0.1"),
            ({"sigma": float("nan")}, "sigma is nan"),
            ({"sigma": float("inf")}, "sigma is inf"),
            ({"seed": -1}, "seed is -1"),
            ({"quantiles": [0.5, 1.1]}, "quantiles are"),
            ({"quantiles": [float("nan")]}, "quantiles are"),
        ],
    )
    def test_arguments_out_of_range(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            explained(small_net(), images(1), **options)

    @pytest.mark.parametrize(
        "options", [{"n": 4.5}, {"n": float("nan")}, {"n": float("inf")}, {"seed": 0.5}]
    )
    def test_fractions_of_copies_and_seeds(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError):
            Smoothing(**options)

    def test_smoothing_is_checked_when_made(self) -> None:
        with pytest.raises(ConfigurationError, match="n is 1"):
            Smoothing(n=1)

    def test_input_contract(self) -> None:
        with pytest.raises(InputRangeError):
            explained(small_net(), images(1) * 2)
        with pytest.raises(InputShapeError, match="1 channel"):
            explained(small_net(), images(1)[:, :1])

    def test_model_contract(self) -> None:
        with pytest.raises(TrainingModeError):
            explained(small_net().train(), images(1))
        with pytest.raises(ModelOutputError, match=r"\[1, 8, 2, 2\]"):
            explained(small_net()[:5].eval(), images(1))
        with pytest.raises(UnsupportedOperatorError, match="cosh"):
            explained(Wrapped(small_net(), after=lambda _, logits: logits.cosh()), images(1))
