"""Noise that suits a model, chosen on clean images alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrpguard.errors import ConfigurationError
from lrpguard.inputs import check_eval, check_images, check_model
from lrpguard.lrp.composites import EPSILON, Composite
from lrpguard.lrp.engine import plain_logits
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from lrpguard.smoothing import PAPER_N, Smoothing, clean_logits, to_model
from lrpguard.views import VIEW_COUNT

SIGMAS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Strengths that are tried, ascending."""

LABEL_KEPT = 0.9
"""Share of the noisy copies of clean images that must keep the label."""

RELIABILITY = 0.95
"""Share of the variance of a mean over the copies that must lie between images."""

TRIAL_COPIES = 8
TRIAL_IMAGES = 64
"""Copies and images that the choice is made on."""

DEFAULT_BUDGET = 50
"""Passes through the model that a request may cost, where none is given."""

OTHER_PASSES = 1 + VIEW_COUNT
"""Passes of a request beside its copies: the clean image and its views."""


@dataclass(frozen=True)
class Choice:
    """The noise that was chosen, and why.

    Attributes:
        smoothing: What to calibrate with.
        label_kept: For each sigma tried, the share of copies that kept the label.
        reliability: Share of the variance of a request's mean odds under noise that lies between
            images and not between copies, at the chosen n, in [0, 1].
        why: The same in words.
    """

    smoothing: Smoothing
    label_kept: dict[float, float]
    reliability: float
    why: str


def choose_smoothing(
    model: nn.Module,
    images: Tensor,
    *,
    budget: int = DEFAULT_BUDGET,
    seed: int = 0,
    key: bytes | None = None,
    composite: Composite = EPSILON,
) -> Choice:
    """Choose sigma and n on clean images.

    Sigma is the largest of ``SIGMAS`` at which ``LABEL_KEPT`` of the copies keep the label: noise
    that clean images do not bear says nothing of attacked ones. n is the smallest at which the
    mean over the copies is reliable, or what the budget allows.

    Args:
        model: As for :class:`lrpguard.Guard`.
        images: Clean images in [0, 1], [B, C, H, W]; the first ``TRIAL_IMAGES`` are used. They
            may fit the detector as well, but must not calibrate it.
        budget: Most passes through the model that one request may cost; a noisy copy costs two,
            forward and backward, the clean image and each view one.
        seed: Public seed of the noise.
        key: Secret key of the noise.
        composite: Which LRP rule for which layer.

    Raises:
        ConfigurationError: The budget is too small for two copies.
        InputError: The images break the contract.
        ModelError: The model cannot be guarded.
    """
    affordable = (budget - OTHER_PASSES) // 2
    if affordable < 2:
        raise ConfigurationError(
            f"the budget is {budget} passes; a request costs {OTHER_PASSES} and 2 for each noisy "
            f"copy, of which there must be two. Give at least {OTHER_PASSES + 4}."
        )
    model = check_model(model)
    check_eval(model)
    images = to_model(check_images(images[:TRIAL_IMAGES]), model)
    label = clean_logits(model, images).argmax(1)
    noise_key = key_bytes(seed, key)
    kept: dict[float, float] = {}
    chosen, odds = SIGMAS[0], torch.empty(0)
    for sigma in SIGMAS:
        logits = torch.stack([_noisy_logits(model, image, sigma, noise_key) for image in images])
        kept[sigma] = float((logits.argmax(2) == label[:, None]).double().mean())
        if kept[sigma] < LABEL_KEPT and sigma > SIGMAS[0]:
            break
        chosen, odds = sigma, _runner_up_odds(logits, label)
    wanted, ratio = _copies(odds)
    n = min(wanted, affordable, PAPER_N)
    reliability = 1 / (1 + ratio / n)
    return Choice(
        smoothing=Smoothing(n=n, sigma=chosen, seed=seed, composite=composite),
        label_kept=kept,
        reliability=reliability,
        why=_why(kept, chosen, n, wanted, affordable, reliability, budget),
    )


def _noisy_logits(model: nn.Module, image: Tensor, sigma: float, key: bytes) -> Tensor:
    """Return logits of the trial copies of an image [N, K]: the first that a request gets."""
    noise = gaussian_copies(image_digest(image, key), 0, TRIAL_COPIES, image.shape)
    copies = (image.float() + sigma * noise.to(image.device)).to(image.dtype)
    return plain_logits(model, copies)


def _runner_up_odds(logits: Tensor, label: Tensor) -> Tensor:
    """Return the odds of the class nearest to the label, of each copy, float64 [B, N]."""
    against = logits.double() - logits.double().gather(
        2, label.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
    )
    mean = against.mean(1).scatter(1, label[:, None], -torch.inf)
    runner_up = mean.argmax(1).view(-1, 1, 1).expand(-1, logits.shape[1], 1)
    return against.gather(2, runner_up).squeeze(2)


def _copies(odds: Tensor) -> tuple[int, float]:
    """Return the n that reliability asks for, and the variance ratio of copies to images."""
    within = float(odds.var(1).mean())
    between = float(odds.mean(1).var()) - within / odds.shape[1] if len(odds) > 1 else 0.0
    ratio = within / max(between, 1e-12)
    wanted = math.ceil(ratio * RELIABILITY / (1 - RELIABILITY))
    return min(max(wanted, TRIAL_COPIES), PAPER_N), ratio


def _why(
    kept: dict[float, float],
    sigma: float,
    n: int,
    wanted: int,
    affordable: int,
    reliability: float,
    budget: int,
) -> str:
    tried = ", ".join(f"{s:g}: {100 * share:.1f} %" for s, share in kept.items())
    noise = (
        f"sigma {sigma:g} is the largest at which {100 * LABEL_KEPT:.0f} % of the noisy copies "
        f"of clean images keep their label ({tried})"
        if kept[sigma] >= LABEL_KEPT
        else f"sigma {sigma:g} is the smallest tried; even it changes too many labels ({tried})"
    )
    limit = f" (the budget of {budget} passes allows {affordable})" if n < wanted else ""
    return (
        f"{noise}; with {n} copies{limit}, {100 * reliability:.0f} % of the variance of their "
        "mean lies between images, the rest is noise"
    )
