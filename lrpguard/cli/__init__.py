"""The command line: ``lrpguard demo | calibrate | check | explain | evaluate | doctor``."""

from lrpguard.cli import evaluate_command  # noqa: F401  # registers its command
from lrpguard.cli.commands import app, main

__all__ = ["app", "main"]
