"""Labels that other restorations would give: the guard's own is one among them.

Each is told that the request is adversarial, and gives a label other than the predicted one, or
``UNKNOWN``. None knows the true class, the attack or its strength.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from lrpguard.consensus import propose
from lrpguard.detector import CombinedDetector
from lrpguard.errors import ConfigurationError
from lrpguard.evidence import Evidence
from lrpguard.filters import filled, gaussian, neighbourhood_mean
from lrpguard.guard import Guard
from lrpguard.lrp.engine import plain_logits
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from lrpguard.readings import read
from lrpguard.restoration import Whitening, whiten
from lrpguard.smoothing import chunk_size, clean_logits
from lrpguard.views import STRONG_VIEWS, VIEWS, changed_views

BLURRED_SHARE = 0.2
BLUR_SIGMA = 1.5
"""Share of the pixels that are blurred, those of most relevance, and the blur's sigma in pixels."""

INPAINTED_SHARE = 0.1
INPAINT_SIGMA = 2.0
"""Share of the pixels that are painted over, and how far the paint comes from, in pixels."""

COUNTER_COPIES = 8
COUNTER_STEPS = 5
COUNTER_EPS = 4 / 255
"""Copies, gradient steps and largest change of a pixel of the counter-perturbation."""

DEFAULT, ALL, NONE = "default", "all", "none"
"""Words for a choice of candidates: those without a further pass, every one, not one."""

_VIEW_ROWS = {name: row for row, name in enumerate((*VIEWS, "covered", *STRONG_VIEWS))}


@dataclass(frozen=True, eq=False)
class Told:
    """Requests that are said to be adversarial, and what the guard's one pass has shown of them.

    Attributes:
        guard: The calibrated guard.
        images: Checked images on the model's device [B, C, H, W].
        evidence: What all copies, and the views, have shown.
    """

    guard: Guard
    images: Tensor
    evidence: Evidence

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.guard.model

    @property
    def label(self) -> Tensor:
        """Predicted classes [B]."""
        return self.evidence.label

    @cached_property
    def view_logits(self) -> Tensor:
        """Logits of the changed views [B, V, K]; run here where the detector takes none."""
        found = self.evidence.view_logits
        if found is not None:
            return found
        return torch.stack([plain_logits(self.model, changed_views(i)) for i in self.images])


Restore = Callable[[Told], Tensor]


@dataclass(frozen=True)
class Candidate:
    """A way to restore.

    Attributes:
        name: Its name.
        title: What tables call it.
        passes: What it costs beyond the guard's pass, in passes of the model for one image.
        free: Whether it costs none.
        control: Whether it stands there to be beaten.
        restore: From requests to labels, ``UNKNOWN`` where it gives none [B].
    """

    name: str
    title: str
    passes: str
    free: bool
    control: bool
    restore: Restore


def choose(text: str | None) -> tuple[Candidate, ...]:
    """Return the candidates that a text names.

    Args:
        text: Names with commas between them, ``"all"``, ``"none"``, or ``"default"``, which None
            is, too: those that cost no further pass.

    Raises:
        ConfigurationError: There is no such candidate.
    """
    names = [name.strip() for name in (text or DEFAULT).split(",") if name.strip()]
    if names in ([DEFAULT], [ALL], [NONE]):
        return tuple(c for c in CANDIDATES if names == [ALL] or (names == [DEFAULT] and c.free))
    known = [candidate.name for candidate in CANDIDATES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(
            f"no restoration is named {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(known)}, and the words {ALL}, {NONE} and {DEFAULT}."
        )
    return tuple(candidate for candidate in CANDIDATES if candidate.name in names)


def restored_labels(told: Told, candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """Return the labels that each candidate gives, by its name."""
    return {c.name: [int(label) for label in c.restore(told)] for c in candidates}


def best_other(logits: Tensor, label: Tensor) -> Tensor:
    """Return the class of largest logit other than the label [...].

    Args:
        logits: [B, ..., K].
        label: [B].
    """
    return without(logits, label).argmax(-1)


def without(logits: Tensor, label: Tensor) -> Tensor:
    """Return logits [B, ..., K] with the label's at minus infinity."""
    own = label.view(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
    return logits.double().scatter(-1, own, -torch.inf)


def _consensus(told: Told) -> Tensor:
    calibration = told.guard.calibration
    detector = None if calibration is None else calibration.detector
    if not isinstance(detector, CombinedDetector):
        raise ConfigurationError(
            "the restoration 'consensus' needs a guard calibrated with detector='combined'; leave "
            "it out, or calibrate with that."
        )
    readings = read(told.evidence, detector.score_names)
    assert readings.candidates is not None
    anomaly, painted = detector.anomaly(readings), detector.painted(readings)
    return propose(readings.candidates, detector.consistency, anomaly, painted).label


def _runner_up(told: Told) -> Tensor:
    return best_other(told.evidence.logits, told.label)


def _vote(told: Told) -> Tensor:
    """Each copy votes for its best other class; of equal votes the more probable class wins."""
    others = without(told.evidence.noisy_logits, told.label)
    classes = others.shape[-1]
    votes = torch.nn.functional.one_hot(others.argmax(-1), classes).double().mean(1)
    return (votes + 1e-6 * others.softmax(-1).mean(1)).argmax(-1)


def _mean_softmax(told: Told) -> Tensor:
    mean = told.evidence.noisy_logits.double().softmax(-1).mean(1)
    return best_other(mean, told.label)


def _view(name: str) -> Restore:
    def restore(told: Told) -> Tensor:
        return best_other(told.view_logits[:, _VIEW_ROWS[name]], told.label)

    return restore


def _whitening(ranking: Literal["variance", "random"]) -> Restore:
    def restore(told: Told) -> Tensor:
        smoothing = told.guard.smoothing
        return whiten(
            told.model,
            told.images,
            told.evidence,
            whitening=Whitening(ranking=ranking),
            smoothing=smoothing,
            key=key_bytes(smoothing.seed),
            chunk=chunk_size(
                told.model, told.images, composite=smoothing.composite, memory_budget=None
            ),
        ).label

    return restore


def _on_relevant_pixels(share: float, change: Callable[[Tensor, Tensor], Tensor]) -> Restore:
    """Return the restoration that changes each image where its relevance is largest.

    Args:
        share: Share of the pixels.
        change: From an image [C, H, W] and those pixels, bool [H, W], to the changed one.
    """

    def restore(told: Told) -> Tensor:
        changed = []
        for image, relevance in zip(told.images, told.evidence.relevance_mean, strict=True):
            heat = neighbourhood_mean(relevance.float()).flatten()
            top = heat.topk(max(1, round(share * len(heat)))).indices
            hot = torch.zeros_like(heat, dtype=torch.bool).scatter(0, top, True)
            changed.append(change(image.float(), hot.view(relevance.shape)).to(image.dtype))
        return best_other(clean_logits(told.model, torch.stack(changed)), told.label)

    return restore


def _blur(image: Tensor, hot: Tensor) -> Tensor:
    return torch.where(hot, gaussian(image, BLUR_SIGMA), image)


def _inpaint(image: Tensor, hot: Tensor) -> Tensor:
    return filled(image, (~hot).to(image.dtype)[None], INPAINT_SIGMA)


def counter_perturbed(
    model: nn.Module, image: Tensor, label: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Move an image to where its noisy copies agree better on one of the other classes.

    Signed gradient steps lower the entropy of the copies' mean softmax, the label left out.

    Args:
        model: From images to logits.
        image: Pixels [C, H, W].
        label: Predicted class, a scalar.
        noise: What makes the copies [N, C, H, W].

    Returns:
        The moved image, within ``COUNTER_EPS`` and [0, 1], and that mean softmax there [K].
    """
    moved = image.detach().clone()
    for _ in range(COUNTER_STEPS):
        with torch.enable_grad():
            moved.requires_grad_(True)
            mean = _other_classes(model(moved + noise), label)
            entropy = -(mean * mean.clamp_min(1e-12).log()).sum()
            (slope,) = torch.autograd.grad(entropy, moved)
        step = 2 * COUNTER_EPS / COUNTER_STEPS * slope.sign()
        change = (moved.detach() - step - image).clamp(-COUNTER_EPS, COUNTER_EPS)
        moved = (image + change).clamp(0, 1)
    with torch.no_grad():
        return moved, _other_classes(model(moved + noise), label)


def _counter_perturbation(told: Told) -> Tensor:
    sigma, key = told.guard.smoothing.sigma, key_bytes(told.guard.smoothing.seed)
    labels = []
    for image, label in zip(told.images, told.label, strict=True):
        noise = gaussian_copies(image_digest(image, key), 0, COUNTER_COPIES, image.shape)
        _, mean = counter_perturbed(told.model, image, label, (sigma * noise).to(image))
        labels.append(mean.argmax())
    return torch.stack(labels)


def _other_classes(logits: Tensor, label: Tensor) -> Tensor:
    """Return the mean over copies [N, K] of the softmax without one class [K]."""
    return without(logits, label.expand(len(logits))).softmax(-1).mean(0)


_NONE = "none"

CANDIDATES = (
    Candidate("consensus", "consensus, the guard's own proposal", _NONE, True, False, _consensus),
    Candidate("runner-up", "runner-up class", _NONE, True, True, _runner_up),
    Candidate("vote", "vote of the noisy copies", _NONE, True, False, _vote),
    Candidate("mean-softmax", "mean softmax of the copies", _NONE, True, False, _mean_softmax),
    Candidate("median", "median filter", _NONE, True, False, _view("median")),
    Candidate("jpeg", "JPEG", _NONE, True, False, _view("jpeg")),
    Candidate("total-variation", "total variation", _NONE, True, False, _view("total_variation")),
    Candidate(
        "whitening",
        "whitening by variance (the paper)",
        "up to 10 forward and 9 n forward, backward",
        False,
        False,
        _whitening("variance"),
    ),
    Candidate(
        "whitening-random",
        "whitening random pixels",
        "up to 10 forward",
        False,
        True,
        _whitening("random"),
    ),
    Candidate(
        "heat-and-blur",
        "blurring relevant pixels",
        "1 forward",
        False,
        False,
        _on_relevant_pixels(BLURRED_SHARE, _blur),
    ),
    Candidate(
        "inpainting",
        "inpainting relevant pixels",
        "1 forward",
        False,
        False,
        _on_relevant_pixels(INPAINTED_SHARE, _inpaint),
    ),
    Candidate(
        "counter-perturbation",
        "counter-perturbation",
        f"{COUNTER_COPIES * (COUNTER_STEPS + 1)} forward, "
        f"{COUNTER_COPIES * COUNTER_STEPS} backward",
        False,
        False,
        _counter_perturbation,
    ),
)
"""Every candidate, in the order of the tables.

Sources: whitening: Raulf et al. 2021; blurring where relevance is largest: Brama and Grinshpoun
2020, "Heat and Blur"; median filter: Xu et al. 2018; JPEG: Dziugaite et al. 2016; total variation:
Guo et al. 2018; votes and means of noisy copies: Cohen et al. 2019; perturbing against the
perturbation: Wu et al. 2021, "Attacking adversarial attacks as a defense", whose loss is another.
"""
