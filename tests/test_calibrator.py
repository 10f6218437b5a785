"""A calibration run: the split, the checkpoint, and the false-positive rate that comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lrpguard import Calibration, Evidence, Guard, Smoothing
from lrpguard.calibrator import SPLIT_FROM, split_key
from lrpguard.consensus import propose
from lrpguard.detector import COMBINED_SCORES, CombinedDetector
from lrpguard.errors import (
    CalibrationError,
    CalibrationMismatchError,
    CalibrationSizeError,
    ConfigurationError,
    InputRangeError,
    InputShapeError,
    InputTypeError,
    NonFiniteScoreError,
    TrainingModeError,
)
from lrpguard.fingerprint import model_fingerprint
from lrpguard.noise import image_digest
from lrpguard.readings import Readings, read
from lrpguard.scores import SCORES
from lrpguard.version import __version__
from lrpguard.views import VIEW_COUNT
from tests.support import FAST, Raises, Wrapped, images, small_net

N_IMAGES = 100
CLEAN = images(N_IMAGES, seed=1)


def calibrated(batches: Iterable[Any], **options: Any) -> Calibration:
    model = options.pop("model", None) or small_net()
    smoothing = options.pop("smoothing", FAST)
    return Guard(model, smoothing=smoothing).calibrate(batches, **options)


def same(one: Calibration, other: Calibration) -> bool:
    """Say whether two calibrations are equal to the last bit, but for the time they were made."""
    states = [c.detector.state() for c in (one, other)]
    fields = [f.name for f in dataclasses.fields(Calibration)]
    plain = set(fields) - {"detector", "anomalies", "proposals", "created"}
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and torch.equal(one.anomalies, other.anomalies)
        and same_proposals(one.proposals, other.proposals)
        and one.detector.score_names == other.detector.score_names
        and states[0].keys() == states[1].keys()
        and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    )


def same_proposals(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


@pytest.fixture(scope="module")
def whole() -> Calibration:
    """All images fit and calibrate, crossed: there are few."""
    return calibrated(CLEAN.split(10))


@pytest.fixture(scope="module")
def halves() -> Calibration:
    """One half fits and the other calibrates, as with many images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrpguard.calibrator.SPLIT_FROM", N_IMAGES)
        return calibrated(CLEAN.split(10))


PASSES = 1 + VIEW_COUNT
"""Images that go through the model without gradients for each that is scored."""


def clean_passes(seen: list[int]) -> Callable[[Tensor], None]:
    """Note the images of passes without gradients: each image that is scored, and its views."""

    def before(batch: Tensor) -> None:
        if not torch.is_grad_enabled():
            seen.append(len(batch))

    return before


class TestOutcome:
    def test_records_what_it_was_made_for(self, whole: Calibration) -> None:
        assert whole.alpha == 0.05
        assert whole.smoothing == FAST
        assert whole.image_shape == (3, 8, 8)
        assert whole.fingerprint == model_fingerprint(small_net())
        assert whole.precision == "float32"
        assert whole.version == __version__
        assert whole.created.endswith("+00:00")
        assert len(bytes.fromhex(whole.data_digest)) == 32

    def test_few_images_all_fit_and_all_calibrate(self, whole: Calibration) -> None:
        assert (whole.fit_n, whole.n, whole.crossed) == (N_IMAGES, N_IMAGES, True)
        wanted = CombinedDetector.fit(_in_order())
        assert isinstance(whole.detector, CombinedDetector)
        assert torch.equal(wanted.reference, whole.detector.reference)
        assert torch.equal(wanted.root, whole.detector.root)

    def test_crossed_images_are_scored_by_detectors_that_have_not_seen_them(
        self, whole: Calibration
    ) -> None:
        found = _in_order()
        anomalies, proposals = [], []
        for part in range(10):
            rows = torch.arange(N_IMAGES) % 10 == part
            without, seen = CombinedDetector.fit(found.select(~rows)), found.select(rows)
            anomalies.append(without.anomaly(seen))
            assert seen.candidates is not None
            proposal = propose(
                seen.candidates, without.consistency, anomalies[-1], without.painted(seen)
            )
            proposals.append(proposal.evidence)
        assert torch.equal(torch.cat(anomalies).sort().values, whole.anomalies)
        assert whole.proposals is not None
        assert torch.equal(torch.cat(proposals).sort().values, whole.proposals)

    def test_images_are_split_from_a_thousand_on(self) -> None:
        assert SPLIT_FROM == 1000

    def test_half_of_the_images_fit_the_combined_detector(self, halves: Calibration) -> None:
        assert isinstance(halves.detector, CombinedDetector)
        assert (halves.fit_n, halves.n, halves.crossed) == (50, 50, False)
        assert halves.detector.score_names == COMBINED_SCORES
        assert halves.detector.reference.shape == (50, 1 + len(COMBINED_SCORES))

    def test_fit_and_calibration_images_are_disjoint(self, halves: Calibration) -> None:
        assert isinstance(halves.detector, CombinedDetector)
        found = _readings()
        fitted = _fitted(found, halves)
        assert int(fitted.sum()) == halves.fit_n
        assert torch.equal(
            halves.detector.anomaly(found.select(~fitted)).sort().values, halves.anomalies
        )

    def test_fit_is_that_of_the_detector_on_the_fit_images_in_the_order_of_the_split(
        self, halves: Calibration
    ) -> None:
        wanted = CombinedDetector.fit(_in_order().select(slice(50)))
        assert isinstance(halves.detector, CombinedDetector)
        assert torch.equal(wanted.reference, halves.detector.reference)
        assert torch.equal(wanted.root, halves.detector.root)

    def test_proposals_are_those_of_the_calibration_images(self, halves: Calibration) -> None:
        found, detector = _readings(), halves.detector
        assert found.candidates is not None
        assert isinstance(detector, CombinedDetector)
        anomaly, painted = detector.anomaly(found), detector.painted(found)
        every = propose(found.candidates, detector.consistency, anomaly, painted).evidence
        assert halves.proposals is not None
        assert len(halves.proposals) == halves.n
        assert torch.equal(every[~_fitted(found, halves)].sort().values, halves.proposals)

    def test_the_paper_keeps_no_proposals(self) -> None:
        assert calibrated(CLEAN.split(10), detector="paper").proposals is None

    def test_the_paper_needs_no_fit(self) -> None:
        calibration = calibrated(CLEAN.split(10), detector="paper")
        assert (calibration.fit_n, calibration.n) == (0, N_IMAGES)
        evidence = Guard(small_net(), smoothing=FAST).evidence(CLEAN)
        wanted = evidence.relevance_variance.double().mean((1, 2)).sort().values
        assert torch.equal(calibration.anomalies, wanted)

    def test_anomalies_are_sorted(self, whole: Calibration) -> None:
        assert bool((whole.anomalies.diff() >= 0).all())
        assert whole.anomalies.dtype == torch.float64

    def test_guard_uses_it_from_now_on(self) -> None:
        guard = Guard(small_net(), smoothing=FAST)
        calibration = guard.calibrate([CLEAN[:30]], detector="paper", alpha=0.2)
        assert guard.calibration is calibration
        assert guard(CLEAN[:3]).p_value.shape == (3,)

    def test_a_failed_run_leaves_the_old_calibration(self) -> None:
        guard = Guard(small_net(), smoothing=FAST)
        old = guard.calibrate([CLEAN[:30]], detector="paper")
        with pytest.raises(InputRangeError):
            guard.calibrate([CLEAN[:30], CLEAN * 2], detector="paper")
        assert guard.calibration is old


def _readings() -> Readings:
    """Return what a calibration reads of the clean images."""
    guard = Guard(small_net(), smoothing=FAST)
    parts = [guard.evidence(batch, views=True) for batch in CLEAN.split(10)]
    return read(Evidence.concatenate(parts), tuple(SCORES))


def _in_order() -> Readings:
    """Return the same in the order of the split, which the images' content decides."""
    digests = [image_digest(image, b"").hex() for image in CLEAN]
    order = sorted(range(N_IMAGES), key=lambda i: split_key(digests[i]))
    return _readings().select(torch.tensor(order))


def _fitted(found: Readings, calibration: Calibration) -> Tensor:
    """Return which images fitted: their chroma noise, of which no two share a value, says so."""
    assert isinstance(calibration.detector, CombinedDetector)
    column = 1 + COMBINED_SCORES.index("chroma_noise")
    return torch.isin(found.column("chroma_noise"), calibration.detector.reference[:, column])


class TestImages:
    def test_tuple_batches_of_a_real_loader(self, whole: Calibration) -> None:
        data = TensorDataset(CLEAN, torch.arange(N_IMAGES))
        assert same(calibrated(DataLoader(data, batch_size=10)), whole)

    def test_a_generator_of_batches(self, whole: Calibration) -> None:
        assert same(calibrated(batch for batch in CLEAN.split(10)), whole)

    def test_a_loader_without_a_length(self, whole: Calibration) -> None:
        class Stream(IterableDataset[Tensor]):
            def __iter__(self) -> Iterator[Tensor]:
                return iter(CLEAN)

        assert same(calibrated(DataLoader(Stream(), batch_size=10), progress=True), whole)

    def test_order_of_the_batches_does_not_matter(self, whole: Calibration) -> None:
        assert same(calibrated(reversed(CLEAN.split(10))), whole)

    def test_shuffled_loader_gives_the_same_split(self, whole: Calibration) -> None:
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(CLEAN), 10, shuffle=True, generator=generator)
        shuffled = calibrated(loader)
        assert shuffled.data_digest == whole.data_digest
        assert isinstance(shuffled.detector, CombinedDetector)
        assert isinstance(whole.detector, CombinedDetector)
        torch.testing.assert_close(
            shuffled.detector.reference, whole.detector.reference, rtol=1e-4, atol=1e-5
        )

    def test_duplicates_count_once(self, whole: Calibration) -> None:
        twice = [*CLEAN.split(10), torch.cat([CLEAN[:3], CLEAN[:3]]), CLEAN[7:9]]
        assert same(calibrated(twice), whole)

    def test_duplicates_within_a_batch_are_scored_once(self) -> None:
        seen: list[int] = []
        model = Wrapped(small_net(), clean_passes(seen))
        batch = torch.cat([CLEAN[:20], CLEAN[:20].flip(0)])
        assert calibrated([batch], model=model, detector="paper").n == 20
        assert sum(seen) == 20 * PASSES

    def test_a_copy_in_float64_is_a_duplicate(self) -> None:
        batches = [CLEAN[:30], CLEAN[:30].double()]
        assert calibrated(batches, detector="paper").n == 30

    def test_mixed_sizes_are_refused(self) -> None:
        batches = [CLEAN[:30], torch.rand(2, 3, 16, 16)]
        with pytest.raises(InputShapeError, match=r"\[3, 16, 16\] after one of \[3, 8, 8\]"):
            calibrated(batches, detector="paper")

    @pytest.mark.parametrize(
        ("batch", "error"),
        [
            (CLEAN * 255, InputRangeError),
            ((CLEAN * 255).to(torch.uint8), InputTypeError),
            ({"key": CLEAN}, InputTypeError),
            (CLEAN[0], InputShapeError),
            (CLEAN[:0], InputShapeError),
        ],
    )
    def test_input_contract(self, batch: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            calibrated([batch])

    def test_a_tensor_in_place_of_batches_is_refused_with_the_mend(self) -> None:
        with pytest.raises(InputShapeError, match="batch"):
            calibrated(CLEAN)


class TestRefusals:
    def test_no_images(self) -> None:
        with pytest.raises(CalibrationSizeError, match="no images"):
            calibrated([])

    def test_too_few_for_alpha(self) -> None:
        with pytest.raises(CalibrationSizeError, match="18 calibration images"):
            calibrated([CLEAN[:18]], detector="paper")
        with pytest.raises(CalibrationSizeError, match="98 calibration images"):
            calibrated([CLEAN[:98]], alpha=0.01)

    def test_halves_too_small_for_alpha_are_crossed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lrpguard.calibrator.SPLIT_FROM", N_IMAGES)
        assert calibrated([CLEAN], alpha=1 / 51).n == 50
        found = calibrated([CLEAN], alpha=0.01)
        assert (found.crossed, found.fit_n, found.n) == (True, N_IMAGES, N_IMAGES)
        with pytest.raises(CalibrationSizeError, match=r"100 calibration images.*at least 199"):
            calibrated([CLEAN], alpha=0.005)

    @pytest.mark.parametrize("count", [39, 44])
    def test_too_few_for_the_fit(self, count: int) -> None:
        with pytest.raises(CalibrationSizeError, match=rf"{count} clean images.*at least 45"):
            calibrated([CLEAN[:count]])

    @pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 1.5}, {"detector": "mine"}])
    def test_impossible_wishes_before_any_work(self, options: dict[str, Any]) -> None:
        read: list[int] = []

        def batches() -> Iterable[Tensor]:
            for batch in CLEAN.split(10):
                read.append(len(batch))
                yield batch

        with pytest.raises(ConfigurationError):
            calibrated(batches(), **options)
        assert read == []

    def test_train_mode(self) -> None:
        guard = Guard(small_net(), smoothing=FAST)
        guard.model.train()
        with pytest.raises(TrainingModeError):
            guard.calibrate([CLEAN])

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_non_finite_scores(self, bad: float) -> None:
        def after(batch: Tensor, logits: Tensor) -> Tensor:
            return logits * bad if torch.is_grad_enabled() else logits

        with pytest.raises(NonFiniteScoreError, match="30 of 30 clean images"):
            calibrated([CLEAN[:30]], model=Wrapped(small_net(), after=after), detector="paper")


class TestCheckpoint:
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("power cut")])
    @pytest.mark.parametrize("at", [1, 2, 9, 16])
    def test_resumes_where_it_stopped_with_the_same_calibration(
        self, tmp_path: Path, error: BaseException, at: int
    ) -> None:
        checkpoint, batches = tmp_path / "scores.jsonl", CLEAN.split(20)
        failing = Wrapped(small_net(), Raises(error, at=at))
        with pytest.raises(type(error)):
            calibrated(batches, model=failing, checkpoint=checkpoint)
        kept = checkpoint.read_text().count('{"key"')
        assert kept % 20 == 0

        seen: list[int] = []
        resumed = Wrapped(small_net(), clean_passes(seen))
        calibration = calibrated(batches, model=resumed, checkpoint=str(checkpoint))
        assert sum(seen) == (N_IMAGES - kept) * PASSES  # what was done is not done again
        assert same(calibration, calibrated(batches, model=Wrapped(small_net())))

    def test_interruption_midway_keeps_what_was_done(self, tmp_path: Path) -> None:
        def batches() -> Iterable[Tensor]:
            yield from CLEAN.split(10)[:5]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrated(batches(), checkpoint=tmp_path / "scores.jsonl")
        assert (tmp_path / "scores.jsonl").read_text().count('{"key"') == 50

    def test_a_finished_run_is_not_computed_again(self, tmp_path: Path, whole: Calibration) -> None:
        checkpoint = tmp_path / "scores.jsonl"
        calibrated(CLEAN.split(10), checkpoint=checkpoint)
        before = checkpoint.read_bytes()
        failing = Guard(small_net(), smoothing=FAST)
        failing._smooth = Raises(AssertionError("computed again"), at=1)  # type: ignore[method-assign, assignment]
        assert same(failing.calibrate(CLEAN.split(10), checkpoint=checkpoint), whole)
        assert checkpoint.read_bytes() == before

    def test_cut_off_last_line_is_computed_again(self, tmp_path: Path, whole: Calibration) -> None:
        checkpoint = tmp_path / "scores.jsonl"
        calibrated(CLEAN.split(10), checkpoint=checkpoint)
        checkpoint.write_bytes(checkpoint.read_bytes()[:-40])
        calibration = calibrated(CLEAN.split(10), checkpoint=checkpoint)
        assert calibration.data_digest == whole.data_digest
        assert checkpoint.read_text().count('{"key"') == N_IMAGES

    def test_scores_of_images_no_longer_given_are_left_out(self, tmp_path: Path) -> None:
        checkpoint = tmp_path / "scores.jsonl"
        calibrated(CLEAN.split(10), checkpoint=checkpoint)
        fewer = calibrated(CLEAN[:96].split(10), checkpoint=checkpoint)
        assert same(fewer, calibrated(CLEAN[:96].split(10)))

    def test_serves_another_alpha_and_detector(self, tmp_path: Path) -> None:
        checkpoint = tmp_path / "scores.jsonl"
        calibrated(CLEAN.split(10), checkpoint=checkpoint)
        options: dict[str, Any] = {"alpha": 0.1, "detector": "paper"}
        again = calibrated(CLEAN.split(10), checkpoint=checkpoint, **options)
        assert same(again, calibrated(CLEAN.split(10), **options))

    @pytest.mark.parametrize(
        "change",
        [
            {"model": small_net(seed=1)},
            {"model": small_net(dtype=torch.float64)},
            {"smoothing": Smoothing(n=5)},
            {"smoothing": Smoothing(n=4, sigma=0.06)},
            {"smoothing": Smoothing(n=4, seed=1)},
        ],
    )
    def test_of_another_run_is_refused(self, tmp_path: Path, change: dict[str, Any]) -> None:
        checkpoint = tmp_path / "scores.jsonl"
        calibrated([CLEAN[:30]], detector="paper", checkpoint=checkpoint)
        before = checkpoint.read_bytes()
        with pytest.raises(CalibrationMismatchError, match="another run"):
            calibrated([CLEAN[:30]], detector="paper", checkpoint=checkpoint, **change)
        assert checkpoint.read_bytes() == before

    def test_of_another_key_is_refused_and_the_key_is_not_in_the_file(self, tmp_path: Path) -> None:
        checkpoint, key = tmp_path / "scores.jsonl", b"0123456789abcdef"
        guard = Guard(small_net(), smoothing=FAST, key=key)
        guard.calibrate([CLEAN[:30]], detector="paper", checkpoint=checkpoint)
        with pytest.raises(CalibrationError):
            calibrated([CLEAN[:30]], detector="paper", checkpoint=checkpoint)
        assert key not in checkpoint.read_bytes()
        assert key.hex() not in checkpoint.read_text()

    def test_a_file_that_is_no_checkpoint_is_not_destroyed(self, tmp_path: Path) -> None:
        labels = tmp_path / "labels.csv"
        labels.write_text("file,label\ncat.png,3\n")
        with pytest.raises(CalibrationError):
            calibrated([CLEAN[:30]], detector="paper", checkpoint=labels)
        assert labels.read_text() == "file,label\ncat.png,3\n"


class TestRealisedRate:
    @pytest.mark.parametrize("detector", ["paper", "combined"])
    def test_lies_in_its_band_on_fresh_images(self, detector: str) -> None:
        calibration_images = 120
        guard = Guard(small_net(), smoothing=FAST, restoration=None)
        guard.calibrate([images(calibration_images, seed=11)], alpha=0.1, detector=detector)
        assert guard.calibration is not None
        assert guard.calibration.n == 120
        fresh = 400
        flagged = int(guard(images(fresh, seed=12)).flagged.sum())
        low, high = betabinom.ppf([0.005, 0.995], fresh, 12, 109)  # k = 12 of n + 1 = 121
        assert low <= flagged <= high


def test_progress_goes_to_standard_error_alone(capsys: pytest.CaptureFixture[str]) -> None:
    calibrated(CLEAN.split(10), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "10/10" in err
    calibrated(CLEAN.split(10))
    assert capsys.readouterr() == ("", "")


def test_hooks_of_the_wrapped_model_do_not_stay(whole: Calibration) -> None:
    model: nn.Module = small_net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calibrated(CLEAN.split(10), model=model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
