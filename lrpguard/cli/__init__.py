"""The command line: ``lrpguard demo | calibrate | check | explain | doctor``."""

from lrpguard.cli.commands import app, main

__all__ = ["app", "main"]
