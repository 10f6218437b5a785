"""ART's detectors through our adapters: its own scores, trained as they say."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from lrpguard.attacks import pgd, quantize
from lrpguard.baselines import baseline
from lrpguard.baselines.art import ArtSubsetScan
from lrpguard.baselines.features import activations
from lrpguard.errors import MissingDependencyError
from tests.support import images, small_net

CLEAN = images(60, seed=1)


def labels() -> torch.Tensor:
    return torch.as_tensor(small_net()(CLEAN).argmax(1))


class TestWithArt:
    @pytest.fixture(autouse=True)
    @staticmethod
    def needs_art() -> None:
        pytest.importorskip("art", reason="needs lrpguard[baselines]")

    def test_subset_scan_is_the_largest_berk_jones_statistic(self) -> None:
        model = small_net()
        known = activations(model, CLEAN).penultimate.numpy()
        test = images(3, seed=2)
        seen = activations(model, test).penultimate.numpy()
        wanted = [best_statistic(row, known) for row in seen]

        got = baseline("art-subset-scan").fit(model, CLEAN, labels()).anomaly(test)

        assert got.tolist() == pytest.approx(wanted, rel=1e-6)

    def test_subset_scan_of_an_image_without_an_unusual_feature_is_zero(self) -> None:
        fitted = baseline("art-subset-scan").fit(small_net(), CLEAN, labels())
        assert isinstance(fitted, ArtSubsetScan)
        assert fitted.fitted is not None
        least = np.full(fitted.fitted.state.bgd_data.shape[1], -1e9, dtype=np.float32)
        assert float(fitted._one(fitted.fitted.state, least)) == 0

    @pytest.mark.parametrize("name", ["art-binary-activation", "art-binary-input"])
    def test_trained_detectors_rank_their_own_attack_above_clean_images(self, name: str) -> None:
        model = small_net()
        fitted = baseline(name, eps=0.3, epochs=40).fit(model, CLEAN, labels())
        test = images(40, seed=5)
        attacked = pgd(model, test, model(test).argmax(1), eps=0.3, steps=10, seed=1)
        clean, adversarial = fitted.anomaly(test), fitted.anomaly(quantize(attacked))

        assert float(adversarial.median()) > float(clean.median())
        assert not fitted.attack_free

    def test_seed_decides_the_trained_weights(self) -> None:
        fits = [
            baseline("art-binary-activation", eps=0.3, epochs=1, seed=seed).fit(
                small_net(), CLEAN, labels()
            )
            for seed in (1, 2)
        ]
        first, second = (fitted.anomaly(CLEAN[:3]) for fitted in fits)
        assert not torch.allclose(first, second)


def best_statistic(values: np.ndarray, known: np.ndarray) -> float:
    """Return the largest ``count * log(1 / alpha)`` over levels alpha of at most one half.

    That is Berk and Jones' statistic of the features whose p-values are at most alpha.
    """
    p = np.array([(known[:, j] >= v).sum() + 1 for j, v in enumerate(values)]) / (len(known) + 1)
    return float(max((p <= alpha).sum() * -np.log(alpha) for alpha in p[p <= 0.5]))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "art"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "art", None)
    with pytest.raises(MissingDependencyError, match=r"lrpguard\[baselines\]"):
        baseline("art-subset-scan").fit(small_net(), CLEAN, labels())
