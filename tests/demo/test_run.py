"""The demo, with fewer noisy copies than it takes by default."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lrpguard import Smoothing
from lrpguard.attacks.pgd import quantize
from lrpguard.cli import app
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.demo.run import (
    ATTACK_EPS,
    DEMO_N,
    DEMO_SIGMA,
    DETECTORS,
    PICTURED,
    DemoResult,
    DemoRow,
    DemoSettings,
    _calibrate,
    _judge,
    run_demo,
)
from lrpguard.demo.table import MEASURES, format_result, to_record
from lrpguard.evaluation import proportion
from lrpguard.views import changed_views


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(told: list[str]) -> DemoResult:
    return run_demo(DemoSettings(n=6), progress=told.append)


def find(result: DemoResult, measure: str, detector: str | None, eps: float = 0.0) -> DemoRow:
    (row,) = (
        row
        for row in result.rows
        if (row.measure, row.detector, row.eps) == (measure, detector, eps)
    )
    return row


def test_every_share_has_its_wilson_interval(result: DemoResult) -> None:
    for row in result.rows:
        again = proportion(row.successes, row.n)
        assert str(row.share) == str(again)
        if row.n:
            assert 0 <= row.low <= row.share.rate <= row.high <= 1
        else:
            assert math.isnan(row.low)
            assert math.isnan(row.high)


def test_clean_false_positives_are_what_the_calibration_promises(result: DemoResult) -> None:
    for detector, (low, high) in zip(DETECTORS, result.fpr_bands, strict=True):
        row = find(result, "false_positives", detector)
        assert row.n == 400
        assert row.low <= high  # the interval of the measured share meets the band
        assert row.high >= low


def test_the_counts_fit_together(result: DemoResult) -> None:
    for eps in ATTACK_EPS:
        fooled = find(result, "fooled", None, eps)
        assert fooled.n == result.correct
        for detector in DETECTORS:
            detected = find(result, "detected_of_fooled", detector, eps)
            assert detected.n == fooled.successes
            attempts = find(result, "detected_of_attempts", detector, eps)
            assert attempts.n == result.correct
            assert attempts.successes >= detected.successes
            for what in ("restored", "control"):
                of_detected = find(result, f"{what}_of_detected", detector, eps)
                of_fooled = find(result, f"{what}_of_fooled", detector, eps)
                assert of_detected.n == detected.successes
                assert of_fooled.n == fooled.successes
                assert of_detected.successes == of_fooled.successes
    for detector in DETECTORS:
        false = find(result, "false_positives", detector)
        harm, withheld = (find(result, name, detector) for name in ("harm", "withheld"))
        # The model was right on these, and a restoration ends in another label or in none.
        assert harm.successes + withheld.successes == harm.n <= false.successes


def test_the_stronger_attack_fools_more(result: DemoResult) -> None:
    weak, strong = (find(result, "fooled", None, eps) for eps in ATTACK_EPS)
    assert 0.2 < weak.share.rate < strong.share.rate


def test_some_attacks_are_noticed_and_some_labels_restored(result: DemoResult) -> None:
    eps = ATTACK_EPS[0]
    detected = find(result, "detected_of_attempts", "combined", eps)
    false = find(result, "false_positives", "combined")
    assert detected.low > false.high
    assert find(result, "restored_of_detected", "combined", eps).successes > 0


def test_the_parts_of_the_data_are_those_of_the_splits(result: DemoResult) -> None:
    assert result.train_n == 797
    assert result.test_n == 400
    assert (result.fit_n, *result.calibration_n) == (600, 600, 600)
    assert result.correct == 398


def test_every_row_is_in_the_table_and_every_measure_in_a_row(result: DemoResult) -> None:
    text = format_result(result)
    assert all(str(row.share) in text for row in result.rows)
    assert {row.measure for row in result.rows} == set(MEASURES)
    assert max(map(len, text.splitlines())) <= 105
    assert "95 % Wilson intervals" in text
    assert "seed 0" in text
    assert "does not know of the guard" in text


def test_the_record_is_plain_and_complete(result: DemoResult) -> None:
    record = json.loads(json.dumps(to_record(result)))
    assert len(record["rows"]) == len(result.rows) == 4 * 2 - 2 + len(ATTACK_EPS) * 13
    first = record["rows"][0]
    assert first["rate"] == first["successes"] / first["n"]
    assert record["settings"] == {
        "n": 6,
        "sigma": DEMO_SIGMA,
        "seed": 0,
        "alpha": 0.05,
        "attack": "pgd",
        "steps": 10,
    }


def test_the_picture_shows_the_first_digits_that_were_fooled(result: DemoResult) -> None:
    assert len(result.panels) == PICTURED
    model = load_digits_model()
    for panel in result.panels:
        images = np.stack([panel.clean, panel.adversarial])
        before, after = model(torch.from_numpy(images)).argmax(1).tolist()
        assert before != after
        assert f"read as {before}," in panel.clean_caption
        assert f"read as {after}," in panel.adversarial_caption
        assert np.abs(images[1] - images[0]).max() <= ATTACK_EPS[0] + 1e-6
        assert panel.denoised.shape == (1, 8, 8)
        wanted = changed_views(torch.from_numpy(panel.adversarial)).mean(0).numpy()
        assert np.array_equal(panel.denoised, wanted)
        flagged = panel.restored_caption != "not flagged"
        assert ("flagged" in panel.adversarial_caption) == flagged
        assert panel.restored_caption.startswith(("restored to", "unknown") if flagged else "not")


def test_flags_and_restored_labels_are_those_of_the_guard() -> None:
    """The demo shares one evidence among detectors; the guard's own verdicts must agree."""
    smoothing = Smoothing(n=4, sigma=DEMO_SIGMA)
    splits, model = load_digit_splits(), load_digits_model()
    images = quantize(splits.calibration.images)
    noisy = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    fresh = quantize(torch.cat([splits.test.images[:28], noisy]))
    guards = _calibrate(model, images, smoothing)
    outcome = _judge(model, guards, fresh)
    for name, guard in guards.items():
        verdict = guard(fresh)
        assert torch.equal(outcome.label, verdict.label)
        assert torch.equal(outcome.flagged[name], verdict.flagged)
        assert torch.equal(outcome.restored[name], verdict.restored_label)
        assert bool(verdict.flagged.any())
    unflagged = ~torch.stack(list(outcome.flagged.values())).any(0)
    assert torch.equal(outcome.control[unflagged], outcome.label[unflagged])


def test_it_says_what_it_does(result: DemoResult, told: list[str]) -> None:
    assert result is not None
    assert [step.split()[0] for step in told] == [
        "calibrating",
        "judging",
        "attacking",
        "attacking",
    ]


def test_it_leaves_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="sigma"):
        run_demo(DemoSettings(n=2, sigma=-1.0), progress=lambda step: None)
    assert torch.get_num_threads() == before


def test_sigma_is_chosen_as_its_comment_says() -> None:
    images = load_digit_splits().calibration.images
    model = load_digits_model()
    label = model(images).argmax(1)
    generator = torch.Generator().manual_seed(0)
    kept = []
    for sigma in (DEMO_SIGMA, DEMO_SIGMA + 0.05):
        noise = sigma * torch.randn((20, *images.shape), generator=generator)
        noisy = model((images + noise).flatten(0, 1)).argmax(1).view(20, -1)
        kept.append(float((noisy == label).double().mean()))
    assert kept[0] >= 0.98 > kept[1]
    assert DEMO_N == 50


def test_the_command_prints_the_rows_and_writes_the_picture(
    result: DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DemoSettings] = []

    def already_run(settings: DemoSettings, *, progress: Callable[[str], None]) -> DemoResult:
        progress("calibrating")
        asked.append(settings)
        return result

    monkeypatch.setattr("lrpguard.cli.demo.run_demo", already_run)
    out = tmp_path / "demo.png"
    command = ["demo", "--n", "6", "--seed", "3", "--out", str(out)]
    for_people = CliRunner().invoke(app, command)
    for_programs = CliRunner().invoke(app, [*command, "--json"])
    assert for_people.exit_code == for_programs.exit_code == 0
    assert asked == [DemoSettings(n=6, seed=3)] * 2
    assert format_result(result) in for_people.stdout
    assert f"wrote {out}" in for_people.stdout
    record = json.loads(for_programs.stdout)
    assert record["rows"] == to_record(result)["rows"]
    assert record["picture"] == str(out)
    assert for_programs.stderr.startswith("... calibrating\n")
    with Image.open(out) as picture:
        width, height = picture.size
        assert (width, picture.format) == (1100, "PNG")
        assert height > 1000


def test_without_matplotlib_there_is_a_table_but_no_picture(
    result: DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrpguard.cli.demo.run_demo", lambda settings, progress: result)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "demo.png"
    done = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert done.exit_code == 0
    assert format_result(result) in done.stdout
    assert "no picture: figures need matplotlib" in done.stderr
    assert not out.exists()
