"""What relevance maps of noisy copies say of a request, as signals of a hardened guard.

Two numbers without a scale for each composite: how much the maps of the copies vary for what they
explain, and how alike they are. The product's own LRP gives their values; where the images have a
gradient, LRP on a softened network gives the slope, straight through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpguard.lrp import EPSILON, EPSILON_PLUS, Composite, Epsilon, Gamma, LayerRule, relevance
from lrpguard.redteam.soft_lrp import soft_relevance

EPSILON_GAMMA = Composite(
    "epsilon-gamma", Epsilon(1e-6), (LayerRule(Gamma(0.25), kind="convolution"),)
)
"""Convolutions gamma 0.25, dense layers epsilon."""

DRAWN: Mapping[str, Composite] = MappingProxyType(
    {composite.name: composite for composite in (EPSILON, EPSILON_PLUS, EPSILON_GAMMA)}
)
"""Composites that may explain a request, by name."""

RELEVANCE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        f"{reading} of relevance, {name}": (name, reading)
        for name in DRAWN
        for reading in ("variance", "likeness")
    }
)
"""Signals by name: under which composite, and which of the readings of :func:`readings`."""


def signals_of(composite: str) -> tuple[str, ...]:
    """Return the names of the signals that are read under one composite."""
    return tuple(name for name, (under, _) in RELEVANCE.items() if under == composite)


def relevance_signals(
    model: nn.Module, images: Tensor, label: Tensor, names: Sequence[str], noise: Tensor
) -> Tensor:
    """Return the named signals, float64 [B, J]; with a slope where the images have one.

    Args:
        model: From [B, C, H, W] in [0, 1] to logits.
        images: The requests.
        label: The class explained [B].
        names: Of ``RELEVANCE``, at least one.
        noise: What is added to make the copies, at least two [n, B, C, H, W].
    """
    several = (images + noise).flatten(0, 1)
    classes = label.repeat(len(noise))
    found = {}
    for name in dict.fromkeys(RELEVANCE[name][0] for name in names):
        exact = relevance(model, several, classes, composite=DRAWN[name])
        values = _readings(exact.relevance.sum(1), exact.logits, classes, len(noise))
        if several.requires_grad:
            soft = soft_relevance(model, several, classes, DRAWN[name])
            slope = _readings(soft, model(several), classes, len(noise))
            values = {key: values[key] + slope[key] - slope[key].detach() for key in values}
        found[name] = values
    return torch.stack([found[RELEVANCE[name][0]][RELEVANCE[name][1]] for name in names], 1)


def readings(maps: Tensor, explained: Tensor) -> dict[str, Tensor]:
    """Return what the maps of copies say, each [B].

    ``variance`` is the logarithm of the maps' variance over the copies, in the mean over pixels,
    over the squared mean of the logit explained (the paper's signal, without its scale: Raulf et
    al. 2021, section 3.2). ``likeness`` is the mean cosine of two copies' maps.

    Args:
        maps: Relevance maps [n, B, H, W].
        explained: Logit of the class explained [n, B].
    """
    flat = maps.double().flatten(2)
    variance = flat.var(0).mean(1).clamp(min=1e-30).log()
    size = explained.double().mean(0).square().clamp(min=1e-12).log()
    summed = functional.normalize(flat, dim=2).sum(0).square().sum(1)
    n = len(maps)
    return {"variance": variance - size, "likeness": (summed - n) / (n * (n - 1))}


def _readings(maps: Tensor, logits: Tensor, classes: Tensor, copies: int) -> dict[str, Tensor]:
    explained = logits.gather(1, classes[:, None])[:, 0]
    shape = (copies, -1)
    return readings(maps.unflatten(0, shape), explained.unflatten(0, shape))
