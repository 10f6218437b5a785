"""Attacks to measure a guard with."""

from lrpguard.attacks.adaptive import (
    Effort,
    false_alarm,
    feature_matching,
    guard_aware_pgd,
    mislead_restoration,
)
from lrpguard.attacks.deepfool import deepfool
from lrpguard.attacks.minimum_norm import carlini_wagner, elastic_net
from lrpguard.attacks.patch import patch
from lrpguard.attacks.pgd import pgd, quantize
from lrpguard.attacks.suite import SUITE, Attack, choose
from lrpguard.attacks.torchattacks_adapter import torchattacks_attack

__all__ = [
    "SUITE",
    "Attack",
    "Effort",
    "carlini_wagner",
    "choose",
    "deepfool",
    "elastic_net",
    "false_alarm",
    "feature_matching",
    "guard_aware_pgd",
    "mislead_restoration",
    "patch",
    "pgd",
    "quantize",
    "torchattacks_attack",
]
