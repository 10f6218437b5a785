"""lrpguard: notice, and repair, adversarial inputs to a PyTorch image classifier."""

from lrpguard.attribution import attribute
from lrpguard.calibration import Calibration
from lrpguard.classifier import GuardedClassifier
from lrpguard.consensus import Consensus
from lrpguard.evidence import Evidence
from lrpguard.guard import Guard
from lrpguard.inputs import NormalizedModel, normalized
from lrpguard.restoration import Restoration, Whitening
from lrpguard.smoothing import Smoothing, explain
from lrpguard.stopping import Looks
from lrpguard.tuning import Choice, choose_smoothing
from lrpguard.verdict import Verdict
from lrpguard.version import __version__

__all__ = [
    "Calibration",
    "Choice",
    "Consensus",
    "Evidence",
    "Guard",
    "GuardedClassifier",
    "Looks",
    "NormalizedModel",
    "Restoration",
    "Smoothing",
    "Verdict",
    "Whitening",
    "__version__",
    "attribute",
    "choose_smoothing",
    "explain",
    "normalized",
]
