"""Attacks on the guard itself, by those who know of it."""

from lrpguard.attacks.adaptive.aware import false_alarm, guard_aware_pgd, mislead_restoration
from lrpguard.attacks.adaptive.descent import Effort, Manner, Trace
from lrpguard.attacks.adaptive.explanation import mislead_explanation
from lrpguard.attacks.adaptive.latency import delay_answer
from lrpguard.attacks.adaptive.matching import feature_matching
from lrpguard.attacks.adaptive.queries import hop_skip_jump, square_on_guard

__all__ = [
    "Effort",
    "Manner",
    "Trace",
    "delay_answer",
    "false_alarm",
    "feature_matching",
    "guard_aware_pgd",
    "hop_skip_jump",
    "mislead_explanation",
    "mislead_restoration",
    "square_on_guard",
]
