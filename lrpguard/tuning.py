"""Noise that suits a model, chosen on clean images alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrpguard.calibrator import fit_images
from lrpguard.detector import needs_fit
from lrpguard.errors import ConfigurationError, InputShapeError, NonFiniteScoreError
from lrpguard.inputs import check_eval, check_images, check_model
from lrpguard.lrp.composites import EPSILON, Composite
from lrpguard.lrp.engine import plain_logits
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from lrpguard.smoothing import PAPER_N, Smoothing, clean_logits, to_model
from lrpguard.views import VIEW_COUNT

Batch = Tensor | tuple[Tensor, ...] | list[Tensor]
"""Images [B, C, H, W], or a tuple that begins with them, as a DataLoader gives."""

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


_log = logging.getLogger("lrpguard")


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
    n: int | None = None,
    sigma: float | None = None,
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
            may fit the detector as well. Where few images both fit and calibrate, crossed, they
            calibrate it, too: the choice looks at their labels under noise, not at their scores.
        n: Noisy copies, where that is settled; None chooses.
        sigma: Strength of the noise, where that is settled; None chooses.
        budget: Most passes through the model that one request may cost; a noisy copy costs two,
            forward and backward, the clean image and each view one. It bounds the choice of n.
        seed: Public seed of the noise.
        key: Secret key of the noise.
        composite: Which LRP rule for which layer.

    Raises:
        ConfigurationError: The budget is too small for two copies.
        InputError: The images break the contract.
        ModelError: The model cannot be guarded.
        NonFiniteScoreError: Its logits are NaN or infinite.
    """
    affordable = (budget - OTHER_PASSES) // 2
    if n is None and affordable < 2:
        raise ConfigurationError(
            f"the budget is {budget} passes; a request costs {OTHER_PASSES} and 2 for each noisy "
            f"copy, of which there must be two. Give at least {OTHER_PASSES + 4}."
        )
    model = check_model(model)
    check_eval(model)
    images = to_model(check_images(images[:TRIAL_IMAGES]), model)
    clean = clean_logits(model, images)
    label = clean.argmax(1)
    noise_key = key_bytes(seed, key)
    kept: dict[float, float] = {}
    tried = SIGMAS if sigma is None else (float(sigma),)
    chosen, odds = tried[0], torch.empty(0)
    for strength in tried:
        logits = torch.stack([_noisy_logits(model, image, strength, noise_key) for image in images])
        _check_finite(torch.cat([clean, logits.flatten(0, 1)]), strength)
        kept[strength] = float((logits.argmax(2) == label[:, None]).double().mean())
        if kept[strength] < LABEL_KEPT and strength > tried[0]:
            break
        chosen, odds = strength, _runner_up_odds(logits, label)
    wanted, ratio = _copies(odds)
    copies = min(wanted, affordable, PAPER_N) if n is None else n
    smoothing = Smoothing(n=copies, sigma=chosen, seed=seed, composite=composite)
    reliability = 1 / (1 + ratio / copies)
    limit = f" (the budget of {budget} passes allows {affordable})" if copies < wanted else ""
    return Choice(
        smoothing=smoothing,
        label_kept=kept,
        reliability=reliability,
        why=f"{_why_sigma(kept, chosen, sigma is None)}; with {copies} copies"
        f"{limit if n is None else ', as asked for'}, {100 * reliability:.0f} % of the variance of "
        "their mean lies between images, the rest is noise",
    )


def choose_for(
    model: nn.Module,
    batches: Iterable[Batch],
    detector: str,
    n: int | None,
    budget: int | None,
    key: bytes,
) -> Choice | Smoothing:
    """Choose the noise of a calibration to come, on images that will fit the detector; log why.

    Args:
        model: As for :class:`lrpguard.Guard`.
        batches: Batches of clean images, or of tuples that begin with them; read once.
        detector: Name of the detector; the paper's takes the paper's noise.
        n: Noisy copies, where that is settled; None chooses.
        budget: Most passes of one request; None takes ``DEFAULT_BUDGET``.
        key: Noise key.

    Returns:
        The choice; the paper's noise where there are too few images to choose on, too.

    Raises:
        ConfigurationError: There is no such detector, or the budget is too small, or given where
            n is settled.
        InputError: The images break the contract or differ in size.
        ModelError: The model cannot be guarded.
    """
    paper = Smoothing() if n is None else Smoothing(n=n)
    if not needs_fit(detector):
        if budget is not None:
            raise ConfigurationError(
                f"the budget is for choosing n, and the {detector!r} detector takes the paper's "
                f"{PAPER_N} copies. Leave it out."
            )
        return paper
    if n is not None and budget is not None:
        raise ConfigurationError(
            f"the budget is for choosing n, and the looks settle {n} copies; leave one out."
        )
    trial = fit_images(_single(batches), TRIAL_IMAGES)
    if not trial:
        return paper
    budget = DEFAULT_BUDGET if budget is None else budget
    choice = choose_smoothing(model, torch.stack(trial), n=n, budget=budget, key=key)
    _log.info("noise chosen on %d clean images: %s", len(trial), choice.why)
    return choice


def _single(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Yield checked images of one size, one by one."""
    shape: torch.Size | None = None
    for batch in batches:
        images = check_images(batch[0] if isinstance(batch, (tuple, list)) else batch)
        shape = images.shape[1:] if shape is None else shape
        if images.shape[1:] != shape:
            raise InputShapeError(
                f"a batch has [C, H, W] = {list(images.shape[1:])} after one of {list(shape)}; "
                "scores depend on the size, so all calibration images must have one. Resize them "
                "first."
            )
        yield from images


def _check_finite(logits: Tensor, sigma: float) -> None:
    """Refuse logits of clean images and their copies that are not finite."""
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteScoreError(
            f"the model's logits are NaN or infinite on clean images, or on copies of them with "
            f"noise of sigma = {sigma:g}: it overflows in {logits.dtype}. Run it in float32."
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


def _why_sigma(kept: dict[float, float], sigma: float, chosen: bool) -> str:
    if not chosen:
        share = f"{100 * kept[sigma]:.1f} % of the noisy copies of clean images keep their label"
        return f"sigma {sigma:g} was asked for: {share}"
    tried = ", ".join(f"{s:g}: {100 * share:.1f} %" for s, share in kept.items())
    if kept[sigma] < LABEL_KEPT:
        return f"sigma {sigma:g} is the smallest tried; even it changes too many labels ({tried})"
    return (
        f"sigma {sigma:g} is the largest at which {100 * LABEL_KEPT:.0f} % of the noisy copies "
        f"of clean images keep their label ({tried})"
    )
