"""The guard on real networks and real images."""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor, nn

from lrpguard import Calibration, Guard, NormalizedModel, Smoothing, Whitening, explain
from lrpguard.evaluation.cifar_resnet import MEAN, STD
from lrpguard.loading import batches, load_data, load_model
from lrpguard.lrp import conservation
from lrpguard.lrp.engine import saved_bytes
from lrpguard.noise import image_digest
from tests.nets import gradient_times_input, rel_l2

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LRPGUARD_DATA", ROOT.parent / "shared" / "data"))
NETS = ["squeezenet", "resnet20"]

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA} (set LRPGUARD_DATA)"
)


@cache
def network(name: str) -> nn.Module:
    """Return a real classifier of pixels in [0, 1]."""
    if name == "resnet20":
        return load_model(
            "lrpguard.evaluation.cifar_resnet:resnet20",
            weights=DATA / "models" / "resnet20_cifar10.safetensors",
            mean=list(MEAN),
            std=list(STD),
        ).model
    return load_model(
        "torchvision:squeezenet1_1",
        weights=DATA / "models" / "squeezenet1_1_imagenet.safetensors",
    ).model


@cache
def pictures(name: str, count: int) -> Tensor:
    """Return the first ``count`` images of a fixed shuffle, each of its own content."""
    if name == "resnet20":
        images = np.load(DATA / "cifar10" / "test_5000.npz")["images"]
        rows = np.random.default_rng(0).permutation(len(images))[:count]
        return torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float() / 255
    loaded = load_model(
        "torchvision:squeezenet1_1",
        weights=DATA / "models" / "squeezenet1_1_imagenet.safetensors",
    )
    source = load_data(DATA / "imagenet_samples", preprocessing=loaded.preprocessing)
    rows = np.random.default_rng(0).permutation(len(source))[:count]
    return torch.cat([images for _, images in batches(source, 10, indices=rows.tolist())])


@pytest.mark.parametrize("name", NETS)
class TestRelevance:
    def test_is_conserved_in_float64(self, name: str) -> None:
        model = load_double(name)
        books = conservation(model, pictures(name, 2).double())
        assert books.residual <= 1e-10
        assert abs(books.input) > 0.01 * abs(books.logit)

    def test_is_gradient_times_input_in_float64(self, name: str) -> None:
        model, batch = load_double(name), pictures(name, 1).double()
        evidence = explain(model, batch, n=2, sigma=1e-9)  # noise too small to matter
        wanted = gradient_times_input(model.model, model.normalize(batch)).sum(1)
        assert rel_l2(evidence.relevance_mean.double(), wanted) < 1e-5

    def test_logits_are_the_bare_models(self, name: str) -> None:
        model, batch = network(name), pictures(name, 3)
        with torch.no_grad():
            bare = model(batch)
        torch.testing.assert_close(explain(model, batch, n=2).logits, bare)


def load_double(name: str) -> NormalizedModel:
    """Return a copy of the network in float64."""
    model = copy.deepcopy(network(name)).double()
    assert isinstance(model, NormalizedModel)
    return model


class TestResNet20:
    @pytest.fixture(scope="class")
    @staticmethod
    def guard() -> Guard:
        guard = Guard(network("resnet20"), smoothing=Smoothing(n=8))
        guard.calibrate(pictures("resnet20", 60).split(20), alpha=0.1, detector="paper")
        return guard

    def test_realised_rate_is_as_promised(self, guard: Guard) -> None:
        assert guard.calibration is not None
        assert guard.calibration.n == 60
        fresh = pictures("resnet20", 120)[60:]
        first = {image_digest(image, b"") for image in pictures("resnet20", 60)}
        assert not first & {image_digest(image, b"") for image in fresh}
        only_flags = Guard(guard.model, calibration=guard.calibration, restoration=None)
        flagged = int(only_flags(fresh).flagged.sum())
        low, high = betabinom.ppf([0.001, 0.999], 60, 6, 55)  # k = 6 of n + 1 = 61
        assert low <= flagged <= high

    def test_batch_and_chunk_invariance(self, guard: Guard, tmp_path: Path) -> None:
        batch = pictures("resnet20", 140)[120:]
        whole = guard(batch)
        assert guard.calibration is not None
        guard.calibration.save(tmp_path / "clean.safetensors")
        chunked = Guard(
            network("resnet20"),
            calibration=tmp_path / "clean.safetensors",
            memory_budget=3 * saved_bytes(guard.model, batch[:1]),
        )
        for verdicts in ([guard(row[None]) for row in batch], [chunked(batch.flip(0))]):
            score = torch.cat([v.score for v in verdicts])
            flagged = torch.cat([v.flagged for v in verdicts])
            restored = torch.cat([v.restored_label for v in verdicts])
            if len(verdicts) == 1:
                score, flagged, restored = (t.flip(0) for t in (score, flagged, restored))
            torch.testing.assert_close(score, whole.score, rtol=1e-5, atol=0)
            assert torch.equal(flagged, whole.flagged)
            assert torch.equal(restored, whole.restored_label)


class TestCombinedOnResNet20:
    @pytest.fixture(scope="class")
    @staticmethod
    def guard() -> Guard:
        guard = Guard(network("resnet20"), smoothing=Smoothing(n=8), restoration=None)
        calibration = guard.calibrate(pictures("resnet20", 100).split(50), alpha=0.1)
        assert (calibration.n, calibration.fit_n, calibration.crossed) == (100, 100, True)
        return guard

    def test_realised_rate_is_as_promised(self, guard: Guard) -> None:
        fresh = pictures("resnet20", 160)[100:]
        low, high = betabinom.ppf([0.001, 0.999], 60, 10, 91)  # k = 10 of n + 1 = 101
        assert low <= int(guard(fresh).flagged.sum()) <= high

    def test_noise_is_what_no_clean_image_looks_like(self, guard: Guard) -> None:
        noise = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert float(guard(noise).p_value.max()) <= 0.1

    def test_calibration_images_again_one_by_one(self, guard: Guard) -> None:
        clean = pictures("resnet20", 100)[:50]
        whole, alone = guard(clean), [guard(row[None]) for row in clean]
        score, flagged = (torch.cat([getattr(v, n) for v in alone]) for n in ("score", "flagged"))
        torch.testing.assert_close(score, whole.score, rtol=1e-5, atol=0)
        assert torch.equal(flagged, whole.flagged)


class TestSqueezeNet:
    def test_from_calibration_to_restoration(self, tmp_path: Path) -> None:
        model, images = network("squeezenet"), pictures("squeezenet", 14)
        guard = Guard(model, smoothing=Smoothing(n=4), restoration=Whitening(max_rounds=1))
        guard.calibrate(images[:10].split(5), alpha=0.3, detector="paper")
        assert guard.calibration is not None
        guard.calibration.save(tmp_path / "clean.safetensors")
        assert Calibration.load(tmp_path / "clean.safetensors").image_shape == (3, 224, 224)

        verdict = guard(images[10:], maps=True)
        assert verdict.relevance is not None
        assert verdict.changed_pixels is not None
        assert bool(torch.isfinite(verdict.relevance).all())
        touched = verdict.changed_pixels.flatten(1).sum(1)
        assert set(touched[verdict.flagged].tolist()) <= {1004}
        assert set(touched[~verdict.flagged].tolist()) <= {0}
        alone = torch.cat([guard(row[None]).score for row in images[10:]])
        torch.testing.assert_close(alone, verdict.score, rtol=1e-5, atol=0)
