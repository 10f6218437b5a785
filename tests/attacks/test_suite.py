"""The suite: every attack stays in its ball, misleads, and leaves the model alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import SUITE, Attack, choose, quantize
from lrpguard.errors import ConfigurationError
from tests.support import state_of

MISLEADS = {"cw_0": 0.9, "cw_10": 0.9, "deepfool": 0.9, "ead": 0.9}
"""Least success on digits of the attacks without a bound; 8/255 is little there."""

EVERY = [pytest.param(attack, id=attack.name) for attack in SUITE]


def test_names_are_unique_and_cover_the_issue() -> None:
    names = [attack.name for attack in SUITE]
    assert len(set(names)) == len(names)
    assert {a.family for a in SUITE} == {
        *("fgsm", "pgd", "pgd_l2", "apgd", "cw", "deepfool", "ead", "square", "patch", "control")
    }
    assert len({str(sorted(a.parameters().items())) for a in SUITE}) == len(names)


@pytest.mark.parametrize("attack", EVERY)
def test_stays_in_its_ball_misleads_and_leaves_the_model_alone(
    attack: Attack, digits_model: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    by_library = attack.options.get("by") == "torchattacks"
    if by_library:
        pytest.importorskip("torchattacks", reason="needs lrpguard[attacks]")
    images, labels = digits[0][:12], digits[1][:12]
    before = state_of(digits_model)

    attacked = quantize(attack.run(digits_model, images, labels, 3))

    assert state_of(digits_model) == before
    assert (attack.excess(images, attacked) <= 0).all()
    # torchattacks returns the clean image where it fails.
    assert by_library or not torch.equal(attacked, images)
    with torch.no_grad():
        misled = (digits_model(attacked).argmax(1) != labels).float().mean()
    assert misled >= MISLEADS.get(attack.name, 0)
    if not attack.adversarial:
        assert misled <= 0.2


def test_what_leaves_the_ball_is_seen() -> None:
    images = quantize(torch.full((3, 3, 32, 32), 0.5))
    linf, l2, l0 = (choose([name])[0] for name in ("pgd_4_10", "pgd_l2_0.5", "patch"))
    far = images.clone()
    far[1, 0, 0, 0] += 5 / 255

    assert (linf.excess(images, far) > 0).tolist() == [False, True, False]
    far[1, 0, 0, 0] = images[1, 0, 0, 0] + 4 / 255
    assert not (linf.excess(images, quantize(far)) > 0).any()
    assert not (l2.excess(images, far) > 0).any()
    assert (l2.excess(images, images + 8 / 255) > 0).all()
    spread = images.clone()
    spread[2, 1, :2, :13] = 0  # 26 pixels, one more than the patch has
    assert (l0.excess(images, spread) > 0).tolist() == [False, False, True]
    outside = images.clone()
    outside[0, 0, 0, 0] = 1.1
    assert choose(["cw_0"])[0].excess(images, outside)[0] == math.inf


def test_l2_radii_grow_with_the_image() -> None:
    attack = choose(["pgd_l2_0.5"])[0]

    assert attack.radius(torch.zeros(1, 3, 32, 32)) == pytest.approx(0.5)
    assert attack.radius(torch.zeros(1, 3, 224, 224)) == pytest.approx(3.5)


def test_choose_by_name_quick_or_all() -> None:
    assert choose() == SUITE
    assert [a.name for a in choose(["cw_0", "fgsm_2"])] == ["fgsm_2", "cw_0"]
    quick = choose(quick=True)
    assert 5 <= len(quick) < len(SUITE)
    assert {a.adversarial for a in quick} == {True, False}
    with pytest.raises(ConfigurationError, match=r"'pgd'.*fgsm_2"):
        choose(["pgd"])
