"""lrpguard."""
