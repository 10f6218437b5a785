"""What holds for every baseline: the interface, determinism, and what it leaves alone."""

from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
from torch import Tensor

import lrpguard.baselines
from lrpguard.baselines import BASELINES, Baseline, RestoringBaseline, attack_free, baseline
from lrpguard.baselines.base import BATCH
from lrpguard.baselines.copies import Noise
from lrpguard.errors import (
    ConfigurationError,
    InputRangeError,
    ModelOutputError,
    NonFiniteScoreError,
    NotCalibratedError,
    TrainingModeError,
)
from tests.support import Wrapped, images, small_net, state_of

FIT = 40
QUICK: dict[str, dict[str, Any]] = {
    "odds": {"noises": (Noise("gaussian", 0.1), Noise("sign", 0.1)), "n": 2},
    "lid": {"k": 5, "eps": 0.3, "steps": 3},
    "lid-oneclass": {"k": 5},
    "art-binary-input": {"epochs": 1, "eps": 0.3, "steps": 3},
    "art-binary-activation": {"epochs": 1, "eps": 0.3, "steps": 3},
    "disagreement": {"n": 5, "sigma": 0.5},
    "supervised": {"n": 2, "sigma": 0.1, "attacks": ("deepfool",)},
    "supervised-bounded": {"n": 2, "sigma": 0.1, "attacks": ("pgd_8_10", "pgd_l2_0.5")},
    "supervised-minimal": {"n": 2, "sigma": 0.1, "attacks": ("deepfool",)},
    "smoothgrad-variance": {"n": 3, "sigma": 0.3},
    "smoothgrad-variance-two-sided": {"n": 3, "sigma": 0.3},
}
"""Options that make a slow baseline quick, or a small network answer to it."""


def fit_data() -> tuple[Tensor, Tensor]:
    clean = images(FIT, seed=1)
    return clean, small_net()(clean).argmax(1).detach()


def quick(name: str) -> Baseline:
    if name.startswith("art-"):
        pytest.importorskip("art", reason="needs lrpguard[baselines]")
    if name in ("mahalanobis", "lid", "lid-oneclass"):
        pytest.importorskip("sklearn", reason="needs lrpguard[baselines]")
    return baseline(name, **QUICK.get(name, {}))


@pytest.fixture(scope="module", params=sorted(BASELINES))
def fitted(request: pytest.FixtureRequest) -> Baseline:
    return quick(request.param).fit(small_net(), *fit_data())


def test_scores_are_finite_float64_on_the_cpu_and_differ(fitted: Baseline) -> None:
    scores = fitted.anomaly(images(12, seed=2))

    assert scores.shape == (12,)
    assert scores.dtype == torch.float64
    assert scores.device.type == "cpu"
    assert len(scores.unique()) > 1


def test_score_depends_on_the_image_alone(fitted: Baseline) -> None:
    batch = images(BATCH + 1, seed=2)  # more than one pass takes
    whole = fitted.anomaly(batch)

    last = fitted.anomaly(batch[-3:])
    alone = torch.cat([fitted.anomaly(image[None]) for image in batch[-3:]])
    torch.testing.assert_close(alone, whole[-3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.flip(0), whole[-3:].flip(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(fitted.anomaly(batch[-3:]), last)


def test_fitting_again_gives_the_same(fitted: Baseline) -> None:
    model, data = small_net(), fit_data()
    torch.manual_seed(99)  # the global generator plays no part
    before = torch.random.get_rng_state()
    again = quick(fitted.name).fit(model, *data)

    test = images(6, seed=3)
    assert torch.equal(again.anomaly(test), fitted.anomaly(test))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_scoring_learns_nothing_from_what_it_sees(fitted: Baseline) -> None:
    test = images(6, seed=3)
    before = fitted.anomaly(test)
    fitted.anomaly(images(20, seed=4))
    assert torch.equal(fitted.anomaly(test), before)


@pytest.mark.parametrize("name", sorted(BASELINES))
class TestEvery:
    def test_names_itself(self, name: str) -> None:
        made = quick(name)
        assert made.name == name
        assert isinstance(made.attack_free, bool)
        assert "forward" in made.passes

    def test_leaves_model_and_data_alone(self, name: str) -> None:
        model = small_net()
        clean, labels = fit_data()
        kept, state = copy.deepcopy((clean, labels)), state_of(model)

        unfitted = quick(name)
        made = unfitted.fit(model, clean, labels)
        with torch.inference_mode():
            made.anomaly(images(3, seed=2))

        assert state_of(model) == state
        assert torch.equal(clean, kept[0])
        assert torch.equal(labels, kept[1])
        with pytest.raises(NotCalibratedError, match="has not been fitted"):
            unfitted.anomaly(clean)

    def test_refuses_bad_input(self, name: str) -> None:
        clean, labels = fit_data()
        with pytest.raises(InputRangeError):
            quick(name).fit(small_net(), clean * 255, labels)
        with pytest.raises(ConfigurationError, match="one integer class an image"):
            quick(name).fit(small_net(), clean, labels[:-1])
        with pytest.raises(TrainingModeError):
            quick(name).fit(small_net().train(), clean, labels)

    def test_never_returns_a_score_that_is_not_finite(self, name: str) -> None:
        broken = [False]

        def after(batch: Tensor, logits: Tensor) -> Tensor:
            return logits * torch.nan if broken[0] else logits

        made = quick(name).fit(Wrapped(small_net(), after=after), *fit_data())
        broken[0] = True
        if made.passes.startswith("0 forward"):  # what the model says plays no part
            assert bool(torch.isfinite(made.anomaly(images(2, seed=2))).all())
            return
        with pytest.raises((ModelOutputError, NonFiniteScoreError)):
            made.anomaly(images(2, seed=2))


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no baseline is named 'magic'; there are"):
        baseline("magic")
    with pytest.raises(ConfigurationError, match="does not take these options"):
        baseline("energy", warmth=3)


def test_example_in_the_docstring_runs() -> None:
    result = doctest.testmod(lrpguard.baselines)
    assert result.attempted > 0
    assert result.failed == 0


def test_attack_free_are_those_that_see_no_attack() -> None:
    pytest.importorskip("sklearn", reason="needs lrpguard[baselines]")
    pytest.importorskip("art", reason="needs lrpguard[baselines]")
    trained = {name for name in BASELINES if baseline(name).saw}
    assert trained == set(BASELINES) - set(attack_free())
    assert {"lid", "art-binary-input", "supervised", "supervised-minimal"} < trained


def test_those_that_restore_are_known_by_it() -> None:
    assert isinstance(baseline("odds"), RestoringBaseline)
    assert not isinstance(baseline("energy"), RestoringBaseline)
