"""Methods of attribution on one interface: LRP, and what the literature compares it with."""

from lrpguard.attribution.bayesian import BayesianLrp, BayesianRelevance, bayesian_relevance
from lrpguard.attribution.methods import (
    Gradient,
    GradientTimesInput,
    IntegratedGradients,
    Lrp,
    Method,
    SmoothGrad,
    attribute,
)

__all__ = [
    "BayesianLrp",
    "BayesianRelevance",
    "Gradient",
    "GradientTimesInput",
    "IntegratedGradients",
    "Lrp",
    "Method",
    "SmoothGrad",
    "attribute",
    "bayesian_relevance",
]
