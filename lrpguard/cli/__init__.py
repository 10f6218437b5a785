"""The command line: ``lrpguard demo | calibrate | check | explain | evaluate | serve | ...``."""

from lrpguard.cli import evaluate_command, service_commands  # noqa: F401  # register commands
from lrpguard.cli.commands import app, main

__all__ = ["app", "main"]
