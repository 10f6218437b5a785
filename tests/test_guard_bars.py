"""The bars: the same scores in any company, and a wrapped model that is never changed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Consensus, Guard, Verdict, Whitening, normalized
from lrpguard.detector import CombinedDetector
from lrpguard.errors import UnsupportedModelError
from lrpguard.lrp.engine import saved_bytes
from tests.nets import TinyResNet, randomized
from tests.support import FAST, Raises, Wrapped, images, paper_guard, small_net, state_of

CLEAN, FRESH = images(100, seed=1), images(40, seed=2)
WHITENING = Whitening(pixels=12, max_rounds=2)
RESTORING: dict[str, Consensus | Whitening] = {"paper": WHITENING, "combined": Consensus(harm=0.1)}


class Rounding(nn.Module):
    """A network whose last bits depend on the size of the batch, as those of large ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net(seed=5)
        self.eval()

    def forward(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.net(batch) * (1 + 2.0**-22 * (len(batch) % 5 - 2))
        return logits


def guarded(detector: str, model: nn.Module | None = None) -> Guard:
    guard = Guard(model or Rounding(), smoothing=FAST, restoration=RESTORING[detector])
    guard.calibrate(CLEAN.split(25), alpha=0.2, detector=detector)
    return guard


def assert_same_answers(one: Verdict, other: Verdict, *, atol: float = 0) -> None:
    torch.testing.assert_close(one.score, other.score, rtol=1e-5, atol=atol)
    assert torch.equal(one.flagged, other.flagged)
    assert torch.equal(one.restored_label, other.restored_label)
    assert one.status == other.status


def joined(verdicts: list[Verdict], order: Tensor | None = None) -> Verdict:
    """Put the verdicts of several batches together, and back in order."""

    def cat(name: str) -> Tensor:
        whole = torch.cat([getattr(v, name) for v in verdicts])
        return whole if order is None else whole[order.argsort()]

    status = [s for v in verdicts for s in v.status]
    if order is not None:
        status = [status[i] for i in order.argsort().tolist()]
    names = [name for name, value in vars(verdicts[0]).items() if torch.is_tensor(value)]
    tensors: dict[str, Any] = {name: cat(name) for name in names}
    return Verdict(**tensors, status=tuple(status))


@pytest.mark.parametrize("detector", ["paper", "combined"])
class TestInvariance:
    def test_batch_and_position(self, detector: str) -> None:
        guard = guarded(detector)
        whole = guard(FRESH)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        assert_same_answers(joined([guard(row[None]) for row in FRESH]), whole)
        assert_same_answers(joined([guard(part) for part in FRESH.split(7)]), whole)
        assert_same_answers(joined([guard(FRESH[order])], order), whole)

    @pytest.mark.parametrize("copies", [1, 3])
    def test_chunk_size(self, detector: str, copies: int) -> None:
        guard = guarded(detector, small_net(seed=5))
        budget = copies * saved_bytes(guard.model, FRESH[:1])
        small = Guard(
            guard.model,
            calibration=guard.calibration,
            restoration=RESTORING[detector],
            memory_budget=budget,
        )
        # Chunks round differently; combined may be near zero, where nothing is relative.
        assert_same_answers(small(FRESH), guard(FRESH), atol=1e-5 * (detector == "combined"))
        assert set(small._chunks._measured.values()) == {copies}


class TestCalibrationImagesAgain:
    """The hardest requests: their scores are exactly those the guard compares with."""

    def test_combined(self) -> None:
        guard = guarded("combined")
        assert_same_answers(joined([guard(row[None]) for row in CLEAN]), guard(CLEAN))

    def test_paper(self) -> None:
        guard = guarded("paper")
        assert_same_answers(joined([guard(row[None]) for row in CLEAN]), guard(CLEAN))

    def test_p_values_of_combined(self) -> None:
        guard = guarded("combined")
        alone = torch.cat([guard(row[None]).p_value for row in CLEAN])
        assert torch.equal(alone, guard(CLEAN).p_value)


class TestThreads:
    N_THREADS = 8

    def at_once(self, work: Callable[[int], Any]) -> list[Any]:
        barrier = Barrier(self.N_THREADS)

        def start(number: int) -> Any:
            barrier.wait(timeout=30)
            return work(number)

        with ThreadPoolExecutor(self.N_THREADS) as pool:
            return list(pool.map(start, range(self.N_THREADS)))

    def test_one_guard_in_8_threads_equals_sequential_bit_for_bit(self) -> None:
        guard = paper_guard(small_net(seed=5), restoration=WHITENING)
        parts = FRESH.split(5)
        guard._chunks._measured.clear()  # so that the threads also race for the first measurement
        threaded = self.at_once(lambda i: guard(parts[i], maps=True))
        for part, found in zip(parts, threaded, strict=True):
            wanted = guard(part, maps=True)
            assert found.status == wanted.status
            for name, value in vars(wanted).items():
                if torch.is_tensor(value):
                    assert torch.equal(getattr(found, name), value), name

    def test_several_guards_of_one_model_in_several_modes(self) -> None:
        model = small_net(seed=5)
        guards = [paper_guard(model, restoration=WHITENING) for _ in range(2)]
        wanted = guards[0](FRESH[:10]).score

        def work(number: int) -> tuple[Tensor, bool, bool]:
            with torch.inference_mode(number % 2 == 0), torch.no_grad():
                scores = [guards[number % 2](FRESH[:10]).score for _ in range(3)]
            return torch.stack(scores), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        for scores, grad, inference in self.at_once(work):
            assert torch.equal(scores, wanted.expand(3, 10))
            assert (grad, inference) == (True, False)

    def test_training_a_twin_beside_it_is_not_disturbed(self) -> None:
        guard, twin = paper_guard(small_net(seed=5)), small_net(seed=5)
        wanted = torch.autograd.grad(twin(FRESH).pow(2).sum(), list(twin.parameters()))

        def work(number: int) -> list[Tensor]:
            if number % 2:
                guard(FRESH[:10])
                return []
            return list(torch.autograd.grad(twin(FRESH).pow(2).sum(), list(twin.parameters())))

        for found in self.at_once(work)[::2]:
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def resnet() -> nn.Module:
    return randomized(TinyResNet(), dtype=torch.float32)


def hooked_and_half_frozen() -> nn.Module:
    model = small_net()
    model[0].weight.requires_grad_(False)
    model[3].register_forward_hook(lambda *_: None)
    next(model[3].parameters()).register_hook(lambda _: None)
    model(FRESH[:2]).sum().backward()  # and with gradients from a training step
    return model


def backward_hooked() -> nn.Module:
    model = small_net()
    model[3].register_full_backward_hook(lambda *_: None)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": small_net,
    "batch norm, in place, residual": resnet,
    "normalised": lambda: normalized(resnet(), [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]),
    "bfloat16": lambda: small_net().bfloat16(),
    "hooked": hooked_and_half_frozen,
}


class TestModelUnchanged:
    @pytest.mark.parametrize("name", MODELS)
    def test_after_success(self, name: str) -> None:
        model = MODELS[name]()
        before = state_of(model)
        guard = paper_guard(model, restoration=WHITENING)
        assert bool(guard(FRESH[:10], maps=True).flagged.any())
        guard.evidence(FRESH[:2])
        with torch.inference_mode():
            guard.as_classifier()(FRESH[:4])
        guard.train()
        assert state_of(model) == before

    def test_a_full_backward_hook_is_refused_and_left_alone(self) -> None:
        """It would stand between a layer and its rule, unseen."""
        model = backward_hooked()
        before = state_of(model)
        with pytest.raises(UnsupportedModelError, match=r"full backward hook.*handle\.remove"):
            Guard(model, smoothing=FAST)
        assert state_of(model) == before

    @pytest.mark.parametrize("error", [RuntimeError("inside"), KeyboardInterrupt(), MemoryError()])
    @pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
    def test_after_an_error_inside_the_model(self, error: BaseException, at: int) -> None:
        # Calls: clean, measured, copies of both images, then whitening.
        model = Wrapped(small_net(seed=5))
        guard = paper_guard(model, restoration=WHITENING)
        batch = FRESH[guard(FRESH).flagged][:2]
        wanted = guard(batch)
        model.before = Raises(error, at=at)
        before = state_of(model)
        guard._chunks._measured.clear()
        with pytest.raises(type(error)):
            guard(batch)
        assert state_of(model) == before
        assert len(torch.overrides._get_current_function_mode_stack()) == 0
        model.before = lambda _: None
        assert torch.equal(guard(batch).score, wanted.score)

    def test_after_an_error_in_the_backward_pass(self) -> None:
        def after(batch: Tensor, logits: Tensor) -> Tensor:
            def interrupt(_: Tensor) -> None:
                raise KeyboardInterrupt

            if logits.requires_grad and len(batch) == FAST.n:
                logits.register_hook(interrupt)
            return logits

        model = Wrapped(small_net(), after=after)
        before = state_of(model)
        with pytest.raises(KeyboardInterrupt):
            Guard(model, smoothing=FAST).evidence(FRESH[:2])
        assert state_of(model) == before

    def test_the_images_stay_as_they_were(self) -> None:
        guard = paper_guard(restoration=WHITENING)
        batch = FRESH.clone()
        batch[0, 0, 0, 0] = 1 + 5e-7  # will be clipped, in a copy
        before = batch.clone()
        guard(batch)
        assert torch.equal(batch, before)

    def test_a_calibrated_guard_of_a_twin_is_not_touched(self) -> None:
        model = small_net()
        first, second = paper_guard(model), paper_guard(model, alpha=0.1)
        assert first.calibration is not None
        anomalies = first.calibration.anomalies.clone()
        second(FRESH)
        second.calibrate([CLEAN], alpha=0.1)
        assert torch.equal(first.calibration.anomalies, anomalies)
        assert second.calibration is not None
        assert isinstance(second.calibration.detector, CombinedDetector)


class TestAsClassifier:
    @pytest.fixture(scope="class")
    @staticmethod
    def guard() -> Guard:
        return paper_guard(small_net(seed=5), restoration=WHITENING)

    def test_logits_are_the_bare_models_where_unflagged_and_restored_elsewhere(
        self, guard: Guard
    ) -> None:
        verdict, logits = guard(FRESH), guard.as_classifier()(FRESH)
        assert {"clean", "restored"} <= set(verdict.status)
        with torch.no_grad():
            bare = guard.model(FRESH)
        for i, status in enumerate(verdict.status):
            if status == "restored":
                assert int(logits[i].argmax()) == int(verdict.restored_label[i])
                assert int(logits[i].argmax()) != int(bare[i].argmax())
            else:
                torch.testing.assert_close(logits[i], bare[i])

    def test_is_a_drop_in_module(self, guard: Guard) -> None:
        classifier = guard.as_classifier()
        assert isinstance(classifier, nn.Module)
        logits = classifier(FRESH)
        assert logits.shape == (40, 5)
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
        assert not classifier.train().training
        assert torch.equal(nn.Sequential(classifier).train()(FRESH), logits)
        assert [p.data_ptr() for p in classifier.parameters()] == [
            p.data_ptr() for p in guard.model.parameters()
        ]
