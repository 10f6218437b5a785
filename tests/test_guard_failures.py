"""What the guard refuses, by name, and what it does when it fails itself."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Calibration, Guard, Whitening
from lrpguard.errors import (
    InputRangeError,
    InputShapeError,
    InputTypeError,
    LrpGuardError,
    ModelOutputError,
    NonFiniteInputError,
    NonFiniteScoreError,
    NotCalibratedError,
    TrainingModeError,
    UnsupportedModelError,
    UnsupportedOperatorError,
)
from lrpguard.fingerprint import model_fingerprint
from tests.support import FAST, Wrapped, images, make_calibration, paper_guard, small_net

FRESH = images(6, seed=2)
POLICIES = ["fail_closed", "fail_open"]


def with_pixel(value: float) -> Tensor:
    batch = FRESH.clone()
    batch[3, 1, 2, 4] = value
    return batch


def calibrated_for(model: nn.Module, **options: Any) -> Guard:
    """Return a guard with a calibration made up for this model, which flags about half."""
    calibration: Calibration = make_calibration(
        [10.0**-k for k in range(20)], alpha=0.3, fingerprint=model_fingerprint(model)
    )
    return Guard(model, calibration=calibration, **options)


class TestBadInput:
    """Refused under either policy: the model's answer to such a request means nothing."""

    @pytest.fixture(scope="class", params=POLICIES)
    @staticmethod
    def guard(request: pytest.FixtureRequest) -> Guard:
        return paper_guard(on_failure=request.param)

    @pytest.mark.parametrize(
        ("batch", "error", "words"),
        [
            ((FRESH - 0.45) / 0.22, InputRangeError, r"lrpguard\.normalized\(model, mean, std\)"),
            (FRESH * 255, InputRangeError, "Divide 8-bit values by 255"),
            ((FRESH * 255).to(torch.uint8), InputTypeError, "images.float() / 255"),
            (with_pixel(torch.nan), NonFiniteInputError, r"images \[3\]"),
            (with_pixel(torch.inf), NonFiniteInputError, r"images \[3\]"),
            (with_pixel(-torch.inf), NonFiniteInputError, r"images \[3\]"),
            (with_pixel(1 + 2e-6), InputRangeError, "span"),
            (with_pixel(-2e-6), InputRangeError, "span"),
            (FRESH[:0], InputShapeError, "empty"),
            (FRESH[0], InputShapeError, r"unsqueeze\(0\)"),
            (FRESH.numpy(), InputTypeError, "ndarray"),
            (None, InputTypeError, "NoneType"),
            (FRESH[:, :1], InputShapeError, r"\[1, 8, 8\].*\[3, 8, 8\]"),
            (torch.rand(2, 3, 16, 16), InputShapeError, r"\[3, 16, 16\].*Resize"),
        ],
    )
    def test_by_name(self, guard: Guard, batch: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words.replace("() /", r"\(\) /")):
            guard(batch)
        with pytest.raises(error):
            guard.as_classifier()(batch)

    @pytest.mark.parametrize("value", [1 + 9e-7, -9e-7])
    def test_rounding_is_clipped(self, guard: Guard, value: float) -> None:
        clipped = with_pixel(min(max(value, 0), 1))
        assert torch.equal(guard(with_pixel(value)).score, guard(clipped).score)

    def test_wrong_channels_without_a_calibration(self) -> None:
        with pytest.raises(InputShapeError, match=r"1 channel.*takes 3"):
            Guard(small_net(), smoothing=FAST).evidence(FRESH[:, :1])


class TestUnready:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_uncalibrated(self, policy: Any) -> None:
        guard = Guard(small_net(), smoothing=FAST, on_failure=policy)
        with pytest.raises(NotCalibratedError, match=r"guard\.calibrate"):
            guard(FRESH)
        assert len(guard.evidence(FRESH)) == 6

    def test_train_mode_at_construction(self) -> None:
        with pytest.raises(TrainingModeError, match=r"model\.eval\(\)"):
            Guard(small_net().train())
        partly = small_net()
        partly[4].train()
        with pytest.raises(TrainingModeError, match="module '4' "):
            Guard(partly)

    @pytest.mark.parametrize("policy", POLICIES)
    def test_train_mode_switched_on_afterwards(self, policy: Any) -> None:
        guard = paper_guard(on_failure=policy)
        guard.model.train()
        for call in (guard, guard.evidence, guard.as_classifier()):
            with pytest.raises(TrainingModeError):
                call(FRESH)
        guard.model.eval()
        assert len(guard(FRESH)) == 6

    @pytest.mark.parametrize("model", [None, lambda x: x, "resnet18", torch.jit.ScriptModule()])
    def test_no_eager_module(self, model: Any) -> None:
        with pytest.raises(UnsupportedModelError):
            Guard(model)

    def test_exported_program(self) -> None:
        program = torch.export.export(small_net(), (FRESH,))
        for model in (program, program.module()):
            with pytest.raises(UnsupportedModelError):
                Guard(model)  # type: ignore[arg-type]


def nan_logits(batch: Tensor, logits: Tensor) -> Tensor:
    return logits * torch.nan if not torch.is_grad_enabled() else logits


def nan_on_copies(batch: Tensor, logits: Tensor) -> Tensor:
    return logits * torch.nan if torch.is_grad_enabled() else logits


def unknown_operator(batch: Tensor, logits: Tensor) -> Tensor:
    return torch.cosh(logits)


def broken_on_copies(batch: Tensor, logits: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        raise RuntimeError("cuBLAS error")
    return logits


def out_of_memory(batch: Tensor, logits: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return logits


FAILURES = [
    (nan_logits, ModelOutputError, r"NaN or infinite logits for images \[0, 1, 2, 3, 4, 5\]"),
    (nan_on_copies, NonFiniteScoreError, r"scores of images \[0, 1, 2, 3, 4, 5\]"),
    (unknown_operator, UnsupportedOperatorError, "torch.cosh"),
    (broken_on_copies, RuntimeError, "cuBLAS error"),
    (out_of_memory, torch.OutOfMemoryError, "out of memory"),
]


class TestFailurePolicy:
    @pytest.mark.parametrize(("after", "error", "words"), FAILURES)
    def test_fail_closed_raises(self, after: Any, error: type[Exception], words: str) -> None:
        guard = calibrated_for(Wrapped(small_net(), after=after))
        with pytest.raises(error, match=words):
            guard(FRESH)

    @pytest.mark.parametrize(("after", "error", "words"), FAILURES)
    def test_fail_open_gives_the_models_own_answer_marked(
        self,
        after: Any,
        error: type[Exception],
        words: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        model = Wrapped(small_net(), after=after)
        guard = calibrated_for(model, on_failure="fail_open")
        with caplog.at_level(logging.ERROR, logger="lrpguard"):
            verdict = guard(FRESH)
        with torch.no_grad():
            bare = model(FRESH)
        torch.testing.assert_close(verdict.logits, bare, equal_nan=True)
        assert torch.equal(verdict.label, bare.argmax(1))
        assert torch.equal(verdict.restored_label, verdict.label)
        assert verdict.status == ("unguarded",) * 6
        assert not bool(verdict.flagged.any())
        assert bool(verdict.p_value.isnan().all())
        assert bool(verdict.score.isnan().all())
        assert verdict.failure is not None
        assert verdict.failure.startswith(error.__name__)
        assert words.split("[")[0].rstrip("\\") in verdict.failure
        assert caplog.text.count("a request goes unguarded") == 6
        torch.testing.assert_close(guard.as_classifier()(FRESH), bare, equal_nan=True)

    def test_fail_open_verdict_is_json(self) -> None:
        model = Wrapped(small_net(), after=broken_on_copies)
        records = calibrated_for(model, on_failure="fail_open")(FRESH).to_dicts()
        assert json.loads(json.dumps(records, allow_nan=False))[0]["p_value"] is None

    def test_fail_open_leaves_the_other_requests_of_the_batch_guarded(self) -> None:
        # Else whoever shares a batch with an attacker's request goes unguarded.
        def after(batch: Tensor, logits: Tensor) -> Tensor:
            white = torch.is_grad_enabled() and bool(batch.mean() > 0.9)
            return logits * torch.nan if white else logits

        guard = calibrated_for(Wrapped(small_net(), after=after), on_failure="fail_open")
        bad = FRESH.clone()
        bad[3] = 1
        verdict = guard(bad)
        assert verdict.status[3] == "unguarded"
        for i in (0, 1, 2, 4, 5):
            assert verdict.status[i] == guard(bad[i : i + 1]).status[0] != "unguarded"

    def test_fail_open_recovers_with_the_next_request(self) -> None:
        broken = [True]

        def after(batch: Tensor, logits: Tensor) -> Tensor:
            if torch.is_grad_enabled() and broken[0]:
                raise RuntimeError("once")
            return logits

        guard = calibrated_for(Wrapped(small_net(), after=after), on_failure="fail_open")
        assert guard(FRESH).failure == "RuntimeError: once"
        broken[0] = False
        verdict = guard(FRESH)
        assert verdict.failure is None
        assert "unguarded" not in verdict.status

    @pytest.mark.parametrize("policy", POLICIES)
    def test_a_model_that_fails_itself_raises_its_own_error(self, policy: Any) -> None:
        def before(batch: Tensor) -> None:
            raise ZeroDivisionError("the model's own")

        guard = calibrated_for(Wrapped(small_net(), before), on_failure=policy)
        with pytest.raises(ZeroDivisionError, match="the model's own"):
            guard(FRESH)

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    def test_fail_open_does_not_swallow_an_interruption(
        self, interrupt: type[BaseException]
    ) -> None:
        def after(batch: Tensor, logits: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise interrupt
            return logits

        guard = calibrated_for(Wrapped(small_net(), after=after), on_failure="fail_open")
        with pytest.raises(interrupt):
            guard(FRESH)

    def test_a_model_that_breaks_on_whitened_images_restores_nothing(self) -> None:
        def after(batch: Tensor, logits: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return logits
            many_white = (batch.amin(1) == 1).flatten(1).sum(1) > 4
            return logits.masked_fill(many_white[:, None], torch.nan)

        guard = calibrated_for(
            Wrapped(small_net(), after=after), restoration=Whitening(pixels=6, max_rounds=1)
        )
        verdict = guard(FRESH)
        assert bool(verdict.flagged.any())
        assert bool(torch.isfinite(verdict.restored_confidence).all())
        assert "restored" not in verdict.status


class TestOutputOfTheModel:
    @pytest.mark.parametrize(
        "change",
        [
            lambda logits: logits[:, :1],
            lambda logits: logits[:, :, None],
            lambda logits: logits[:-1],
            lambda logits: (logits,),
            lambda logits: {"logits": logits},
            lambda logits: logits.argmax(1),
        ],
    )
    def test_other_than_logits_is_refused(self, change: Any) -> None:
        model = Wrapped(small_net(), after=lambda _, logits: change(logits))
        with pytest.raises(ModelOutputError, match="logits"):
            calibrated_for(model)(FRESH)

    def test_model_without_gradient_is_refused(self) -> None:
        class Silent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = small_net()
                self.eval()

            @torch.no_grad()
            def forward(self, batch: Tensor) -> Tensor:
                logits: Tensor = self.net(batch)
                return logits

        with pytest.raises(LrpGuardError, match="no_grad"):
            calibrated_for(Silent())(FRESH)
