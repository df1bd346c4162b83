"""The distributed locks that guard what takes several steps."""
