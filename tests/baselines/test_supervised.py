"""The detector that sees attacks: what it learns on the packaged digits model, seen and unseen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import choose, quantize
from lrpguard.baselines import baseline
from lrpguard.baselines.supervised import (
    BOUNDED,
    L2,
    MINIMAL,
    Supervised,
    SupervisedOnBounded,
    SupervisedOnMinimal,
    logistic_weights,
)
from lrpguard.demo.digits import DigitSplits, load_digit_splits, load_digits_model
from lrpguard.errors import CalibrationSizeError, ConfigurationError
from lrpguard.evaluation.metrics import auroc
from tests.support import images, small_net


@pytest.fixture(scope="module")
def digits() -> DigitSplits:
    pytest.importorskip("sklearn", reason="needs lrpguard[demo]")
    return load_digit_splits()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_digits_model()


def attacked(name: str, model: nn.Module, digits: DigitSplits) -> Tensor:
    """Return test images that an attack of the suite has fooled the model on."""
    clean, labels = digits.test.images[:60], digits.test.labels[:60]
    (attack,) = choose([name])
    moved = quantize(attack.run(model, clean, labels, 0).detach())
    with torch.no_grad():
        fooled = (model(moved).argmax(1) != labels) & (model(clean).argmax(1) == labels)
    assert int(fooled.sum()) >= 10, name
    return moved[fooled]


def test_finds_attacks_seen_and_unseen(model: nn.Module, digits: DigitSplits) -> None:
    """Trained on DeepFool and CW alone: their like, and a patch, that is of another kind."""
    fit = digits.calibration
    made = SupervisedOnMinimal(attacks=("deepfool",), n=6, sigma=0.1)
    fitted = made.fit(model, fit.images[:160], fit.labels[:160])
    clean = fitted.anomaly(digits.test.images[100:160]).numpy()

    area = {
        name: auroc(clean, fitted.anomaly(attacked(name, model, digits)).numpy())
        for name in ("deepfool", "cw_0", "patch")
    }

    assert area["deepfool"] > 0.85
    assert area["cw_0"] > 0.85
    assert area["patch"] > 0.6
    assert set(made.saw) == {"cw", "deepfool", "ead"}


def test_chooses_the_noise_as_a_guard_does(model: nn.Module, digits: DigitSplits) -> None:
    fit = digits.calibration
    made = Supervised(attacks=("deepfool",))
    fitted = made.fit(model, fit.images[:40], fit.labels[:40]).fitted
    assert fitted is not None
    guard = fitted.state.guard
    assert guard.smoothing.n <= 20
    assert guard.smoothing.sigma != 0.05
    assert guard.calibration is None


def test_each_attack_has_its_share_and_only_what_fools_counts(
    model: nn.Module, digits: DigitSplits
) -> None:
    clean, labels = digits.calibration.images[:30], digits.calibration.labels[:30]
    made = Supervised(attacks=("fgsm_8", "deepfool"))
    found = made._attacked(model, clean, labels)
    with torch.no_grad():
        right = model(clean).argmax(1) == labels
        deep = quantize(choose(["deepfool"])[0].run(model, clean[1::2], labels[1::2], 0))
        fooled = right[1::2] & (model(deep).argmax(1) != labels[1::2])
    assert torch.equal(found[-int(fooled.sum()) :], deep[fooled])
    assert len(found) <= 30


def test_the_two_halves_of_the_suite_do_not_meet() -> None:
    bounded, minimal = baseline("supervised-bounded"), baseline("supervised-minimal")
    assert isinstance(bounded, SupervisedOnBounded)
    assert not set(bounded.saw) & set(minimal.saw)
    assert set(baseline("supervised").saw) == set(bounded.saw) | set(minimal.saw)
    assert not {"square", "patch", "control"} & set(baseline("supervised").saw)
    assert not bounded.attack_free
    assert baseline("lid").saw == bounded.saw
    assert baseline("energy").saw == ()
    assert {a.name for a in choose(BOUNDED + MINIMAL)} == {*BOUNDED, *MINIMAL}


def test_refuses_what_cannot_be() -> None:
    net = small_net()
    with pytest.raises(ConfigurationError, match="name at least one"):
        Supervised(attacks=())
    with pytest.raises(ConfigurationError, match="no controls"):
        Supervised(attacks=("noise",))
    with pytest.raises(ConfigurationError, match="no attack is named"):
        Supervised(attacks=("pdg",))
    with pytest.raises(CalibrationSizeError, match="at least 20"):
        Supervised().fit(net, images(19), torch.zeros(19, dtype=torch.long))
    wrong = (net(images(24)).argmax(1) + 1) % 3
    with pytest.raises(CalibrationSizeError, match="on none of 12 images"):
        Supervised(attacks=("fgsm_8",), n=2, sigma=0.1).fit(net, images(24), wrong)


class TestLogisticWeights:
    def test_slope_of_the_loss_is_zero_there(self) -> None:
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(60, 3))
        is_attack = (rng.random(60) < 0.2).astype(float)
        inputs[is_attack > 0] += [1, -0.5, 0]

        weights = logistic_weights(inputs, is_attack)

        share = np.where(is_attack > 0, 0.5 / is_attack.sum(), 0.5 / (1 - is_attack).sum())
        sign = 2 * is_attack - 1
        losses = []
        for shift in np.linspace(-3, 3, 6001):  # the intercept, by search
            margin = sign * (inputs @ weights + shift)
            losses.append(share @ np.log1p(np.exp(-margin)))
        intercept = np.linspace(-3, 3, 6001)[int(np.argmin(losses))]
        margin = sign * (inputs @ weights + intercept)
        slope = inputs.T @ (-share * sign / (1 + np.exp(margin))) + L2 * weights
        assert np.abs(slope).max() < 1e-3
        assert weights[0] > 0 > weights[1]

    def test_few_attacks_weigh_as_much_as_many(self) -> None:
        rng = np.random.default_rng(1)
        clean, attack = rng.normal(size=(200, 1)), rng.normal(size=(20, 1)) + 2
        once = logistic_weights(np.r_[clean, attack], np.r_[np.zeros(200), np.ones(20)])
        often = logistic_weights(
            np.r_[clean, np.repeat(attack, 10, axis=0)], np.r_[np.zeros(200), np.ones(200)]
        )
        np.testing.assert_allclose(once, often, rtol=1e-3)
