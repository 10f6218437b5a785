"""The guard's default way to restore, and which ways it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrpguard import Calibration, Consensus, Guard, Smoothing, Verdict, Whitening
from lrpguard.attacks.controls import gaussian_noise
from lrpguard.consensus import propose
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.detector import CombinedDetector
from lrpguard.errors import ConfigurationError
from lrpguard.readings import read
from lrpguard.restoration import UNKNOWN
from tests.support import FAST, Raises, Wrapped, images, paper_guard, small_net

CLEAN, FRESH = images(120, seed=1), images(60, seed=2)
HARM = 0.15


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    guard = Guard(small_net(seed=5), smoothing=FAST)
    return guard.calibrate([CLEAN], alpha=0.3)


def restoring(calibration: Calibration, **options: Any) -> Guard:
    return Guard(small_net(seed=5), calibration=calibration, **options)


@pytest.fixture(scope="module")
def verdict(calibration: Calibration) -> Verdict:
    made = restoring(calibration, restoration=Consensus(harm=HARM))(FRESH, maps=True)
    assert isinstance(made, Verdict)
    assert set(made.status) == {"clean", "restored", "unknown"}, "too easy to show anything"
    return made


def rows(verdict: Verdict, status: str) -> list[int]:
    return [i for i, found in enumerate(verdict.status) if found == status]


class TestConsensus:
    def test_labels_are_those_proposed_where_the_evidence_is_rare_on_clean_images(
        self, calibration: Calibration, verdict: Verdict
    ) -> None:
        detector = calibration.detector
        assert isinstance(detector, CombinedDetector)
        found = read(restoring(calibration).evidence(FRESH, views=True), detector.score_names)
        assert found.candidates is not None
        anomaly, painted = detector.anomaly(found), detector.painted(found)
        proposal = propose(found.candidates, detector.consistency, anomaly, painted)
        assert calibration.proposals is not None
        counts = (calibration.proposals >= proposal.evidence[:, None]).sum(1)
        accepted = (1 + counts).double() / (calibration.n + 1) <= HARM
        wanted = torch.where(
            verdict.flagged, torch.where(accepted, proposal.label, UNKNOWN), verdict.label
        )
        assert torch.equal(verdict.restored_label, wanted)

    def test_restored_logits_are_the_models_own_two_exchanged(self, verdict: Verdict) -> None:
        for i in rows(verdict, "restored"):
            old, new = int(verdict.label[i]), int(verdict.restored_label[i])
            wanted = verdict.logits[i].clone()
            wanted[[old, new]] = wanted[[new, old]]
            assert torch.equal(verdict.restored_logits[i], wanted)
            assert int(wanted.argmax()) == new != old
            assert 0 < float(verdict.restored_confidence[i]) <= 1

    def test_unknown_keeps_the_logits(self, verdict: Verdict) -> None:
        unknown = rows(verdict, "unknown")
        assert verdict.restored_label[unknown].tolist() == [UNKNOWN] * len(unknown)
        assert verdict.restored_confidence[unknown].tolist() == [0.0] * len(unknown)
        assert torch.equal(verdict.restored_logits[unknown], verdict.logits[unknown])

    def test_noisy_images_are_flagged_and_keep_their_right_label_or_get_none(self) -> None:
        splits = load_digit_splits()
        guard = Guard(load_digits_model(), smoothing=Smoothing(n=8, sigma=0.1))
        guard.calibrate(splits.calibration.images.split(64))
        noisy = gaussian_noise(splits.test.images[:200], sigma=0.2, seed=1)
        made = guard(noisy)
        right = made.label == splits.test.labels[:200]
        assert int((right & made.flagged).sum()) > 60, "too easy to show anything"
        replaced = right & (made.restored_label != made.label) & (made.restored_label != UNKNOWN)
        assert int(replaced.sum()) < 10

    def test_changes_no_pixels(self, verdict: Verdict) -> None:
        assert verdict.changed_pixels is not None
        assert not bool(verdict.changed_pixels.any())

    def test_less_harm_restores_less_and_flags_the_same(self, calibration: Calibration) -> None:
        restored: list[set[int]] = []
        for harm in (0.02, 0.08, 0.3):
            made = restoring(calibration, restoration=Consensus(harm=harm))(FRESH)
            assert set(rows(made, "restored")) | set(rows(made, "unknown")) == set(
                made.flagged.nonzero().flatten().tolist()
            )
            restored.append(set(rows(made, "restored")))
        assert restored[0] <= restored[1] <= restored[2]
        assert len(restored[0]) < len(restored[2])

    def test_costs_no_pass_beyond_those_of_the_detector(self, calibration: Calibration) -> None:
        seen: list[int] = []

        def count(how: Consensus | None) -> int:
            model = Wrapped(small_net(seed=5))
            guard = Guard(model, smoothing=FAST, restoration=how)
            guard.calibrate([CLEAN], alpha=0.3)
            seen.clear()
            model.before = lambda batch: seen.append(len(batch))
            assert bool(guard(FRESH).flagged.any())
            return sum(seen)

        assert count(Consensus(harm=HARM)) == count(None)

    def test_answers_are_the_same_in_any_company(
        self, calibration: Calibration, verdict: Verdict
    ) -> None:
        guard = restoring(calibration, restoration=Consensus(harm=HARM))
        alone = [guard(image[None]) for image in FRESH]
        assert torch.equal(torch.cat([v.restored_label for v in alone]), verdict.restored_label)
        assert torch.equal(torch.cat([v.score for v in alone]), verdict.score)
        assert [v.status[0] for v in alone] == list(verdict.status)

    def test_survives_the_file(
        self, calibration: Calibration, verdict: Verdict, tmp_path: Path
    ) -> None:
        calibration.save(tmp_path / "guard.safetensors")
        again = Guard(
            small_net(seed=5),
            calibration=tmp_path / "guard.safetensors",
            restoration=Consensus(harm=HARM),
        )(FRESH)
        assert torch.equal(again.score, verdict.score)
        assert torch.equal(again.restored_label, verdict.restored_label)

    def test_classifier_gives_the_exchanged_logits(
        self, calibration: Calibration, verdict: Verdict
    ) -> None:
        guard = restoring(calibration, restoration=Consensus(harm=HARM))
        assert torch.equal(guard.as_classifier()(FRESH), verdict.restored_logits)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_models(self, dtype: torch.dtype) -> None:
        model = small_net(seed=5).to(dtype)
        guard = Guard(model, smoothing=FAST, restoration=Consensus(harm=0.3))
        guard.calibrate([CLEAN.to(dtype)], alpha=0.3)
        made = guard(FRESH.to(dtype))
        assert "restored" in made.status
        assert made.restored_logits.dtype == dtype
        for i in rows(made, "restored"):
            largest = made.restored_logits[i].amax()
            assert made.restored_logits[i, made.restored_label[i]] == largest


class TestAuto:
    def test_is_consensus_for_combined(self, calibration: Calibration) -> None:
        auto = restoring(calibration)(FRESH)
        asked = restoring(calibration, restoration=Consensus())(FRESH)
        assert torch.equal(auto.restored_label, asked.restored_label)
        assert auto.status == asked.status

    def test_is_whitening_for_the_paper(self) -> None:
        auto = paper_guard(small_net(seed=5))(FRESH, maps=True)
        asked = paper_guard(small_net(seed=5), restoration=Whitening())(FRESH, maps=True)
        assert torch.equal(auto.restored_label, asked.restored_label)
        assert auto.changed_pixels is not None
        assert bool(auto.changed_pixels.any())

    def test_combined_may_whiten(self, calibration: Calibration) -> None:
        made = restoring(calibration, restoration=Whitening(pixels=12))(FRESH, maps=True)
        assert made.changed_pixels is not None
        touched: Tensor = made.changed_pixels.flatten(1).any(1)
        assert torch.equal(touched, made.flagged)


class TestRefused:
    @pytest.mark.parametrize("restoration", ["consensus", "Auto", Consensus, True, 0.01])
    def test_unknown_way(self, restoration: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"restoration is .*'auto', Consensus\(\)"):
            Guard(small_net(), restoration=restoration)

    def test_consensus_with_the_papers_calibration(self) -> None:
        paper = paper_guard(small_net(seed=5)).calibration
        with pytest.raises(ConfigurationError, match=r"'paper' detector.*Whitening\(\)"):
            Guard(small_net(seed=5), calibration=paper, restoration=Consensus())

    def test_consensus_before_the_papers_calibration(self) -> None:
        model = Wrapped(small_net())
        guard = Guard(model, smoothing=FAST, restoration=Consensus())
        model.before = Raises(AssertionError("it was run"), at=1)
        with pytest.raises(ConfigurationError, match=r"'paper' detector.*Whitening\(\)"):
            guard.calibrate([CLEAN], detector="paper")
        assert guard.calibration is None
