"""Hooks into frameworks: a loader as each takes its data, and callbacks for a training of one's own.

No module outside imports a framework; what a run makes of the hooks is in ``training.fitting``.
"""
