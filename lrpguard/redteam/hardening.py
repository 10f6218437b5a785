"""Guards made harder to pass, on the side of the evaluation: what more they look at, and how.

Each variant reads signals of a request beside the guard's own anomaly: do the strong views, and
copies under louder noise, still speak for the label; and are the relevance maps of the copies like
those of a clean image? It flags by the largest of them, or by some that are drawn anew for each
request. Every variant, the guard as it is among them, is calibrated on the same clean images, so
that all are compared at one false-positive rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from lrpguard.attacks.margins import margin
from lrpguard.conformal import check_size, conformal_p_values, flagged_rank
from lrpguard.guard import Guard
from lrpguard.noise import gaussian_copies, image_digest
from lrpguard.redteam.relevance_signals import DRAWN, RELEVANCE, relevance_signals, signals_of
from lrpguard.views import strong_views

GUARD, STRONG = "guard", "strong views"
LOUD: Mapping[str, float] = MappingProxyType({"sigma 0.05": 0.05, "sigma 0.1": 0.1})
"""Louder noise, standard deviation on the [0, 1] pixel scale."""

OF_LOGITS = (GUARD, STRONG, *LOUD)
SIGNALS = (*OF_LOGITS, *RELEVANCE)
"""All that a variant may read: the root of the guard's anomaly; how little the strong views, or
copies under louder noise, agree with the label; and what the relevance maps say, of which too much
is as suspicious as too little, since strong attacks make them vary less."""

COPIES = 8
"""Copies of each louder noise, and of the guard's for the relevance maps."""

BATCH = 16

Noises = Callable[[Tensor, str], Tensor]
"""From images [B, C, H, W] and the name of a louder noise, or ``"relevance"``, to standard normal
noise [n, B, C, H, W]."""


@dataclass(frozen=True)
class Variant:
    """One way to harden.

    Attributes:
        name: What it is called.
        draws: Sets of ``SIGNALS``, the guard's first in each; a request is judged by one of them,
            drawn by a secret function of its content where there are several.
    """

    name: str
    draws: tuple[tuple[str, ...], ...]

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of all that it reads, the guard's first."""
        return tuple(dict.fromkeys(name for draw in self.draws for name in draw))


VARIANTS = (
    Variant("the guard as it is", ((GUARD,),)),
    Variant("strong views have to agree", ((GUARD, STRONG),)),
    Variant("several sigmas", ((GUARD, *LOUD),)),
    Variant("all of these", (OF_LOGITS,)),
    Variant("one of these, drawn for each request", tuple((GUARD, name) for name in OF_LOGITS[1:])),
    Variant("relevance, epsilon-plus", ((GUARD, *signals_of("epsilon-plus")),)),
    Variant(
        "relevance, composite drawn for each request",
        tuple((GUARD, *signals_of(name)) for name in DRAWN),
    ),
)


@dataclass(frozen=True)
class Signals:
    """What is read of a batch.

    Attributes:
        label: Predicted classes [B].
        values: Signals, large is suspicious, float64 on the CPU [B, J].
        drawn: A number for each request by which one of the draws is made, int64 [B].
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

    def noise(batch: Tensor, name: str) -> Tensor:
        # Louder noises go by number, as they always did, so that old measurements can be repeated.
        purpose = f"noise {list(LOUD).index(name) if name in LOUD else name}"
        digests = [image_digest(image, _derived(key, purpose)) for image in batch]
        each = [gaussian_copies(digest, 0, COPIES, batch.shape[1:]) for digest in digests]
        return torch.stack(each, dim=1).to(batch)

    with torch.no_grad():
        others = beside(guard, images, verdict.label, SIGNALS[1:], noise).cpu()
    drawn = [image_digest(image, _derived(key, "draw"))[0] for image in images]
    return Signals(
        verdict.label, torch.cat([own[:, None], others], 1), torch.tensor(drawn, dtype=torch.int64)
    )


def beside(
    guard: Guard, images: Tensor, label: Tensor, names: Sequence[str], noise: Noises
) -> Tensor:
    """Return the named signals but the guard's own, with a gradient, float64 [B, J].

    Args:
        guard: The guard beneath.
        images: The requests.
        label: The class that they are taken for [B].
        names: Of ``SIGNALS``, the guard's left out; at least one.
        noise: Gives the noise of the copies.
    """
    found: dict[str, Tensor] = {}
    of_logits = [name for name in names if name not in RELEVANCE]
    if of_logits:
        looked = [_looked_at(images, name, noise) for name in of_logits]
        logits = guard.model(torch.cat([several.flatten(0, 1) for several in looked])).double()
        each = logits.unflatten(0, (-1, len(images))).split([len(several) for several in looked])
        found |= {n: doubt(part, label) for n, part in zip(of_logits, each, strict=True)}
    of_maps = [name for name in names if name in RELEVANCE]
    if of_maps:
        scaled = guard.smoothing.sigma * noise(images, "relevance")
        columns = relevance_signals(guard.model, images, label, of_maps, scaled)
        found |= dict(zip(of_maps, columns.unbind(1), strict=True))
    return torch.stack([found[name] for name in names], dim=1)


def doubt(logits: Tensor, label: Tensor) -> Tensor:
    """Return by how much another class leads the label in the mean log-probability [B].

    Args:
        logits: Of several looks at each request [V, B, K].
        label: The class that it is taken for [B].
    """
    return -margin(logits.log_softmax(2).mean(0), label)


def _looked_at(images: Tensor, name: str, noise: Noises) -> Tensor:
    """Return what one signal looks at [V, B, C, H, W]."""
    if name in LOUD:
        return images + LOUD[name] * noise(images, name)
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
        scale: The 95 % quantile of the excess over it, or of the distance from it where both
            sides are suspicious, over 1.645 [J].
        known: Anomalies of the clean calibration images, the largest of all signals of a draw,
            one column for each draw, each ascending; float64 [n, D].
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
            fitted: Signals of clean images that put the signals on one scale [m, S].
            calibrated: Of others, which calibrate [n, S].

        Raises:
            CalibrationSizeError: Too few for 1 % false positives.
        """
        check_size(len(calibrated), 0.01)
        columns = tuple(SIGNALS.index(name) for name in variant.signals)
        some = fitted[:, list(columns)]
        middle = some.median(0).values
        blank = Hardened(variant, columns, middle, torch.ones_like(middle), middle.new_zeros(0, 0))
        scale = (blank.standard(some).quantile(0.95, dim=0) / 1.645).clamp(min=1e-6)
        scaled = replace(blank, scale=scale)
        return replace(scaled, known=scaled.anomalies(calibrated).sort(0).values)

    def standard(self, own: Tensor) -> Tensor:
        """Return the variant's signals in deviations of clean images' [B, J], as suspicion."""
        away = own - self.middle
        both = torch.tensor([name in RELEVANCE for name in self.variant.signals])
        return torch.where(both, away.abs(), away) / self.scale

    def anomalies(self, values: Tensor) -> Tensor:
        """Return the anomaly of each draw [B, D] from all signals [B, S]."""
        each = self.standard(values[:, list(self.columns)])
        names = self.variant.signals
        draws = [[names.index(name) for name in draw] for draw in self.variant.draws]
        return torch.stack([each[:, draw].amax(1) for draw in draws], dim=1)

    def weights(self) -> Tensor:
        """Return the share of the draws in which each of its signals is read [J]."""
        draws = self.variant.draws
        counts = [sum(name in draw for draw in draws) for name in self.variant.signals]
        return torch.tensor(counts, dtype=torch.float64) / len(draws)

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
