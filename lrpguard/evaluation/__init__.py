"""How well a detector or a restoration did, with intervals."""

from lrpguard.evaluation.metrics import Proportion, auroc, proportion

__all__ = ["Proportion", "auroc", "proportion"]
