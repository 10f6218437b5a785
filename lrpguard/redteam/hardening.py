"""Guards made harder to pass, on the side of the evaluation: what more they look at, and how.

Each variant reads signals of a request beside the guard's own anomaly, all made of logits: do the
strong views, and copies under louder noise, still speak for the label? It flags by the largest of
them, or by one that is drawn anew for each request. Every variant, the guard as it is among them,
is calibrated on the same clean images, so that all are compared at one false-positive rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lrpguard.attacks.margins import margin
from lrpguard.conformal import check_size, conformal_p_values, flagged_rank
from lrpguard.guard import Guard
from lrpguard.noise import gaussian_copies, image_digest
from lrpguard.views import strong_views

GUARD, STRONG = "guard", "strong views"
LOUD: Mapping[str, float] = MappingProxyType({"sigma 0.05": 0.05, "sigma 0.1": 0.1})
"""Louder noise, standard deviation on the [0, 1] pixel scale."""

SIGNALS = (GUARD, STRONG, *LOUD)
"""All that a variant may read: the root of the guard's anomaly, and how little the strong views,
or copies under louder noise, agree with the label."""

LOUD_COPIES = 8
"""Copies of each louder noise."""

BATCH = 16

LoudNoise = Callable[[Tensor, int], Tensor]
"""From images [B, C, H, W] and the number of the louder noise to normal noise [n, B, C, H, W]."""


@dataclass(frozen=True)
class Variant:
    """One way to harden.

    Attributes:
        name: What it is called.
        signals: What it reads, of ``SIGNALS``, the guard's first.
        drawn: Whether each request is judged by the guard's anomaly and one of the others, drawn
            by a secret function of its content, in place of all.
    """

    name: str
    signals: tuple[str, ...]
    drawn: bool = False


VARIANTS = (
    Variant("the guard as it is", (GUARD,)),
    Variant("strong views have to agree", (GUARD, STRONG)),
    Variant("several sigmas", (GUARD, *LOUD)),
    Variant("all of these", SIGNALS),
    Variant("one of these, drawn for each request", SIGNALS, drawn=True),
)


@dataclass(frozen=True)
class Signals:
    """What is read of a batch.

    Attributes:
        label: Predicted classes [B].
        values: Signals, large is suspicious, float64 on the CPU [B, J].
        drawn: A number for each request from which one signal is drawn, int64 [B].
    """

    label: Tensor
    values: Tensor
    drawn: Tensor


def read_signals(guard: Guard, key: bytes, images: Tensor) -> Signals:
    """Return all signals of images as the hardened guard with this key reads them."""
    parts = [_read(guard, key, part) for part in images.split(BATCH)]
    return Signals(
        torch.cat([part.label for part in parts]),
        torch.cat([part.values for part in parts]),
        torch.cat([part.drawn for part in parts]),
    )


def _read(guard: Guard, key: bytes, images: Tensor) -> Signals:
    verdict = guard(images)
    own = verdict.score.double().cpu().clamp(min=0).sqrt()

    def noise(batch: Tensor, which: int) -> Tensor:
        digests = [image_digest(image, _derived(key, f"noise {which}")) for image in batch]
        each = [gaussian_copies(digest, 0, LOUD_COPIES, batch.shape[1:]) for digest in digests]
        return torch.stack(each, dim=1).to(batch)

    with torch.no_grad():
        others = beside(guard.model, images, verdict.label, SIGNALS[1:], noise).cpu()
    drawn = [image_digest(image, _derived(key, "draw"))[0] for image in images]
    return Signals(
        verdict.label, torch.cat([own[:, None], others], 1), torch.tensor(drawn, dtype=torch.int64)
    )


def beside(
    model: nn.Module, images: Tensor, label: Tensor, names: Sequence[str], noise: LoudNoise
) -> Tensor:
    """Return the named signals but the guard's own, with a gradient, float64 [B, J].

    Args:
        model: From [B, C, H, W] in [0, 1] to logits.
        images: The requests.
        label: The class that they are taken for [B].
        names: Of ``SIGNALS``, the guard's left out; at least one.
        noise: Gives the noise of louder copies.
    """
    looked = [_looked_at(images, name, noise) for name in names]
    logits = model(torch.cat([several.flatten(0, 1) for several in looked])).double()
    each = logits.unflatten(0, (-1, len(images))).split([len(several) for several in looked])
    return torch.stack([doubt(part, label) for part in each], dim=1)


def doubt(logits: Tensor, label: Tensor) -> Tensor:
    """Return by how much another class leads the label in the mean log-probability [B].

    Args:
        logits: Of several looks at each request [V, B, K].
        label: The class that it is taken for [B].
    """
    return -margin(logits.log_softmax(2).mean(0), label)


def _looked_at(images: Tensor, name: str, noise: LoudNoise) -> Tensor:
    """Return what one signal looks at [V, B, C, H, W]."""
    if name in LOUD:
        return images + LOUD[name] * noise(images, list(LOUD).index(name))
    views = torch.stack([torch.stack(strong_views(image)) for image in images], dim=1)
    stored = (views[:1] - images).detach() + images  # JPEG straight through, as of no gradient
    return torch.cat([stored, views[1:]])


@dataclass(frozen=True)
class Hardened:
    """A variant, calibrated on clean images.

    Attributes:
        variant: Which.
        columns: Its signals among ``SIGNALS``.
        middle: Median of each on clean images [J].
        scale: From there to the 95 % quantile, over 1.645 [J].
        known: Anomalies of the clean calibration images, each column ascending: the largest of
            all signals; or, where one is drawn, one column for each draw; float64 [n, D].
    """

    variant: Variant
    columns: tuple[int, ...]
    middle: Tensor
    scale: Tensor
    known: Tensor

    @staticmethod
    def fit(variant: Variant, fitted: Tensor, calibrated: Tensor) -> Hardened:
        """Fit and calibrate.

        Args:
            variant: Which.
            fitted: Signals of clean images that put the signals on one scale [m, 4].
            calibrated: Of others, which calibrate [n, 4].

        Raises:
            CalibrationSizeError: Too few for 1 % false positives.
        """
        check_size(len(calibrated), 0.01)
        columns = tuple(SIGNALS.index(name) for name in variant.signals)
        some = fitted[:, list(columns)]
        middle = some.median(0).values
        scale = ((some.quantile(0.95, dim=0) - middle) / 1.645).clamp(min=1e-6)
        blank = Hardened(variant, columns, middle, scale, middle.new_zeros(0, 0))
        known = blank.anomalies(calibrated).sort(0).values
        return Hardened(variant, columns, middle, scale, known)

    def standard(self, values: Tensor) -> Tensor:
        """Return the variant's signals in deviations of clean images' [B, J], of all [B, 4]."""
        return (values[:, list(self.columns)] - self.middle) / self.scale

    def anomalies(self, values: Tensor) -> Tensor:
        """Return the anomaly [B, 1], or that of each draw [B, D]."""
        each = self.standard(values)
        if self.variant.drawn:
            return each[:, 1:].maximum(each[:, :1])
        return each.amax(1, keepdim=True)

    def p_values(self, signals: Signals) -> Tensor:
        """Return conformal p-values [B]."""
        found = self.anomalies(signals.values)
        columns = zip(self.known.T, found.T, strict=True)
        every = torch.stack([conformal_p_values(one.contiguous(), two) for one, two in columns], 1)
        return every.gather(1, (signals.drawn % every.shape[1])[:, None])[:, 0]

    def threshold(self, alpha: float) -> Tensor:
        """Return the largest anomaly that is not flagged at alpha, for each draw [D]."""
        return self.known[len(self.known) - flagged_rank(len(self.known), alpha)]


def _derived(key: bytes, purpose: str) -> bytes:
    """Return another key for each purpose, so that no noise is used twice."""
    return hashlib.blake2b(purpose.encode(), digest_size=32, key=key).digest()
