"""What a user would pick instead of lrpguard's detector, on one interface (docs/baselines.md).

Example:
    >>> import torch
    >>> from lrpguard.baselines import baseline
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    >>> clean, labels = torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.long)
    >>> baseline("energy").fit(model, clean, labels).anomaly(torch.rand(2, 3, 2, 2)).shape
    torch.Size([2])
"""

from lrpguard.baselines.base import Baseline, RestoringBaseline
from lrpguard.baselines.registry import BASELINES, attack_free, baseline

__all__ = ["BASELINES", "Baseline", "RestoringBaseline", "attack_free", "baseline"]
