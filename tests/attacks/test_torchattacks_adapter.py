"""torchattacks by name: same results as the library, and a model left as it was."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import torchattacks_attack
from lrpguard.errors import ConfigurationError, InputRangeError, MissingDependencyError

EPS = 8 / 255


@pytest.fixture
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks", reason="needs lrpguard[attacks]")


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4)
    ).eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 4, (4,), generator=generator)


def test_gives_what_the_library_gives(torchattacks: Any) -> None:
    model = small_net()
    images, labels = batch()
    expected = torchattacks.FGSM(model, eps=EPS)(images, labels)

    adversarial = torchattacks_attack("FGSM", model, eps=EPS)(images, labels)

    assert torch.equal(adversarial, expected)
    assert (adversarial - images).abs().max() == pytest.approx(EPS, abs=1e-6)


def test_is_seeded_and_leaves_global_randomness_alone(torchattacks: Any) -> None:
    model = small_net()
    images, labels = batch()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()

    first = torchattacks_attack("PGD", model, eps=EPS, steps=2, seed=5)(images, labels)
    pixle = torchattacks_attack("Pixle", model, restarts=2, max_iterations=2, seed=5)
    by_pixle = pixle(images, labels)

    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)
    torch.manual_seed(77)
    np.random.seed(77)
    again = torchattacks_attack("PGD", model, eps=EPS, steps=2, seed=5)(images, labels)
    other = torchattacks_attack("PGD", model, eps=EPS, steps=2, seed=6)(images, labels)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(by_pixle, pixle(images, labels))


def test_passes_the_seed_to_attacks_that_take_one(torchattacks: Any) -> None:
    model = small_net()
    images, labels = batch()

    by_seed = [
        torchattacks_attack("Square", model, eps=EPS, n_queries=5, seed=seed)(images, labels)
        for seed in (1, 1, 2)
    ]

    assert torch.equal(by_seed[0], by_seed[1])
    assert not torch.equal(by_seed[0], by_seed[2])


@pytest.mark.parametrize("name", ["PGD", "CW", "DeepFool", "APGD", "AutoAttack"])
def test_bears_rounding_below_0_and_inference_mode(torchattacks: Any, name: str) -> None:
    model = small_net()
    images, labels = batch()
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -3e-8, 1 + 5e-7
    options: dict[str, Any] = {"DeepFool": {}, "CW": {"steps": 3}, "APGD": {"steps": 3}}.get(
        name, {"eps": EPS}
    )
    options |= {"n_classes": 4} if name == "AutoAttack" else {}

    with torch.inference_mode():
        adversarial = torchattacks_attack(name, model, **options)(images, labels)

    assert adversarial.shape == images.shape
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad


def test_refuses_pixels_that_are_not_in_0_1(torchattacks: Any) -> None:
    images, labels = batch()

    with pytest.raises(InputRangeError):
        torchattacks_attack("FGSM", small_net())(images - 0.5, labels)


def test_the_model_is_left_as_it_was(torchattacks: Any) -> None:
    model = small_net()
    model[0].train()
    model[3].weight.requires_grad_(False)
    model[3].bias.grad = torch.ones(4)
    images, labels = batch()

    torchattacks_attack("CW", model, steps=2)(images, labels)  # calls backward()

    check_untouched(model)


def test_the_model_is_left_as_it_was_when_the_attack_fails(torchattacks: Any) -> None:
    class Failing(nn.Sequential):
        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("out of order")
            for module in self:
                input = module(input)
            return input

    model = Failing(*small_net()).eval()
    model[0].train()
    model[3].weight.requires_grad_(False)
    model[3].bias.grad = torch.ones(4)
    images, labels = batch()

    with pytest.raises(RuntimeError, match="out of order"):
        torchattacks_attack("CW", model, steps=9)(images, labels)

    check_untouched(model)


def check_untouched(model: nn.Sequential) -> None:
    assert [module.training for module in model] == [True, False, False, False]
    assert not model.training
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True]
    gradients = [p.grad for p in model.parameters()]
    assert gradients[:3] == [None, None, None]
    assert gradients[3] is not None
    assert torch.equal(gradients[3], torch.ones(4))


def test_unknown_attacks_and_options_are_named(torchattacks: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"'PDG'.*PGD"):
        torchattacks_attack("PDG", small_net())
    with pytest.raises(ConfigurationError, match="'MultiAttack'"):
        torchattacks_attack("MultiAttack", small_net())
    with pytest.raises(ConfigurationError, match=r"epsilon.*eps="):
        torchattacks_attack("PGD", small_net(), epsilon=EPS)


def test_a_missing_torchattacks_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)

    with pytest.raises(MissingDependencyError, match=r"lrpguard\[attacks\]"):
        torchattacks_attack("PGD", small_net())
