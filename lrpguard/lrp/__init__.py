"""Relevance of one batch by layer-wise relevance propagation; knows nothing of guards or noise."""

from lrpguard.lrp.composites import EPSILON, ZERO, Composite
from lrpguard.lrp.engine import Conservation, Relevance, conservation, relevance
from lrpguard.lrp.rules import Epsilon, Rule, Zero

__all__ = [
    "EPSILON",
    "ZERO",
    "Composite",
    "Conservation",
    "Epsilon",
    "Relevance",
    "Rule",
    "Zero",
    "conservation",
    "relevance",
]
