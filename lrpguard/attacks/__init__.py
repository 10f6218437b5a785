"""Attacks to measure a guard with."""

from lrpguard.attacks.pgd import pgd, quantize
from lrpguard.attacks.torchattacks_adapter import torchattacks_attack

__all__ = ["pgd", "quantize", "torchattacks_attack"]
