"""The robust classifier: its training's parts, and that weights and card belong together."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lrpguard
from lrpguard.evaluation.cifar_resnet import MEAN, STD, resnet8
from lrpguard.evaluation.paper.setup import DATA_VARIABLE
from scripts import train_robust
from scripts.train_robust import LEVELS, MARGIN, NOISE, cropped, judge, load, perturbed, train

RESULTS = train_robust.ROOT / "docs" / "results"


def test_crops_are_moved_or_mirrored_images() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.arange(1.0, 33.0).expand(64, 3, 32, 32)  # each column its own value
    found = cropped(ramp, generator=generator)
    steps = {round(float(row[16]) - float(row[15])) for row in found[:, 0, 16]}
    middle = {round(float(row[16])) for row in found[:, 0, 16]}
    assert found.shape == ramp.shape
    assert steps == {1, -1}
    assert max(middle) - min(middle) > MARGIN
    assert set(found.unique().tolist()) <= set(range(33))  # 0 is beyond the border


def test_perturbed_images_are_one_step_from_noise_around_them() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    generator = torch.Generator().manual_seed(0)
    images = torch.full((4, 3, 32, 32), 0.5)
    far = (perturbed(model, images, torch.arange(4), generator) - images).abs().max()
    assert LEVELS / 255 < float(far) <= (NOISE + 1) * LEVELS / 255 + 1e-6


def test_training_keeps_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_robust, "HELD_OUT", 8)
    monkeypatch.setattr(train_robust, "BATCH_SIZE", 8)
    shares = iter([(8, 2), (8, 4), (8, 3)])
    kept = []

    def judged(model: torch.nn.Module, *_: object, **__: object) -> tuple[int, int]:
        kept.append({name: part.clone() for name, part in model.state_dict().items()})
        return next(shares)

    monkeypatch.setattr(train_robust, "judge", judged)
    torch.manual_seed(0)
    model = resnet8()
    images, labels = torch.rand(24, 3, 32, 32), torch.arange(24) % 10
    records = train(model, images, labels, epochs=3, seed=0)
    assert [record["robust"] for record in records] == [0.25, 0.5, 0.375]
    assert not model.training
    assert all(torch.equal(part, kept[1][name]) for name, part in model.state_dict().items())
    assert not torch.equal(kept[0]["linear.weight"], kept[1]["linear.weight"])


def test_the_weights_are_those_of_the_card() -> None:
    path = RESULTS / "robust_resnet8.safetensors"
    assert path.stat().st_size <= 600_000
    network = resnet8().eval()
    network.load_state_dict(load_file(path))
    data = Path(os.environ.get(DATA_VARIABLE, "")) / "cifar10" / "test_5000.npz"
    if not data.is_file():
        pytest.skip(f"needs {data.name} in the folder that {DATA_VARIABLE} names")
    card = json.loads((RESULTS / "robust_resnet8.json").read_text(encoding="utf-8"))
    images, labels = load(data)
    clean, robust = judge(
        lrpguard.normalized(network, MEAN, STD), images[::25], labels[::25], steps=10
    )
    for hits, name in ((clean, "clean"), (robust, "robust")):
        share = card[name][0] / card[name][1]
        assert abs(hits / 200 - share) <= 4 * (share * (1 - share) / 200) ** 0.5
