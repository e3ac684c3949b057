"""Hooks into frameworks; each module is the sole importer of its framework."""
