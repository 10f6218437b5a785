"""lrpguard: notice, and repair, adversarial inputs to a PyTorch image classifier."""

import importlib
from typing import TYPE_CHECKING

from lrpguard.version import __version__

if TYPE_CHECKING:
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

_HOMES = {
    "Calibration": "calibration",
    "Choice": "tuning",
    "Consensus": "consensus",
    "Evidence": "evidence",
    "Guard": "guard",
    "GuardedClassifier": "classifier",
    "Looks": "stopping",
    "NormalizedModel": "inputs",
    "Restoration": "restoration",
    "Smoothing": "smoothing",
    "Verdict": "verdict",
    "Whitening": "restoration",
    "attribute": "attribution",
    "choose_smoothing": "tuning",
    "explain": "smoothing",
    "normalized": "inputs",
}
"""Module of each public name, imported when the name is first asked for (PEP 562): torch takes
seconds, which ``lrpguard --help`` need not."""

if not TYPE_CHECKING:  # else a misspelt name would pass the type checker

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module 'lrpguard' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"lrpguard.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return what the module holds, with what is not imported yet."""
        return sorted({*globals(), *__all__})
