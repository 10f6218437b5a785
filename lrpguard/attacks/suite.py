"""The suite of static attacks, and of controls, that a detector is measured on.

All take images in [0, 1] and return images in [0, 1]; whoever uses them rounds to 8 bits, and
judges success after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lrpguard.attacks import controls
from lrpguard.attacks.deepfool import deepfool
from lrpguard.attacks.minimum_norm import carlini_wagner, elastic_net
from lrpguard.attacks.patch import PATCH_AREA, patch, patch_side
from lrpguard.attacks.pgd import pgd
from lrpguard.attacks.torchattacks_adapter import torchattacks_attack
from lrpguard.errors import ConfigurationError

Run = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""From model, images [B, C, H, W], labels [B] and a seed to attacked images [B, C, H, W]."""

Norm = Literal["linf", "l2", "l0", "none"]

CIFAR_VALUES = 3 * 32 * 32
"""Values of a CIFAR-10 image, for which Euclidean radii are stated."""

_LEVEL = 1 / 255


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One entry of the suite.

    Attributes:
        name: Unique name, which tables and files use.
        title: Name for people.
        family: What kind of attack it is; averages may be taken within one.
        norm: Norm that bounds the change; ``"none"`` where the attack seeks a small change
            without a bound.
        eps: Bound in that norm, on the [0, 1] scale; for ``"l2"`` that of a CIFAR-10 image, see
            :meth:`radius`; for ``"l0"`` the share of the pixels. None where there is none.
        steps: Gradient steps, or queries of the model.
        run: The attack.
        options: What else decides its result, JSON values.
        quick: Whether a quick evaluation has it.
        adversarial: False for a control, which nobody made to mislead.
        version: Raised by whoever changes what ``run`` returns, so that no stored result of
            another code is taken for its own.
    """

    name: str
    title: str
    family: str
    norm: Norm
    eps: float | None
    steps: int
    run: Run
    options: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    adversarial: bool = True
    version: int = 1

    def parameters(self) -> dict[str, Any]:
        """Return all that decides its result, apart from seed, model and images."""
        return {
            "name": self.name,
            "norm": self.norm,
            "eps": self.eps,
            "steps": self.steps,
            "options": dict(self.options),
            "version": self.version,
        }

    def radius(self, images: Tensor) -> float:
        """Return the bound for images of this size, in [0, 1] pixels, or a count for ``"l0"``.

        An ``"l2"`` bound grows with the square root of the number of values, so that it stays the
        same root mean square of the change.
        """
        if self.eps is None:
            return math.inf
        if self.norm == "l2":
            return self.eps * math.sqrt(images[0].numel() / CIFAR_VALUES)
        if self.norm == "l0":
            return float(patch_side(images, self.eps) ** 2)
        return self.eps

    def excess(self, images: Tensor, attacked: Tensor) -> Tensor:
        """Return by how much each attacked image lies outside its ball, [B]; <= 0 is inside.

        Rounding to 8 bits may lengthen an ``"l2"`` change by half a level a value; that is allowed
        for. Pixels outside [0, 1] count with infinity.

        Args:
            images: Clean images [B, C, H, W], of 8-bit levels.
            attacked: Attacked images of 8-bit levels, of the same shape.
        """
        change = (attacked - images).double().flatten(1)
        bound = self.radius(images)
        if self.norm == "linf":
            outside = change.abs().amax(1) - (bound + 1e-6)
        elif self.norm == "l2":
            outside = change.norm(dim=1) - (bound + _LEVEL / 2 * math.sqrt(change.shape[1]))
        elif self.norm == "l0":
            touched = (attacked != images).any(1).flatten(1).sum(1).double()
            outside = touched - bound
        else:
            outside = torch.full((len(images),), -math.inf, dtype=torch.float64)
        span = attacked.flatten(1)
        beyond = (span.amin(1) < 0) | (span.amax(1) > 1) | ~torch.isfinite(span).all(1)
        return torch.where(beyond.cpu(), torch.inf, outside.cpu())


def _fgsm(levels: int, *, quick: bool = False) -> Attack:
    eps = levels * _LEVEL

    def run(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        return pgd(model, images, labels, eps=eps, steps=1, step_size=eps, random_start=False)

    return Attack(
        name=f"fgsm_{levels}",
        title=f"FGSM {levels}/255",
        family="fgsm",
        norm="linf",
        eps=eps,
        steps=1,
        run=run,
        quick=quick,
    )


def _pgd(levels: int, steps: int, *, quick: bool = False) -> Attack:
    eps = levels * _LEVEL

    def run(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        return pgd(model, images, labels, eps=eps, steps=steps, seed=seed)

    return Attack(
        name=f"pgd_{levels}_{steps}",
        title=f"PGD {levels}/255, {steps} steps",
        family="pgd",
        norm="linf",
        eps=eps,
        steps=steps,
        run=run,
        quick=quick,
    )


def _targeted(levels: int, steps: int) -> Attack:
    eps = levels * _LEVEL

    def run(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        with torch.no_grad():
            targets = model(images).argmin(1)
        return pgd(model, images, targets, eps=eps, steps=steps, targeted=True, seed=seed)

    return Attack(
        name=f"pgd_targeted_{levels}_{steps}",
        title=f"PGD {levels}/255 to the least likely class, {steps} steps",
        family="pgd",
        norm="linf",
        eps=eps,
        steps=steps,
        run=run,
        options={"target": "least likely"},
    )


def _pgd_l2(eps: float, steps: int, *, quick: bool = False) -> Attack:
    def run(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        radius = entry.radius(images)
        return pgd(model, images, labels, eps=radius, steps=steps, norm="l2", seed=seed)

    entry = Attack(
        name=f"pgd_l2_{eps:g}",
        title=f"PGD-L2 {eps:g}, {steps} steps",
        family="pgd_l2",
        norm="l2",
        eps=eps,
        steps=steps,
        run=run,
        quick=quick,
    )
    return entry


def _apgd(loss: str, levels: int, steps: int, *, quick: bool = False) -> Attack:
    eps = levels * _LEVEL

    def run(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        attack = torchattacks_attack("APGD", model, eps=eps, steps=steps, loss=loss, seed=seed)
        return attack(images, labels)

    return Attack(
        name=f"apgd_{loss}_{levels}",
        title=f"APGD-{loss.upper()} {levels}/255, {steps} steps",
        family="apgd",
        norm="linf",
        eps=eps,
        steps=steps,
        run=run,
        options={"by": "torchattacks"},
        quick=quick,
    )


def _cw(confidence: int, *, quick: bool = False) -> Attack:
    options = {"confidence": confidence, "searches": 4}
    steps = 40

    def run(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        return carlini_wagner(model, images, labels, confidence=confidence, steps=steps, searches=4)

    return Attack(
        name=f"cw_{confidence}",
        title=f"CW-L2, confidence {confidence}",
        family="cw",
        norm="none",
        eps=None,
        steps=steps,
        run=run,
        options=options,
        quick=quick,
    )


def _run_deepfool(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    return deepfool(model, images, labels, steps=50, candidates=10)


def _run_ead(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    return elastic_net(model, images, labels, beta=0.01, steps=40, searches=3)


def _run_square(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    attack = torchattacks_attack("Square", model, eps=8 * _LEVEL, n_queries=2000, seed=seed)
    return attack(images, labels)


def _run_patch(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    return patch(model, images, labels, steps=50, step_size=0.05, seed=seed)


def _control(
    name: str, title: str, change: Callable[[Tensor, int], Tensor], *, quick: bool = False
) -> Attack:
    def run(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        return change(images, seed)

    return Attack(
        name=name,
        title=title,
        family="control",
        norm="none",
        eps=None,
        steps=0,
        run=run,
        quick=quick,
        adversarial=False,
    )


SUITE: tuple[Attack, ...] = (
    _fgsm(2),
    _fgsm(4, quick=True),
    _fgsm(8),
    _pgd(1, 10, quick=True),
    _pgd(2, 10, quick=True),
    _pgd(4, 10),
    _pgd(8, 10, quick=True),
    _pgd(1, 100),
    _pgd(2, 100),
    _pgd(4, 100),
    _pgd(8, 100),
    _targeted(8, 20),
    _pgd_l2(0.25, 20),
    _pgd_l2(0.5, 20, quick=True),
    _apgd("ce", 4, 50, quick=True),
    _apgd("ce", 8, 50),
    _apgd("dlr", 4, 50),
    _apgd("dlr", 8, 50),
    _cw(0, quick=True),
    _cw(5),
    _cw(10),
    Attack(
        name="deepfool",
        title="DeepFool",
        family="deepfool",
        norm="none",
        eps=None,
        steps=50,
        run=_run_deepfool,
        options={"candidates": 10},
        quick=True,
    ),
    Attack(
        name="ead",
        title="EAD, beta 0.01",
        family="ead",
        norm="none",
        eps=None,
        steps=40,
        run=_run_ead,
        options={"beta": 0.01, "searches": 3},
    ),
    Attack(
        name="square_8",
        title="Square 8/255, 2000 queries",
        family="square",
        norm="linf",
        eps=8 * _LEVEL,
        steps=2000,
        run=_run_square,
        options={"by": "torchattacks"},
        quick=True,
    ),
    Attack(
        name="patch",
        title="patch of 2.4 % of the area",
        family="patch",
        norm="l0",
        eps=PATCH_AREA,
        steps=50,
        run=_run_patch,
        options={"step_size": 0.05},
    ),
    _control(
        "noise",
        "Gaussian noise, sigma 0.02",
        lambda images, seed: controls.gaussian_noise(images, sigma=0.02, seed=seed),
        quick=True,
    ),
    _control(
        "blur", "Gaussian blur, 0.6 pixels", lambda images, _: controls.blur(images, sigma=0.6)
    ),
    _control(
        "jpeg",
        "JPEG, quality 75",
        lambda images, _: controls.jpeg(images, quality=75),
        quick=True,
    ),
    _control(
        "brightness",
        "brightness times 1.2",
        lambda images, _: controls.brightness(images, factor=1.2),
    ),
)
"""Every attack, then every control."""


KIN = (frozenset({"fgsm", "pgd", "pgd_l2", "apgd"}), frozenset({"cw", "deepfool", "ead"}))
"""Families of one kind: those that follow the loss within a ball, and those that seek the least
change. Who has seen one of a kind has not been tested on unseen attacks by another of it."""


def kin(families: Iterable[str]) -> tuple[str, ...]:
    """Return families with all of their kind, sorted."""
    found = set(families)
    for kind in KIN:
        found |= kind if found & kind else set()
    return tuple(sorted(found))


def choose(names: Sequence[str] = (), *, quick: bool = False) -> tuple[Attack, ...]:
    """Return attacks of the suite, in its order.

    Args:
        names: Which ones; none takes all.
        quick: Whether only those of a quick evaluation are taken where no names are given.

    Raises:
        ConfigurationError: There is no attack of that name.
    """
    known = {attack.name for attack in SUITE}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(
            f"no attack is named {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(attack.name for attack in SUITE)}."
        )
    if names:
        return tuple(attack for attack in SUITE if attack.name in names)
    return tuple(attack for attack in SUITE if attack.quick or not quick)
