"""The red team: attacks on a guard that know it, what becomes of them, and what that means."""

from lrpguard.redteam.page import threat_page
from lrpguard.redteam.run import Settings, red_team

__all__ = ["Settings", "red_team", "threat_page"]
