"""Early stopping in the guard: fewer copies, the same false-positive rate, the same determinism."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor, nn

from lrpguard import Calibration, Consensus, Guard, Looks, Smoothing, Verdict, Whitening
from lrpguard.errors import (
    CalibrationMismatchError,
    ConfigurationError,
    NonFiniteScoreError,
    NotCalibratedError,
)
from lrpguard.stopping import replay
from tests.support import Wrapped, images, small_net

LOOKS = Looks((2, 4, 8), (0.7, 0.5), (0.2, 0.4, 1.0))
SMOOTHING = Smoothing(n=8)
CLEAN, FRESH = images(120, seed=1), images(48, seed=2)
ALPHA = 0.2


def calibrated(
    model: nn.Module | None = None, *, detector: str = "combined", looks: Looks | None = LOOKS
) -> Calibration:
    """Calibrate; ``"crossed"`` is the combined detector with all images crossed, not split."""
    guard = Guard(small_net(seed=5) if model is None else model, smoothing=SMOOTHING)
    name = "combined" if detector == "crossed" else detector
    with pytest.MonkeyPatch.context() as patch:
        if detector != "crossed":
            patch.setattr("lrpguard.calibrator.SPLIT_FROM", len(CLEAN))
        return guard.calibrate([CLEAN], alpha=ALPHA, detector=name, looks=looks)


def kind(calibration: Calibration) -> str:
    """Return the name that :func:`calibrated` knows a calibration by."""
    return "crossed" if calibration.crossed else calibration.detector.name


@pytest.fixture(scope="module", params=["combined", "crossed", "paper"])
def calibration(request: pytest.FixtureRequest) -> Calibration:
    return calibrated(detector=request.param)


def stopping(calibration: Calibration, model: nn.Module | None = None) -> Guard:
    net = small_net(seed=5) if model is None else model
    return Guard(net, calibration=calibration, stopping=True)


def same(one: Verdict, other: Verdict) -> bool:
    pairs = [(value, getattr(other, name)) for name, value in vars(one).items()]
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in pairs
    )


class CountsCopies:
    """Counts the images of passes with gradients: the noisy copies."""

    def __init__(self) -> None:
        self.copies = 0

    def __call__(self, batch: Tensor) -> None:
        self.copies += len(batch) if torch.is_grad_enabled() else 0


class TestOutcome:
    def test_is_that_of_the_rule_on_scores_of_every_look(self, calibration: Calibration) -> None:
        guard = stopping(calibration)
        verdict = guard(FRESH)
        table = torch.stack([guard(FRESH, copies=m).score for m in LOOKS.copies], 1)
        wanted = replay(calibration.rule, table)
        assert torch.equal(verdict.flagged, wanted.flagged)
        assert torch.equal(verdict.copies, wanted.copies)
        assert torch.equal(verdict.p_value, wanted.p_value)
        assert torch.equal(verdict.flagged, verdict.p_value <= ALPHA)
        assert set(verdict.copies.tolist()) == set(LOOKS.copies), "too easy to show anything"
        assert len(set(verdict.flagged.tolist())) == 2
        column = [LOOKS.copies.index(m) for m in verdict.copies.tolist()]
        assert torch.equal(verdict.score, table[torch.arange(len(FRESH)), column])

    def test_a_request_alone_is_answered_as_in_a_batch_bit_for_bit(
        self, calibration: Calibration
    ) -> None:
        guard = stopping(calibration)
        whole = guard(FRESH[:16], maps=True)
        for i in range(16):
            alone = guard(FRESH[i : i + 1], maps=True)
            part = {
                name: value[i : i + 1] if isinstance(value, Tensor) else value
                for name, value in vars(whole).items()
            }
            assert same(alone, Verdict(**part | {"status": whole.status[i : i + 1]}))
        backwards = guard(FRESH[:16].flip(0), maps=True)
        assert torch.equal(backwards.score.flip(0), whole.score)
        assert torch.equal(backwards.copies.flip(0), whole.copies)

    def test_the_copies_that_are_not_needed_are_not_run(self, calibration: Calibration) -> None:
        counts = CountsCopies()
        model = Wrapped(small_net(seed=5), counts)
        guard = stopping(calibrated(model, detector=kind(calibration)), model)
        guard.restoration = None
        guard(FRESH[:1])  # measures the memory of one copy
        counts.copies = 0
        verdict = guard(FRESH)
        assert counts.copies == int(verdict.copies.sum()) < 0.8 * 8 * len(FRESH)

    def test_without_it_every_copy_is_made(self, calibration: Calibration) -> None:
        guard = Guard(small_net(seed=5), calibration=calibration)
        verdict = guard(FRESH)
        assert verdict.copies.tolist() == [8] * len(FRESH)
        assert same(verdict, guard(FRESH, copies=8))
        assert torch.equal(verdict.p_value, calibration.p_values(verdict.score))

    def test_maps_are_those_of_the_copies_that_were_made(self, calibration: Calibration) -> None:
        guard = stopping(calibration)
        verdict = guard(FRESH[:12], maps=True)
        assert verdict.relevance is not None
        for m in LOOKS.copies:
            of_m = guard(FRESH[:12], maps=True, copies=m).relevance
            rows = verdict.copies == m
            assert torch.equal(verdict.relevance[rows], of_m[rows])


class TestCopies:
    def test_a_calibration_image_has_its_own_score_at_every_look(
        self, calibration: Calibration
    ) -> None:
        guard = stopping(calibration)
        assert calibration.staged is not None
        known = {score for column in calibration.staged.anomalies.T for score in column.tolist()}
        for m in LOOKS.copies:
            scores = guard(CLEAN[:40], copies=m).score.tolist()
            assert set(scores) & known == set(scores) & set(calibration.at(m).anomalies.tolist())
            if calibration.crossed:
                continue  # those were given by detectors that had not seen the image
            share = 1.0 if calibration.fit_n == 0 else 0.25
            assert len(set(scores) & known) >= share * 40

    def test_fewer_copies_keep_the_rate_by_themselves(self, calibration: Calibration) -> None:
        guard = stopping(calibration)
        verdict = guard(FRESH, copies=2)
        at = calibration.at(2)
        assert verdict.copies.tolist() == [2] * len(FRESH)
        assert torch.equal(verdict.p_value, at.p_values(verdict.score))
        assert (at.copies, at.smoothing.n) == ((2,), 2)

    def test_that_were_not_calibrated_are_refused_with_those_that_were(
        self, calibration: Calibration
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"of 3 copies; it knows \[2, 4, 8\]"):
            stopping(calibration)(FRESH, copies=3)
        with pytest.raises(NotCalibratedError):
            Guard(small_net(), smoothing=SMOOTHING)(FRESH, copies=8)


def test_realised_rate_lies_in_its_band_on_fresh_images() -> None:
    guard = Guard(small_net(), smoothing=SMOOTHING, restoration=None, stopping=True)
    guard.calibrate([images(239, seed=11)], alpha=0.1, detector="paper", looks=LOOKS)
    verdict = guard(images(400, seed=12))
    low, high = betabinom.ppf([0.005, 0.995], 400, 24, 216)  # k = 24 of n + 1 = 240
    assert low <= int(verdict.flagged.sum()) <= high
    assert float(verdict.copies.double().mean()) <= LOOKS.most_copies + 0.5


class TestRestoration:
    def test_consensus_is_held_to_the_evidence_of_clean_images_at_any_look(self) -> None:
        calibration = calibrated()
        guard = Guard(
            small_net(seed=5),
            calibration=calibration,
            restoration=Consensus(harm=0.15),
            stopping=True,
        )
        verdict = guard(images(150, seed=3))
        assert {"clean", "restored", "unknown"} == set(verdict.status)
        early = (verdict.copies < 8) & verdict.flagged
        assert bool(early.any())

    def test_whitening_explains_with_as_many_copies(self) -> None:
        guard = stopping(calibrated(detector="paper"))
        guard.restoration = Whitening(pixels=12, max_rounds=2)
        verdict = guard(FRESH, maps=True)
        assert verdict.changed_pixels is not None
        assert torch.equal(verdict.changed_pixels.flatten(1).any(1), verdict.flagged)


class TestFailures:
    def test_one_request_that_fails_costs_only_itself(self) -> None:
        last = {"dark": False}

        def after(batch: Tensor, logits: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return logits * torch.nan if last["dark"] else logits
            last["dark"] = float(batch.mean()) < 0.2  # of the views, which come before the copies
            return logits

        model = Wrapped(small_net(seed=5), after=after)
        calibration = calibrated(model)
        batch = FRESH[:4].clone()
        batch[2] *= 0.1
        with pytest.raises(NonFiniteScoreError, match=r"images \[2\]"):
            stopping(calibration, model)(batch)
        opens = Guard(model, calibration=calibration, stopping=True, on_failure="fail_open")
        verdict = opens(batch)
        assert [s == "unguarded" for s in verdict.status] == [False, False, True, False]
        assert (verdict.copies == 0).tolist() == [False, False, True, False]

    @pytest.mark.parametrize("copies", [[6, 3], [0], []])
    def test_evidence_at_copies_that_do_not_rise_is_refused(self, copies: list[int]) -> None:
        with pytest.raises(ConfigurationError, match="must rise, from 2 or more"):
            Guard(small_net()).evidence_at(images(1), copies)

    def test_a_calibration_without_looks_is_refused(self) -> None:
        plain = calibrated(detector="paper", looks=None)
        with pytest.raises(ConfigurationError, match="without looks"):
            Guard(small_net(seed=5), calibration=plain, stopping=True)
        with pytest.raises(ConfigurationError, match="without looks"):
            Guard(small_net(seed=5), calibration=plain)(FRESH, copies=2)

    def test_looks_that_do_not_end_at_all_copies_are_refused_before_any_work(self) -> None:
        guard = Guard(small_net(seed=5), smoothing=Smoothing(n=16))
        with pytest.raises(ConfigurationError, match=r"Looks\.of\(16\)"):
            guard.calibrate(iter(()), looks=LOOKS)


class TestCalibration:
    def test_survives_the_file(self, calibration: Calibration, tmp_path: Path) -> None:
        calibration.save(tmp_path / "looks")
        again = Calibration.load(tmp_path / "looks")
        assert again.copies == LOOKS.copies
        assert same(stopping(again)(FRESH, maps=True), stopping(calibration)(FRESH, maps=True))
        again.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "looks").read_bytes()

    def test_last_look_is_the_calibration_without_looks_up_to_rounding(
        self, calibration: Calibration
    ) -> None:
        plain = calibrated(detector=kind(calibration), looks=None)
        assert plain.data_digest == calibration.data_digest
        torch.testing.assert_close(plain.anomalies, calibration.anomalies, rtol=1e-3, atol=1e-3)

    def test_an_interrupted_run_goes_on_with_its_looks(self, tmp_path: Path) -> None:
        guard, file = Guard(small_net(seed=5), smoothing=SMOOTHING), tmp_path / "scores.jsonl"
        options = {"alpha": ALPHA, "detector": "paper", "checkpoint": file}
        guard.calibrate([CLEAN[:60]], looks=LOOKS, **options)  # type: ignore[arg-type]
        resumed = guard.calibrate(CLEAN.split(60), looks=LOOKS, **options)  # type: ignore[arg-type]
        whole = calibrated(detector="paper")
        assert resumed.staged is not None
        assert whole.staged is not None
        assert torch.equal(resumed.staged.anomalies, whole.staged.anomalies)
        with pytest.raises(CalibrationMismatchError, match="another run"):
            guard.calibrate([CLEAN], **options)  # type: ignore[arg-type]

    def test_a_guard_that_stops_calibrates_its_looks_by_itself(self) -> None:
        guard = Guard(small_net(seed=5), smoothing=SMOOTHING, stopping=True)
        assert guard.calibrate([CLEAN], detector="paper").copies == (2, 3, 8)
