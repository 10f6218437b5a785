"""The command line: ``lrpguard demo | calibrate | check | evaluate | report | serve | ...``."""

from lrpguard.cli import evaluate_command, report_command, service_commands  # noqa: F401
from lrpguard.cli.commands import app, main

__all__ = ["app", "main"]
