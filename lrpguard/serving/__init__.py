"""A guarded classifier behind HTTP: ``lrpguard serve``. Needs the extra ``serve``."""
