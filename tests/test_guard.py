"""The guard: what it answers, and under which circumstances it gives the same answer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lrpguard import Calibration, Guard, Smoothing, Verdict, Whitening, explain, normalized
from lrpguard.errors import (
    CalibrationFileError,
    CalibrationMismatchError,
    ConfigurationError,
    InputRangeError,
    LrpGuardWarning,
)
from lrpguard.fingerprint import model_fingerprint
from lrpguard.noise import key_bytes
from lrpguard.restoration import whiten
from tests.nets import rel_l2
from tests.support import FAST, Wrapped, images, make_calibration, paper_guard, small_net

WHITENING = Whitening(pixels=12, max_rounds=3)
FRESH = images(24, seed=2)


def restoring(**options: Any) -> Guard:
    """Return a guard that flags a third of clean images and restores some of them."""
    return paper_guard(small_net(seed=5), **{"restoration": WHITENING} | options)


@pytest.fixture(scope="module")
def guard() -> Guard:
    return restoring()


@pytest.fixture(scope="module")
def verdict(guard: Guard) -> Verdict:
    made = guard(FRESH, maps=True)
    assert isinstance(made, Verdict)
    assert set(made.status) == {"clean", "restored", "unknown"}, "too easy to show anything"
    return made


def same(one: Verdict, other: Verdict) -> bool:
    """Say whether two verdicts are equal bit for bit, maps included where both have them."""
    pairs = [(value, getattr(other, name)) for name, value in vars(one).items()]
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in pairs
    )


def test_the_evidence_beside_a_verdict_is_what_it_rests_on(guard: Guard, verdict: Verdict) -> None:
    again, evidence = guard.with_evidence(FRESH)

    assert torch.equal(again.restored_label, verdict.restored_label)
    assert torch.equal(again.p_value, verdict.p_value)
    assert verdict.relevance_variance is not None
    assert torch.equal(evidence.relevance_variance, verdict.relevance_variance)
    with pytest.raises(InputRangeError):
        guard.with_evidence(FRESH * 3)


class TestVerdict:
    def test_shapes_types_and_json(self, verdict: Verdict) -> None:
        kinds = {
            n: (list(t.shape), t.dtype) for n, t in vars(verdict).items() if torch.is_tensor(t)
        }
        assert kinds == {
            "label": ([24], torch.int64),
            "logits": ([24, 5], torch.float32),
            "p_value": ([24], torch.float64),
            "score": ([24], torch.float64),
            "flagged": ([24], torch.bool),
            "restored_label": ([24], torch.int64),
            "restored_confidence": ([24], torch.float32),
            "restored_logits": ([24, 5], torch.float32),
            "copies": ([24], torch.int64),
            "relevance": ([24, 8, 8], torch.float32),
            "relevance_variance": ([24, 8, 8], torch.float32),
            "changed_pixels": ([24, 8, 8], torch.bool),
        }
        assert verdict.failure is None
        assert len(json.loads(json.dumps(verdict.to_dicts(), allow_nan=False))) == 24

    def test_label_and_logits_are_the_models_own(self, guard: Guard, verdict: Verdict) -> None:
        with torch.no_grad():
            logits = guard.model(FRESH)
        torch.testing.assert_close(verdict.logits, logits)
        assert torch.equal(verdict.label, logits.argmax(1))

    def test_score_is_the_detectors_and_flags_follow_from_p(
        self, guard: Guard, verdict: Verdict
    ) -> None:
        assert guard.calibration is not None
        evidence = explain(guard.model, FRESH, n=FAST.n)
        wanted = evidence.relevance_variance.double().mean((1, 2))
        torch.testing.assert_close(verdict.score, wanted, rtol=1e-5, atol=0)
        assert torch.equal(verdict.p_value, guard.calibration.p_values(verdict.score))
        assert torch.equal(verdict.flagged, verdict.p_value <= 0.3)
        assert torch.equal(verdict.flagged, verdict.score > guard.calibration.threshold)

    def test_a_p_value_of_exactly_alpha_is_flagged(self) -> None:
        model = small_net(seed=5)
        clean = make_calibration(
            [0.0] * 18 + [1e9], alpha=0.1, fingerprint=model_fingerprint(model)
        )
        verdict = Guard(model, calibration=clean)(FRESH)
        assert verdict.p_value.tolist() == [0.1] * 24
        assert bool(verdict.flagged.all())

    def test_clean_requests_keep_their_answer(self, verdict: Verdict) -> None:
        clean = ~verdict.flagged
        assert [s == "clean" for s in verdict.status] == clean.tolist()
        assert torch.equal(verdict.restored_label[clean], verdict.label[clean])
        assert torch.equal(verdict.restored_logits[clean], verdict.logits[clean])
        own = verdict.logits.softmax(1).amax(1)
        torch.testing.assert_close(verdict.restored_confidence[clean], own[clean])

    def test_restored_requests_have_another_label(self, verdict: Verdict) -> None:
        rows = [i for i, status in enumerate(verdict.status) if status == "restored"]
        assert bool((verdict.restored_label[rows] != verdict.label[rows]).all())
        assert torch.equal(verdict.restored_logits[rows].argmax(1), verdict.restored_label[rows])
        confidence = verdict.restored_logits[rows].softmax(1).amax(1)
        torch.testing.assert_close(verdict.restored_confidence[rows], confidence)

    def test_unknown_requests_say_so(self, verdict: Verdict) -> None:
        rows = [i for i, status in enumerate(verdict.status) if status == "unknown"]
        assert verdict.restored_label[rows].tolist() == [-1] * len(rows)
        assert verdict.restored_confidence[rows].tolist() == [0.0] * len(rows)
        assert torch.equal(verdict.restored_logits[rows], verdict.logits[rows])

    def test_restoration_is_that_of_whiten(self, guard: Guard, verdict: Verdict) -> None:
        rows = verdict.flagged.nonzero().flatten()
        restoration = whiten(
            guard.model,
            FRESH[rows],
            guard.evidence(FRESH[rows]),
            whitening=WHITENING,
            smoothing=FAST,
            key=key_bytes(0),
            chunk=4,
        )
        assert torch.equal(verdict.restored_label[rows], restoration.label)
        assert verdict.changed_pixels is not None
        assert torch.equal(verdict.changed_pixels[rows], restoration.changed_pixels)

    def test_without_whitening_only_flags(self, verdict: Verdict) -> None:
        only = restoring(restoration=None)(FRESH, maps=True)
        assert set(only.status) == {"clean", "flagged"}
        assert torch.equal(only.flagged, verdict.flagged)
        assert torch.equal(only.restored_label, only.label)
        assert torch.equal(only.restored_logits, only.logits)
        assert not bool(only.changed_pixels.any())


class TestMaps:
    def test_are_those_of_the_evidence(self, guard: Guard, verdict: Verdict) -> None:
        evidence = guard.evidence(FRESH)
        assert verdict.relevance is not None
        assert verdict.relevance_variance is not None
        assert torch.equal(verdict.relevance, evidence.relevance_mean)
        assert torch.equal(verdict.relevance_variance, evidence.relevance_variance)

    def test_changed_pixels_are_those_of_flagged_requests(self, verdict: Verdict) -> None:
        assert verdict.changed_pixels is not None
        touched = verdict.changed_pixels.flatten(1).sum(1)
        assert torch.equal(touched > 0, verdict.flagged)
        assert set(touched[verdict.flagged].tolist()) <= {12, 24, 36}

    def test_are_absent_unless_asked_for_and_change_nothing_else(
        self, guard: Guard, verdict: Verdict
    ) -> None:
        plain = guard(FRESH)
        assert plain.relevance is plain.relevance_variance is plain.changed_pixels is None
        for name in ("score", "p_value", "restored_label", "restored_logits"):
            assert torch.equal(getattr(plain, name), getattr(verdict, name))


class TestModes:
    def test_no_grad(self, guard: Guard, verdict: Verdict) -> None:
        with torch.no_grad():
            assert same(guard(FRESH, maps=True), verdict)

    def test_inference_mode_with_images_made_inside(self, guard: Guard, verdict: Verdict) -> None:
        with torch.inference_mode():
            made = FRESH.clone()
            assert made.is_inference()
            inside = guard(made, maps=True)
        assert same(inside, verdict)
        assert same(guard(made, maps=True), verdict)  # inference tensors, used outside

    def test_calibrated_inside_inference_mode(self, verdict: Verdict, tmp_path: Path) -> None:
        with torch.inference_mode():
            made = restoring()
        assert same(made(FRESH, maps=True), verdict)
        assert made.calibration is not None
        made.calibration.save(tmp_path / "inside")
        Calibration.load(tmp_path / "inside")

    def test_images_that_want_gradients(self, guard: Guard, verdict: Verdict) -> None:
        wanting = FRESH.clone().requires_grad_()
        made = guard(wanting, maps=True)
        assert same(made, verdict)
        assert not any(v.requires_grad for v in vars(made).values() if torch.is_tensor(v))
        assert wanting.grad is None

    def test_autocast(self) -> None:
        combined = Guard(small_net(seed=5), smoothing=FAST, restoration=None)
        combined.calibrate([images(100, seed=1)])
        outside = combined(FRESH)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = combined(FRESH)
        torch.testing.assert_close(inside.score, outside.score, rtol=1e-5, atol=0)

    def test_loader_loop(self, guard: Guard, verdict: Verdict) -> None:
        loader = DataLoader(TensorDataset(FRESH, torch.arange(24)), batch_size=7)
        flags = [flag for batch, _ in loader for flag in guard(batch).flagged.tolist()]
        assert flags == verdict.flagged.tolist()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
    def test_images_of_any_floating_type(self, guard: Guard, dtype: torch.dtype) -> None:
        whole = FRESH.half()  # values that every type holds
        assert same(guard(whole.to(dtype)), guard(whole.float()))

    def test_repeats_bit_for_bit(self, guard: Guard, verdict: Verdict) -> None:
        assert same(guard(FRESH, maps=True), verdict)
        assert same(restoring()(FRESH, maps=True), verdict)

    def test_train_leaves_the_model_in_eval(self, guard: Guard, verdict: Verdict) -> None:
        parent = nn.ModuleList([guard, guard.as_classifier()]).train()
        assert parent.training
        assert not any(module.training for module in guard.modules())
        assert guard.train() is guard
        assert guard.eval() is guard
        assert same(guard(FRESH, maps=True), verdict)

    def test_a_deep_copy_is_a_guard_of_its_own(self, guard: Guard, verdict: Verdict) -> None:
        twin = copy.deepcopy(guard)
        assert twin.model is not guard.model
        assert same(twin(FRESH, maps=True), verdict)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_models(self, dtype: torch.dtype) -> None:
        guard = paper_guard(small_net(seed=5).to(dtype), restoration=WHITENING)
        assert guard.calibration is not None
        assert guard.calibration.precision == str(dtype).removeprefix("torch.")
        batch = FRESH.to(dtype)  # the noise is keyed by the pixels that the model sees
        made = guard(batch, maps=True)
        assert made.logits.dtype == made.restored_logits.dtype == dtype
        assert bool(torch.isfinite(made.score).all())
        assert len(set(made.status)) > 1
        float32 = explain(small_net(seed=5), batch, n=FAST.n).relevance_variance.mean((1, 2))
        assert rel_l2(made.score, float32.double()) < 0.2
        json.dumps(made.to_dicts(), allow_nan=False)

    def test_normalised_half_model(self) -> None:
        model = normalized(small_net().half(), [0.5] * 3, [0.25] * 3)
        assert paper_guard(model)(FRESH).logits.dtype == torch.float16

    def test_a_model_that_changes_precision_afterwards_is_refused(self) -> None:
        guard = restoring()
        guard.model.double()
        with pytest.raises(CalibrationMismatchError, match="float64"):
            guard(FRESH)


class TestCompiled:
    def test_model_is_unwrapped_with_a_warning(self, verdict: Verdict) -> None:
        original = small_net(seed=5)
        compiled: Any = torch.compile(original, backend="eager")
        with pytest.warns(LrpGuardWarning, match="unwraps"):
            guard = restoring_with(compiled)
        assert guard.model is original
        assert same(guard(FRESH, maps=True), verdict)

    def test_normalised_model_is_unwrapped_too(self) -> None:
        inner = small_net()
        compiled: Any = torch.compile(inner, backend="eager")
        with pytest.warns(LrpGuardWarning, match="unwraps"):
            wrapped = normalized(compiled, [0.5] * 3, [0.5] * 3)
        assert wrapped.model is inner
        assert len(paper_guard(wrapped)(FRESH)) == 24

    def test_model_compiled_in_place_runs_eagerly(self, verdict: Verdict) -> None:
        calls: list[int] = []

        def backend(graph: Any, _: object) -> Any:
            calls.append(1)
            return graph

        model = small_net(seed=5)
        model.compile(backend=backend)
        with pytest.warns(LrpGuardWarning):
            made = restoring_with(model)(FRESH, maps=True)
        assert same(made, verdict)
        assert calls == []


def restoring_with(model: nn.Module) -> Guard:
    return paper_guard(model, restoration=WHITENING)


class TestCalibrationGiven:
    def test_as_a_file_or_an_object(self, guard: Guard, verdict: Verdict, tmp_path: Path) -> None:
        assert guard.calibration is not None
        path = tmp_path / "clean.safetensors"
        guard.calibration.save(path)
        for given in (path, str(path), guard.calibration):
            again = Guard(small_net(seed=5), calibration=given, restoration=WHITENING)
            assert again.smoothing == FAST
            assert same(again(FRESH, maps=True), verdict)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CalibrationFileError, match="there is no calibration file"):
            Guard(small_net(), calibration=tmp_path / "none")

    @pytest.mark.parametrize(
        "model",
        [
            small_net(seed=6),
            small_net(seed=5, dtype=torch.float64),
            normalized(small_net(seed=5), [0.5] * 3, [0.5] * 3),
            Wrapped(small_net(seed=5)),
        ],
    )
    def test_of_another_model_is_refused(self, guard: Guard, model: nn.Module) -> None:
        with pytest.raises(CalibrationMismatchError):
            Guard(model, calibration=guard.calibration)

    def test_smoothing_that_contradicts_it_is_refused(self, guard: Guard) -> None:
        Guard(small_net(seed=5), calibration=guard.calibration, smoothing=Smoothing(n=4))
        with pytest.raises(CalibrationMismatchError, match="n=5"):
            Guard(small_net(seed=5), calibration=guard.calibration, smoothing=Smoothing(n=5))

    def test_secret_key_changes_the_scores_but_not_the_answer(
        self, guard: Guard, verdict: Verdict
    ) -> None:
        secret = Guard(small_net(seed=5), calibration=guard.calibration, key=b"s" * 32)
        made = secret(FRESH)
        assert not bool((made.score == verdict.score).any())
        assert torch.equal(made.label, verdict.label)
        assert rel_l2(made.score, verdict.score) < 1
        assert same(secret(FRESH), made)


class TestConstruction:
    @pytest.mark.parametrize("key", [b"", b"short", b"l" * 65])
    def test_key_out_of_range(self, key: bytes) -> None:
        with pytest.raises(ConfigurationError, match="secret key"):
            Guard(small_net(), key=key)

    def test_key_of_text_as_from_an_environment_variable(self) -> None:
        with pytest.raises((ConfigurationError, TypeError)):
            Guard(small_net(), key="k" * 32)  # type: ignore[arg-type]

    def test_unknown_policy(self) -> None:
        with pytest.raises(ConfigurationError, match="'open'"):
            Guard(small_net(), on_failure="open")  # type: ignore[arg-type]

    def test_memory_budget_out_of_range(self) -> None:
        with pytest.raises(ConfigurationError, match="memory_budget"):
            Guard(small_net(), memory_budget=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda(verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    guard = restoring_with(small_net(seed=5).cuda())
    for batch in (FRESH, FRESH.cuda()):
        made = guard(batch, maps=True)
        assert all(v.is_cuda for v in vars(made).values() if torch.is_tensor(v))
        torch.testing.assert_close(made.score.cpu(), verdict.score, rtol=1e-3, atol=0)
        assert made.flagged.cpu().tolist() == verdict.flagged.tolist()
