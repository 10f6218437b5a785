"""The command line: ``lrpguard demo | calibrate | check | evaluate | attack | report | ...``."""

from lrpguard.cli import (  # noqa: F401
    attack_command,
    evaluate_command,
    report_command,
    service_commands,
)
from lrpguard.cli.commands import app, main

__all__ = ["app", "main"]
