"""zennit 0.5.1 as an oracle for the rules with modified weights, on networks where it is right."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn
from zennit import rules
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.layer import Sum
from zennit.types import AvgPool, Convolution

STABILIZER = 1e-9
TINY = 1e-300

ORACLES: Mapping[str, tuple[str, tuple[float, ...]]] = MappingProxyType(
    {"z-plus": ("ZPlus", ()), "alpha-beta": ("AlphaBeta", (2, 1)), "gamma": ("Gamma", (0.25,))}
)
"""Rule of the convolutions: its class in zennit, and its values."""


def zennit_relevance(model: nn.Module, image: Tensor, rule: str, canonizer: str) -> Tensor:
    """Explain the predicted class by zennit.

    Args:
        model: Network in eval mode, with no activation in place and no eps in its BatchNorm.
        image: What it takes [B, C, H, W].
        rule: One of ``ORACLES``, on convolutions; dense layers get epsilon 1e-6.
        canonizer: Dotted name of the canonizer that merges the BatchNorm, ``""`` for none.
    """
    name, values = ORACLES[rule]
    canonizers = []
    if canonizer:
        module, _, attribute = canonizer.rpartition(".")
        canonizers.append(getattr(importlib.import_module(module), attribute)())
    composite = LayerMapComposite(
        [
            (Convolution, getattr(rules, name)(*values, stabilizer=STABILIZER)),
            (nn.Linear, rules.Epsilon(1e-6)),
            ((AvgPool, Sum), rules.Norm(stabilizer=TINY)),  # which lrpguard leaves plain
            ((nn.ReLU, nn.BatchNorm2d), rules.Pass()),
        ],
        canonizers=canonizers,
    )

    def start(logits: Tensor) -> Tensor:
        return F.one_hot(logits.argmax(1), logits.shape[1]) * logits

    with Gradient(model, composite) as attributor:
        _, attribution = attributor(image, start)
    relevance: Tensor = attribution.detach()
    return relevance
