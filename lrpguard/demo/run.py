"""The demo: calibrate on digits, attack others, flag, restore, and count what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lrpguard.attacks.pgd import pgd, quantize
from lrpguard.calibration import Calibration
from lrpguard.consensus import Consensus, propose, restored
from lrpguard.demo.digits import DigitSet, load_digit_splits, load_digits_model
from lrpguard.detector import CombinedDetector
from lrpguard.evaluation import Proportion, proportion
from lrpguard.evidence import Evidence
from lrpguard.figures import DemoPanels
from lrpguard.guard import Guard
from lrpguard.noise import key_bytes
from lrpguard.readings import read
from lrpguard.restoration import UNKNOWN, Whitening, whiten
from lrpguard.smoothing import Smoothing, chunk_size
from lrpguard.verdict import Verdict
from lrpguard.views import changed_views

DEMO_N = 50
"""Noisy copies of each digit, as in the paper."""

DEMO_SIGMA = 0.1
"""Standard deviation of the noise on 8 x 8 digits.

Chosen on the calibration split alone: the largest of 0.05, 0.1, 0.15, 0.2 at which at least
98 % of the noisy copies keep their label. Measured there: 99.5, 98.5, 96.6, 92.9 %.
"""

DEMO_ALPHA = 0.05

ATTACK_EPS = (26 / 255, 51 / 255)
"""Attack strengths: about 0.1 and 0.2, usual on small grey digits, in whole 8-bit levels."""

ATTACK_STEPS = 10
"""Steps of PGD, as in the paper."""

DETECTORS = ("combined", "paper")
PICTURED = 5
"""Digits in the picture: the first that the weaker attack fools, whatever becomes of them."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo may vary.

    Attributes:
        n: Noisy copies of each digit.
        sigma: Standard deviation of the noise.
        seed: Seed of the noise and of the attack's start.
    """

    n: int = DEMO_N
    sigma: float = DEMO_SIGMA
    seed: int = 0


@dataclass(frozen=True)
class DemoRow:
    """One counted share.

    Attributes:
        eps: Attack strength on the [0, 1] scale; 0 for clean digits.
        detector: Detector it is about; None where it is about the model alone.
        measure: What is counted; a key of ``lrpguard.demo.table.MEASURES``.
        successes: How often it happened.
        n: Out of how many.
        low: Lower end of the 95 % Wilson interval; NaN where n is 0.
        high: Upper end of it; NaN where n is 0.
    """

    eps: float
    detector: str | None
    measure: str
    successes: int
    n: int
    low: float
    high: float

    @property
    def share(self) -> Proportion:
        """The share with its interval."""
        return Proportion(self.successes, self.n, self.low, self.high)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        settings: What it was run with.
        train_n: Digits the model was trained on.
        fit_n: Digits that fitted the combined detector.
        crossed: Whether those also calibrated it.
        calibration_n: Digits that calibrated each detector, in the order of ``DETECTORS``.
        test_n: Digits that were judged.
        correct: Test digits that the model reads rightly; those are attacked.
        fpr_bands: 95 % band of each detector's false-positive rate.
        rows: The counted shares.
        panels: What the picture shows.
    """

    settings: DemoSettings
    train_n: int
    fit_n: int
    crossed: bool
    calibration_n: tuple[int, ...]
    test_n: int
    correct: int
    fpr_bands: tuple[tuple[float, float], ...]
    rows: tuple[DemoRow, ...]
    panels: tuple[DemoPanels, ...]


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What became of a set of images.

    Attributes:
        label: The model's own labels [B].
        flagged: Whether each detector flags them [B].
        restored: Label after each detector's own restoration, own label where it does not flag,
            -1 where no label was accepted [B].
        control: Label after random pixels were whitened, own label where no detector flags,
            -1 where none was found [B].
    """

    label: Tensor
    flagged: dict[str, Tensor]
    restored: dict[str, Tensor]
    control: Tensor


def run_demo(settings: DemoSettings, *, progress: Callable[[str], None]) -> DemoResult:
    """Run the demo.

    Args:
        settings: What may vary.
        progress: Told what is being done.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        ConfigurationError: A setting is out of its range.
    """
    smoothing = Smoothing(n=settings.n, sigma=settings.sigma, seed=settings.seed)
    splits, model = load_digit_splits(), load_digits_model()
    with _one_thread():
        progress(f"calibrating two detectors on {len(splits.calibration)} clean digits")
        guards = _calibrate(model, quantize(splits.calibration.images), smoothing)
        progress(f"judging {len(splits.test)} other clean digits")
        clean = DigitSet(quantize(splits.test.images), splits.test.labels, splits.test.indices)
        outcome = _judge(model, guards, clean.images)
        rows = _clean_rows(outcome, clean.labels)
        targets = clean.subset((outcome.label == clean.labels).nonzero().flatten())
        panels: tuple[DemoPanels, ...] = ()
        for eps in ATTACK_EPS:
            progress(f"attacking {len(targets)} digits, eps {_levels(eps)}, and judging them")
            attacked = quantize(
                pgd(
                    model,
                    targets.images,
                    targets.labels,
                    eps=eps,
                    steps=ATTACK_STEPS,
                    seed=settings.seed,
                )
            )
            outcome = _judge(model, guards, attacked)
            rows += _attack_rows(eps, outcome, targets.labels)
            fooled = (outcome.label != targets.labels).nonzero().flatten()
            panels = panels or _panels(guards["combined"], targets, attacked, fooled[:PICTURED])
    calibrations = [guard.calibration for guard in guards.values() if guard.calibration]
    return DemoResult(
        settings=settings,
        train_n=len(splits.train),
        fit_n=max(calibration.fit_n for calibration in calibrations),
        crossed=any(calibration.crossed for calibration in calibrations),
        calibration_n=tuple(calibration.n for calibration in calibrations),
        test_n=len(clean),
        correct=len(targets),
        fpr_bands=tuple(calibration.fpr_band() for calibration in calibrations),
        rows=tuple(rows),
        panels=panels,
    )


def _calibrate(model: nn.Module, images: Tensor, smoothing: Smoothing) -> dict[str, Guard]:
    """Return a guard for each detector; the scores are computed once, and kept for the second."""
    guards = {name: Guard(model, smoothing=smoothing) for name in DETECTORS}
    with tempfile.TemporaryDirectory() as folder:
        for name, guard in guards.items():
            guard.calibrate(
                images.split(100),
                alpha=DEMO_ALPHA,
                detector=name,
                checkpoint=Path(folder, "scores.jsonl"),
            )
    return guards


def _judge(model: nn.Module, guards: dict[str, Guard], images: Tensor) -> _Outcome:
    """Judge images by each detector from the same evidence, and restore what each flags.

    As the guard does by default: ``combined`` by consensus, ``paper`` by whitening.
    """
    smoothing = next(iter(guards.values())).smoothing
    evidence = next(iter(guards.values())).evidence(images, views=True)
    flagged, labels = {}, {}
    for name, guard in guards.items():
        assert guard.calibration is not None
        flagged[name], labels[name] = _by_one(guard.calibration, evidence)
    whitened = _whitened(model, smoothing, images, evidence, flagged["paper"], Whitening())
    some = torch.stack(list(flagged.values())).any(0)
    control = _whitened(model, smoothing, images, evidence, some, Whitening(ranking="random"))
    return _Outcome(evidence.label, flagged, labels | {"paper": whitened}, control)


def _by_one(calibration: Calibration, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Return what one detector flags, and the labels by consensus where it proposes any [B]."""
    detector = calibration.detector
    readings = read(evidence, detector.score_names)
    anomaly = detector.anomaly(readings)
    flagged = calibration.flags(calibration.p_values(anomaly))
    if not isinstance(detector, CombinedDetector) or readings.candidates is None:
        return flagged, evidence.label
    painted = detector.painted(readings)
    proposal = propose(readings.candidates, detector.consistency, anomaly, painted)
    accepted = calibration.replacement_p_values(proposal.evidence) <= Consensus().harm
    label = restored(proposal, accepted, evidence).label
    return flagged, torch.where(flagged, label, evidence.label)


def _whitened(
    model: nn.Module,
    smoothing: Smoothing,
    images: Tensor,
    evidence: Evidence,
    flagged: Tensor,
    whitening: Whitening,
) -> Tensor:
    """Return the labels after pixels of the flagged images were whitened [B]."""
    rows = flagged.nonzero().flatten()
    if len(rows) == 0:
        return evidence.label
    restoration = whiten(
        model,
        images[rows],
        evidence.select(rows),
        whitening=whitening,
        smoothing=smoothing,
        key=key_bytes(smoothing.seed),
        chunk=chunk_size(model, images, composite=smoothing.composite, memory_budget=None),
    )
    return evidence.label.index_copy(0, rows, restoration.label)


def _clean_rows(outcome: _Outcome, labels: Tensor) -> list[DemoRow]:
    right = outcome.label == labels
    rows = []
    for name, flagged in outcome.flagged.items():
        unknown = outcome.restored[name] == UNKNOWN
        replaced = (outcome.restored[name] != labels) & ~unknown
        rows += [
            _row(0.0, name, "false_positives", flagged, torch.ones_like(flagged)),
            _row(0.0, name, "harm", replaced, flagged & right),
            _row(0.0, name, "withheld", unknown, flagged & right),
        ]
    return rows


def _attack_rows(eps: float, outcome: _Outcome, labels: Tensor) -> list[DemoRow]:
    fooled = outcome.label != labels
    every = torch.ones_like(fooled)
    control = outcome.control == labels
    rows = [_row(eps, None, "fooled", fooled, every)]
    for name, flagged in outcome.flagged.items():
        right = outcome.restored[name] == labels
        rows += [
            _row(eps, name, "detected_of_fooled", flagged, fooled),
            _row(eps, name, "detected_of_attempts", flagged, every),
            _row(eps, name, "restored_of_detected", right, flagged & fooled),
            _row(eps, name, "control_of_detected", control, flagged & fooled),
            _row(eps, name, "restored_of_fooled", right & flagged, fooled),
            _row(eps, name, "control_of_fooled", control & flagged, fooled),
        ]
    return rows


def _row(eps: float, detector: str | None, measure: str, event: Tensor, among: Tensor) -> DemoRow:
    """Count an event [B] among the images of a mask [B]."""
    share = proportion(int((event & among).sum()), int(among.sum()))
    return DemoRow(eps, detector, measure, share.successes, share.n, share.low, share.high)


def _panels(
    guard: Guard, targets: DigitSet, attacked: Tensor, rows: Tensor
) -> tuple[DemoPanels, ...]:
    """Return what the picture shows of some attacked digits, from the guard's own verdict."""
    if len(rows) == 0:
        return ()
    before = guard(targets.images[rows])
    after = guard(attacked[rows], maps=True)
    return tuple(
        _panel(targets.images[row], attacked[row], int(targets.labels[row]), before, after, i)
        for i, row in enumerate(rows.tolist())
    )


def _panel(
    clean: Tensor, attacked: Tensor, truth: int, before: Verdict, after: Verdict, i: int
) -> DemoPanels:
    assert after.relevance is not None
    assert after.relevance_variance is not None
    return DemoPanels(
        clean=clean.numpy(),
        adversarial=attacked.numpy(),
        relevance=after.relevance[i].numpy(),
        variance=after.relevance_variance[i].numpy(),
        denoised=changed_views(attacked).mean(0).numpy(),
        clean_caption=f"read as {int(before.label[i])}, {_p_text(before, i)}",
        adversarial_caption=f"read as {int(after.label[i])}, {_p_text(after, i)}",
        restored_caption=_restored_text(int(after.restored_label[i]), truth)
        if bool(after.flagged[i])
        else "not flagged",
    )


def _p_text(verdict: Verdict, i: int) -> str:
    flagged = ": flagged" if bool(verdict.flagged[i]) else ""
    return f"p = {float(verdict.p_value[i]):.3f}{flagged}"


def _restored_text(label: int, truth: int) -> str:
    if label == UNKNOWN:
        return "unknown: too little evidence"
    return f"restored to {label}: {'right' if label == truth else 'wrong'}"


def _levels(eps: float) -> str:
    return f"{round(255 * eps)}/255"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: on a model this small, several only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
