"""The paper's experiment on the real ResNet-20 and CIFAR-10, in small."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lrpguard.evaluation.paper import Outcome, Settings, Splits, make_card, run_paper
from lrpguard.evaluation.paper.setup import Experiment, Paths, load_experiment
from lrpguard.rowlog import RowLog

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LRPGUARD_DATA", ROOT.parent / "shared" / "data"))
SETTINGS = Settings(n=8, max_rounds=3)

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA} (set LRPGUARD_DATA)"
)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    paths = Paths(
        weights=DATA / "models" / "resnet20_cifar10.safetensors",
        cifar=DATA / "cifar10" / "test_5000.npz",
    )
    return load_experiment("resnet20", paths, test=6, conformal=19, seed=0)


@pytest.fixture(scope="module")
def outcome(experiment: Experiment) -> Outcome:
    few = replace(experiment.splits.threshold, indices=experiment.splits.threshold.indices[:6])
    splits = Splits(few, experiment.splits.conformal, experiment.splits.test)
    return run_paper(experiment.model, splits, settings=SETTINGS, rows=RowLog(None, {}))


def test_pgd_at_5_of_255_misleads_the_undefended_network(outcome: Outcome) -> None:
    rows = outcome.rows["test"]
    correct = [row for row in rows if row.correct]

    assert len(rows) == 6
    assert len(correct) >= 4, "ResNet-20 is right on 91 % of the test images"
    assert all(row.successful for row in correct)


def test_card_of_real_images_counts_all_of_them(experiment: Experiment, outcome: Outcome) -> None:
    card = make_card(
        "resnet20",
        outcome,
        model=experiment.model,
        settings=SETTINGS,
        image_shape=experiment.image_shape,
        command="",
    )

    assert card["image_shape"] == [3, 32, 32]
    assert card["attack"]["attempted"] == 6
    assert card["conformal"]["n"] == 19
    assert 0 < card["copies_that_keep_their_label"]["clean"]["mean"] <= 1


def test_squeezenet_splits_take_foolbox_for_the_threshold_and_share_nothing() -> None:
    paths = Paths(
        weights=DATA / "models" / "squeezenet1_1_imagenet.safetensors",
        images=DATA / "imagenet_samples",
        calibration_images=DATA / "foolbox_imagenet",
    )

    found = load_experiment("squeezenet1_1", paths, test=300, conformal=400, seed=0)

    assert (found.image_shape, found.pixels) == ((3, 224, 224), 1000)
    assert [len(part) for part in (found.splits.threshold, found.splits.conformal)] == [20, 200]
    assert not set(found.splits.test.indices) & set(found.splits.conformal.indices)
    assert found.splits.threshold.labels[:2] == (243, 559)
    assert found.splits.test.labels[:2] == (0, 2)
