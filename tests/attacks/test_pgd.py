"""PGD: against torchattacks, against the closed form, and what it must leave alone."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpguard.attacks import pgd, quantize
from lrpguard.attacks.pgd import Norm
from lrpguard.errors import ConfigurationError, InputRangeError, TrainingModeError

EPS = 8 / 255


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 5, (6,), generator=generator)


def test_equals_torchattacks_without_a_random_start() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="needs lrpguard[attacks]")
    model = small_net()
    images, labels = batch()
    oracle = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=7, random_start=False)

    ours = pgd(model, images, labels, eps=EPS, steps=7, step_size=EPS / 4, random_start=False)

    assert (ours - images).abs().max() > 0.9 * EPS
    torch.testing.assert_close(ours, oracle(images, labels), atol=1e-6, rtol=0)


@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_the_ball_and_raises_the_loss(random_start: bool) -> None:
    model = small_net()
    images, labels = batch()
    images[0] = images[0].round()  # pixels at the ends of [0, 1] as well

    adversarial = pgd(model, images, labels, eps=EPS, steps=10, random_start=random_start)

    assert (adversarial - images).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    before = functional.cross_entropy(model(images), labels, reduction="none")
    after = functional.cross_entropy(model(adversarial), labels, reduction="none")
    assert bool((after > before).all())


def test_reaches_the_closed_form_optimum_of_a_linear_model() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double().eval()
    images = torch.full((2, 3, 2, 2), 0.5, dtype=torch.float64)
    labels = torch.tensor([0, 1])
    linear = cast(nn.Linear, model[1])
    towards_1 = (linear.weight[1] - linear.weight[0]).sign().reshape(3, 2, 2).detach()
    optimum = images + EPS * torch.stack([towards_1, -towards_1])

    adversarial = pgd(model, images, labels, eps=EPS, steps=10)

    torch.testing.assert_close(adversarial, optimum, atol=1e-9, rtol=0)


def test_the_default_step_is_madrys() -> None:
    model = small_net()
    images, labels = batch()

    default = pgd(model, images, labels, eps=EPS, steps=5)
    explicit = pgd(model, images, labels, eps=EPS, steps=5, step_size=2.5 * EPS / 5)

    assert torch.equal(default, explicit)
    assert not torch.equal(default, pgd(model, images, labels, eps=EPS, steps=5, step_size=EPS / 5))


def test_the_seed_alone_decides_the_start() -> None:
    model = small_net()
    images, labels = batch()
    global_state = torch.get_rng_state()

    first = pgd(model, images, labels, eps=EPS, steps=1, seed=3)

    assert torch.equal(torch.get_rng_state(), global_state)
    torch.manual_seed(99)
    assert torch.equal(first, pgd(model, images, labels, eps=EPS, steps=1, seed=3))
    assert not torch.equal(first, pgd(model, images, labels, eps=EPS, steps=1, seed=4))


def test_an_image_is_attacked_alike_in_any_batch() -> None:
    model = small_net()
    images, labels = batch()

    together = pgd(model, images, labels, eps=EPS, steps=3, random_start=False)
    alone = pgd(model, images[2:3], labels[2:3], eps=EPS, steps=3, random_start=False)

    torch.testing.assert_close(together[2:3], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_leaves_the_model_and_the_inputs_alone(frozen: bool) -> None:
    model = small_net().requires_grad_(not frozen)
    images, labels = batch()
    original, state = images.clone(), {k: v.clone() for k, v in model.state_dict().items()}

    adversarial = pgd(model, images, labels, eps=EPS, steps=2)

    assert not adversarial.requires_grad
    assert torch.equal(images, original)
    assert not images.requires_grad
    assert all(p.grad is None and p.requires_grad is not frozen for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(
    context: type[torch.no_grad] | type[torch.inference_mode],
) -> None:
    model = small_net()
    images, labels = batch()
    expected = pgd(model, images, labels, eps=EPS, steps=3)

    with context():
        assert torch.equal(pgd(model, images.clone(), labels.clone(), eps=EPS, steps=3), expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_0_changes_nothing(norm: Norm) -> None:
    images, labels = batch()

    assert torch.equal(pgd(small_net(), images, labels, eps=0.0, steps=3, norm=norm), images)


def test_l2_equals_torchattacks_without_a_random_start() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="needs lrpguard[attacks]")
    model = small_net()
    images, labels = batch()
    oracle = torchattacks.PGDL2(model, eps=0.5, alpha=0.2, steps=7, random_start=False)

    ours = pgd(
        model, images, labels, eps=0.5, steps=7, step_size=0.2, norm="l2", random_start=False
    )

    torch.testing.assert_close(ours, oracle(images, labels), atol=1e-5, rtol=0)


def test_l2_uses_the_ball_and_stays_in_it() -> None:
    images, labels = batch()
    images[0] = images[0].round()

    adversarial = pgd(small_net(), images, labels, eps=0.5, steps=5, norm="l2")

    change = (adversarial - images).flatten(1).norm(dim=1)
    assert change.max() <= 0.5 + 1e-5
    assert change[1:].min() > 0.45
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_targeted_leads_towards_the_label() -> None:
    model = small_net()
    images, labels = batch()

    adversarial = pgd(model, images, labels, eps=EPS, steps=5, targeted=True)

    before = functional.cross_entropy(model(images), labels, reduction="none")
    after = functional.cross_entropy(model(adversarial), labels, reduction="none")
    assert bool((after < before).all())


def test_refuses_what_it_cannot_attack() -> None:
    model = small_net()
    images, labels = batch()
    with pytest.raises(InputRangeError):
        pgd(model, images * 3, labels, eps=EPS, steps=1)
    with pytest.raises(TrainingModeError):
        pgd(small_net().train(), images, labels, eps=EPS, steps=1)
    with pytest.raises(ConfigurationError, match="eps is 8"):
        pgd(model, images, labels, eps=8, steps=1)
    with pytest.raises(ConfigurationError, match="steps is 0"):
        pgd(model, images, labels, eps=EPS, steps=0)
    with pytest.raises(ConfigurationError, match="step_size"):
        pgd(model, images, labels, eps=EPS, steps=1, step_size=-0.1)
    with pytest.raises(ConfigurationError, match="one integer class"):
        pgd(model, images, labels[:3], eps=EPS, steps=1)
    with pytest.raises(ConfigurationError, match="one integer class"):
        pgd(model, images, labels.float(), eps=EPS, steps=1)
    with pytest.raises(ConfigurationError, match="'l1'"):
        pgd(model, images, labels, eps=EPS, steps=1, norm="l1")  # type: ignore[arg-type]


def test_quantize_rounds_to_8_bits() -> None:
    pixels = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 127.2 / 255, 1.0, 1.0 + 1e-7, -1e-7])

    levels = quantize(pixels) * 255

    assert levels.round().tolist() == [0, 0, 1, 127, 255, 255, 0]
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


def test_quantized_8_bit_images_stay_in_the_ball() -> None:
    images, labels = batch()
    clean = quantize(images)

    rounded = quantize(pgd(small_net(), clean, labels, eps=5 / 255, steps=4))

    assert torch.equal(quantize(clean), clean)
    assert ((rounded - clean).abs() * 255).max() <= 5 + 1e-3
