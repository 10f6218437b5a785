"""The whole protocol on digits: who sees what, resuming, the card and its tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Consensus, Guard, Smoothing
from lrpguard.attacks import choose
from lrpguard.baselines.supervised import Supervised, SupervisedOnMinimal
from lrpguard.baselines.two_sided import TwoSided
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.errors import CalibrationSizeError, ConfigurationError, EvaluationError
from lrpguard.evaluation.candidates import choose as choose_restorations
from lrpguard.evaluation.cards import read_card
from lrpguard.evaluation.evaluate import Settings, evaluate
from lrpguard.evaluation.judging import (
    Detectors,
    content_halves,
    fit_baselines,
    judging_header,
)
from lrpguard.evaluation.paper.card import write_card
from lrpguard.evaluation.protocol import ImageSet, Splits
from lrpguard.evaluation.tables import card_tables, results_page, run_facts
from lrpguard.noise import image_digest
from tests.support import small_net

ATTACKS = choose(["fgsm_8", "cw_0", "noise"])


@pytest.fixture(scope="module")
def splits() -> Splits:
    pytest.importorskip("sklearn", reason="needs lrpguard[demo]")
    digits = load_digit_splits()
    clean, test = digits.calibration, digits.test
    return Splits(
        pool=ImageSet.of(clean.images[:220], clean.labels[:220]),
        test=ImageSet.of(test.images[:24], test.labels[:24]),
    )


def guard() -> Guard:
    return Guard(load_digits_model(), smoothing=Smoothing(n=4, sigma=0.1))


def settings(folder: Path, **changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "attacks": ATTACKS,
        "baselines": ("max-softmax",),
        "restorations": choose_restorations("vote,whitening-random"),
        "out": folder / "out",
        "cache": folder / "cache",
    }
    return Settings(**fields | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def card(splits: Splits, folder: Path) -> dict[str, Any]:
    about = {"model": "digits", "data": "digits", "command": "lrpguard evaluate"}
    return evaluate(
        load_digits_model(), splits, guard=guard(), settings=settings(folder), about=about
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "out" / "rows.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_one_row_for_each_attack_and_image(
    card: dict[str, Any], splits: Splits, folder: Path
) -> None:
    rows = rows_of(folder)
    right = {
        row["digest"]
        for row in rows
        if row["attack"] == "clean" and row["model_label"] == row["label"]
    }

    found = {
        name: {row["digest"] for row in rows if row["attack"] == name}
        for name in ("clean", "fgsm_8", "cw_0", "noise")
    }

    assert found["clean"] == found["noise"] == set(splits.test.digests)
    assert found["fgsm_8"] == found["cw_0"] == right
    assert len(rows) == 2 * len(splits.test) + 2 * len(right)
    assert card["results"]["attacks"]["cw_0"]["attempts"] == len(right)
    assert card["results"]["attacks"]["cw_0"]["success"]["successes"] >= 0.9 * len(right)


def test_success_is_that_of_the_stored_8_bit_images(
    card: dict[str, Any], splits: Splits, folder: Path
) -> None:
    from safetensors.torch import load_file

    model = load_digits_model()
    (path,) = (folder / "cache").glob("cw_0-*.safetensors")
    stored = load_file(path)["images"]
    assert stored.dtype == torch.uint8
    rows = [row for row in rows_of(folder) if row["attack"] == "cw_0"]
    with torch.no_grad():
        predicted = torch.cat([model(image[None].float() / 255).argmax(1) for image in stored])
    assert [row["model_label"] for row in rows] == predicted.tolist()


def test_a_second_run_judges_and_attacks_nothing_anew(
    card: dict[str, Any], splits: Splits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("judged again")

    before = rows_of(folder)
    monkeypatch.setattr("lrpguard.evaluation.judging._records", forbidden)

    again = evaluate(load_digits_model(), splits, guard=guard(), settings=settings(folder))

    assert again["results"] == card["results"]
    assert rows_of(folder) == before


def test_other_restorations_are_noted_in_every_row_and_counted(
    card: dict[str, Any], splits: Splits, folder: Path
) -> None:
    rows = rows_of(folder)
    assert {tuple(row["restorations"]) for row in rows} == {("vote", "whitening-random")}
    assert all(row["restorations"]["vote"] != row["model_label"] for row in rows)

    fooled = [r for r in rows if r["attack"] == "cw_0" and r["model_label"] != r["label"]]
    right = sum(row["restorations"]["vote"] == row["label"] for row in fooled)
    told = card["results"]["restorations"]["attacks"]["cw_0"]["vote"]["told"]
    assert (told["successes"], told["n"]) == (right, len(fooled))
    assert right > 0
    assert card["restorations"]["whitening-random"]["control"]


def test_the_verdicts_are_those_without_other_restorations(
    card: dict[str, Any], splits: Splits, folder: Path, tmp_path: Path
) -> None:
    plain = settings(folder, out=tmp_path, restorations=())
    alone = evaluate(load_digits_model(), splits, guard=guard(), settings=plain)

    assert alone["results"]["restorations"] == {}
    assert alone["results"] | {"restorations": None} == card["results"] | {"restorations": None}
    assert "side by side" not in card_tables(alone)


def test_a_guard_that_stops_early_takes_no_other_restorations() -> None:
    early = Guard(load_digits_model(), smoothing=Smoothing(n=20), stopping=True)
    with pytest.raises(ConfigurationError, match="stops early"):
        Detectors(early, (), choose_restorations("vote"))
    assert Detectors(early, ()).candidates == ()


def test_a_detector_trained_on_attacks_stands_apart_and_on_those_it_did_not_see(
    splits: Splits, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quick(name: str) -> Supervised:
        return SupervisedOnMinimal(attacks=("deepfool",), n=3, sigma=0.1)

    monkeypatch.setattr("lrpguard.evaluation.evaluate.baseline", quick)
    run = settings(
        folder,
        out=tmp_path,
        attacks=choose(["cw_0", "patch"]),
        restorations=(),
        baselines=("supervised-minimal",),
    )
    found = evaluate(load_digits_model(), splits, guard=guard(), settings=run)

    assert found["baselines"]["supervised-minimal"]["saw"] == ["cw", "deepfool", "ead"]
    unseen = found["results"]["unseen"]["supervised-minimal"]
    assert (unseen["attacks"], unseen["seen"]) == (["patch"], ["cw_0"])
    text = card_tables(found)
    beside = text[text.index("### Beside") : text.index("### Trained on attacks")]
    assert "supervised" not in beside
    assert "| supervised-minimal | cw, deepfool, ead | 1 |" in text
    assert "| attack | guard | supervised-minimal (trained) |" in text
    (seen,) = [line for line in text.splitlines() if line.startswith("| CW-L2") and "seen" in line]
    assert seen.endswith("% (seen) |")


def test_a_card_from_before_restorations_were_noted_still_renders(card: dict[str, Any]) -> None:
    old = {name: value for name, value in card.items() if name != "restorations"}
    new = ("restorations", "unseen")
    old["results"] = {k: v for k, v in card["results"].items() if k not in new}

    text = card_tables(old)

    assert "### Attack by attack" in text
    assert "### Restorations" not in text


def test_rows_of_another_run_are_not_mixed_in(
    card: dict[str, Any], splits: Splits, folder: Path
) -> None:
    other = Splits(pool=splits.pool, test=splits.test.part(0, 20))
    with pytest.raises(ConfigurationError, match="another run"):
        evaluate(load_digits_model(), other, guard=guard(), settings=settings(folder))


def test_both_halves_are_those_of_the_guards_own_calibration(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrpguard.calibrator.SPLIT_FROM", len(splits.pool))
    calibrated = guard()
    calibration = calibrated.calibrate(splits.pool.pixels().split(50))

    fit, rest = content_halves(splits.pool)

    assert not set(fit.digests) & set(rest.digests)
    assert (len(fit), len(rest)) == (calibration.fit_n, calibration.n)
    scores = calibrated(rest.pixels()).score.sort().values
    torch.testing.assert_close(scores, calibration.anomalies, atol=1e-9, rtol=0)


def test_a_guard_can_be_held_to_halves_as_the_others_are(
    card: dict[str, Any], splits: Splits
) -> None:
    halved = evaluate(
        load_digits_model(),
        splits,
        guard=guard(),
        settings=Settings(attacks=choose(["noise"]), baselines=("max-softmax",), halves=True),
    )
    found = [(c["guard"]["fit_n"], c["guard"]["calibration_n"]) for c in (halved, card)]
    assert found == [(110, 110), (220, 220)]
    assert "of the other detectors 110 fit, 110 calibrate" in run_facts(card)
    assert "of the other detectors" not in run_facts(halved)


def test_rows_under_another_restoration_are_not_taken(splits: Splits) -> None:
    headers = []
    for how in (Consensus(), Consensus(harm=0.05)):
        made = Guard(load_digits_model(), smoothing=Smoothing(n=4, sigma=0.1), restoration=how)
        made.calibrate(splits.pool.pixels().split(50))
        headers.append(judging_header(Detectors(made, ()), splits.test, seed=0))
    assert headers[0] != headers[1]


@dataclass
class Spy:
    """A baseline that notes what it is shown."""

    name: str = "spy"
    attack_free: bool = True
    saw: tuple[str, ...] = ()
    passes: str = "none"
    fitted: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)

    def fit(self, model: nn.Module, images: Tensor, labels: Tensor) -> Spy:
        self.fitted += [image_digest(image, b"").hex() for image in images]
        assert len(labels) == len(images)
        return self

    def anomaly(self, images: Tensor) -> Tensor:
        self.scored += [image_digest(image, b"").hex() for image in images]
        return images.flatten(1).mean(1).double()


def test_a_baseline_is_fitted_and_calibrated_on_the_pool_alone(splits: Splits) -> None:
    spy = Spy()

    (calibrated,) = fit_baselines([spy], load_digits_model(), splits.pool)

    fit, rest = content_halves(splits.pool)
    assert spy.fitted == list(fit.digests)
    assert spy.scored == list(rest.digests)
    assert len(calibrated.anomalies) == len(rest)
    assert not set(spy.fitted + spy.scored) & set(splits.test.digests)


def test_a_baseline_made_two_sided_is_scored_once(splits: Splits) -> None:
    spy, alone = Spy(), TwoSided(inner=Spy())
    model = load_digits_model()

    _, beside = fit_baselines([spy, TwoSided(inner=spy)], model, splits.pool)
    (expected,) = fit_baselines([alone], model, splits.pool)

    fit, rest = content_halves(splits.pool)
    assert spy.scored == [*rest.digests, *fit.digests]  # the fit half for median and scales
    assert torch.equal(beside.anomalies, expected.anomalies)


def test_a_pool_too_small_for_1_percent_is_refused_before_the_work(splits: Splits) -> None:
    small = Splits(pool=splits.pool.part(0, 100), test=splits.test)
    with pytest.raises(CalibrationSizeError, match=r"50 calibration images for alpha = 0\.01"):
        evaluate(load_digits_model(), small, guard=guard(), settings=Settings(attacks=ATTACKS))


def test_a_guard_of_another_model_is_refused(splits: Splits) -> None:
    with pytest.raises(EvaluationError, match="another model"):
        evaluate(
            load_digits_model(),
            splits,
            guard=Guard(small_net()),
            settings=Settings(attacks=ATTACKS),
        )


def test_the_card_says_how_it_was_made_and_can_be_read_back(
    card: dict[str, Any], splits: Splits, tmp_path: Path
) -> None:
    write_card(card, tmp_path / "card.json")
    read = read_card(tmp_path / "card.json")

    assert read == json.loads(json.dumps(card))
    assert read["splits"]["test"]["digest"] == splits.test.digest
    assert read["splits"]["pool"]["n"] == 220
    counts = {"fit_n": 220, "calibration_n": 220, "crossed": True}
    assert {name: read["guard"][name] for name in counts} == counts
    assert {entry["name"] for entry in read["suite"]} == {"fgsm_8", "cw_0", "noise"}
    assert read["baselines"] == {
        "max-softmax": {
            "attack_free": True,
            "saw": [],
            "passes": read["baselines"]["max-softmax"]["passes"],
        }
    }
    assert read["versions"]["torch"]


def test_tables_show_every_attack_and_detector(card: dict[str, Any]) -> None:
    text = card_tables(card)

    for title in (
        "FGSM 8/255",
        "CW-L2, confidence 0",
        "worst per sample",
        "max-softmax",
        "Gaussian noise",
        "right label made wrong",
        "| **lrpguard**, as it answers |",
        "| vote of the noisy copies (`vote`) |",
        "| whitening random pixels (`whitening-random`, control) |",
        "| attack | guard, end to end | vote | whitening-random |",
    ):
        assert title in text
    page = results_page([card], notes="A note.\n")
    assert page.index("A note.") < page.index("## digits, digits")
    assert "    lrpguard evaluate\n" in page
