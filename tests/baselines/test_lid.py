"""LID against a direct formula, and the two detectors on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lrpguard.attacks import pgd, quantize
from lrpguard.baselines import baseline
from lrpguard.baselines.lid import Reference, attacked_pairs, lid
from lrpguard.errors import CalibrationSizeError, ConfigurationError, UnsupportedModelError
from tests.support import images, small_net

CLEAN = images(60, seed=1)


def labels() -> torch.Tensor:
    return torch.as_tensor(small_net()(CLEAN).argmax(1))


def test_lid_equals_the_formula() -> None:
    distances = np.random.default_rng(0).uniform(0.1, 2, (5, 30))
    wanted = []
    for row in distances:
        nearest = sorted(row)[:7]
        wanted.append(-1 / (sum(math.log(r / nearest[-1]) for r in nearest) / 7))
    assert lid(torch.from_numpy(distances), k=7).tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("dimension", [2, 6])
def test_lid_of_points_in_a_ball_is_its_dimension(dimension: int) -> None:
    """The distances from the centre are ``u**(1 / d)`` for uniform u."""
    uniform = torch.from_numpy(np.random.default_rng(1).uniform(size=(400, 2000)))
    found = lid(uniform ** (1 / dimension), k=100)
    assert float(found.mean()) == pytest.approx(dimension, rel=0.05)


def test_lid_of_equal_points_is_finite() -> None:
    assert bool(torch.isfinite(lid(torch.zeros(1, 5), k=3)).all())
    assert bool(torch.isfinite(lid(torch.ones(1, 5), k=3)).all())


def test_image_of_the_reference_is_no_neighbour_of_its_own() -> None:
    known = torch.from_numpy(np.random.default_rng(2).normal(size=(30, 4)))
    got = Reference((known,)).log_lids((known,), k=5, without_own=True)[:, 0]
    for i, row in enumerate(known):
        others = torch.cat([known[:i], known[i + 1 :]])
        wanted = lid((others - row).norm(dim=1)[None], k=5).log()
        torch.testing.assert_close(got[i : i + 1], wanted)


def test_pairs_are_successful_attacks_and_noise_of_the_same_size() -> None:
    model = small_net()
    wrong = labels()
    wrong[:10] = (wrong[:10] + 1) % 5  # these the model gets wrong: no attack on them counts
    pairs = attacked_pairs(model, CLEAN, wrong, eps=0.2, steps=5, seed=0, name="test")

    assert 0 < len(pairs.clean) <= 50
    right = model(CLEAN).argmax(1) == wrong
    attacked = torch.cat(
        [
            pgd(model, x, y, eps=0.2, steps=5, seed=0)
            for x, y in zip(CLEAN.split(32), wrong.split(32), strict=True)
        ]
    )
    attacked = quantize(attacked)
    fooled = right & (model(attacked).argmax(1) != wrong)
    assert torch.equal(pairs.adversarial, attacked[fooled])
    assert torch.equal(pairs.clean, CLEAN[fooled])
    size = (pairs.adversarial - pairs.clean).flatten(1).norm(dim=1)
    noise = (pairs.noisy - pairs.clean).flatten(1).norm(dim=1)
    assert bool((noise <= 1.05 * size).all())  # clipping to [0, 1] takes some of it away
    assert bool((noise >= 0.6 * size).all())


def test_no_successful_attack_is_an_error() -> None:
    with pytest.raises(CalibrationSizeError, match="fooled the model on none of the 60 images"):
        attacked_pairs(small_net(), CLEAN, labels(), eps=1e-9, steps=1, seed=0, name="lid")


def test_model_of_one_layer_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).eval()
    with pytest.raises(UnsupportedModelError, match="no activations between layers"):
        baseline("lid-oneclass").fit(model, CLEAN, torch.zeros(60, dtype=torch.long))


@pytest.mark.parametrize("name", ["lid", "lid-oneclass"])
class TestDetectors:
    def test_need_more_than_k_images(self, name: str) -> None:
        with pytest.raises(CalibrationSizeError, match="k = 20"):
            baseline(name).fit(small_net(), CLEAN[:20], labels()[:20])
        with pytest.raises(ConfigurationError, match="k is 1"):
            baseline(name, k=1)

    def test_only_one_of_them_is_marked_as_fitted_with_attacks(self, name: str) -> None:
        assert baseline(name).attack_free is (name == "lid-oneclass")


def test_oneclass_is_the_distance_of_the_log_lids_from_clean_ones() -> None:
    covariance = pytest.importorskip("sklearn.covariance", reason="needs lrpguard[baselines]")
    model = small_net()
    reference = Reference.of(model, CLEAN)
    clean = reference.log_lids(reference.layers, k=10, without_own=True)
    test = images(5, seed=3)
    seen = reference.log_lids(Reference.of(model, test).layers, k=10)
    away = (seen - clean.mean(0)).numpy()
    estimator = covariance.LedoitWolf().fit(clean.numpy())
    wanted = np.einsum("ij,jk,ik->i", away, np.linalg.inv(estimator.covariance_), away)

    got = baseline("lid-oneclass", k=10).fit(model, CLEAN, labels()).anomaly(test)

    assert got.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_supervised_ranks_its_own_attack_above_clean_images() -> None:
    pytest.importorskip("sklearn", reason="needs lrpguard[baselines]")
    model = small_net()
    fitted = baseline("lid", k=10, eps=0.3).fit(model, CLEAN, labels())
    test = images(30, seed=5)
    attacked = pgd(model, test, model(test).argmax(1), eps=0.3, steps=10, seed=1)
    clean, adversarial = fitted.anomaly(test), fitted.anomaly(quantize(attacked))
    assert float(adversarial.median()) > float(clean.median())
