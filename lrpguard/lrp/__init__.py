"""Relevance of one batch by layer-wise relevance propagation; knows nothing of guards or noise."""

from lrpguard.lrp.composites import (
    CMP,
    COMPOSITES,
    EPSILON,
    EPSILON_ALPHA2_BETA1,
    EPSILON_ALPHA2_BETA1_FLAT,
    EPSILON_GAMMA_BOX,
    EPSILON_PLUS,
    ZERO,
    Composite,
    LayerRule,
)
from lrpguard.lrp.engine import Conservation, Relevance, conservation, relevance
from lrpguard.lrp.first_rules import Flat, WSquare, ZBox
from lrpguard.lrp.rules import AlphaBeta, Epsilon, Gamma, Rule, Zero, ZPlus

__all__ = [
    "CMP",
    "COMPOSITES",
    "EPSILON",
    "EPSILON_ALPHA2_BETA1",
    "EPSILON_ALPHA2_BETA1_FLAT",
    "EPSILON_GAMMA_BOX",
    "EPSILON_PLUS",
    "ZERO",
    "AlphaBeta",
    "Composite",
    "Conservation",
    "Epsilon",
    "Flat",
    "Gamma",
    "LayerRule",
    "Relevance",
    "Rule",
    "WSquare",
    "ZBox",
    "ZPlus",
    "Zero",
    "conservation",
    "relevance",
]
