"""Training from a golden set: loaders, framework hooks, runs.

Nothing is imported before it is used: ``import training`` loads no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.bundle import RunBundle, predict
    from training.comparison.compare import compare
    from training.comparison.config import CompareConfig
    from training.comparison.result import Comparison
    from training.config import RunConfig
    from training.loading.loader import Loader
    from training.loading.mixture import Mixture
    from training.loading.sampling import Balanced, Stratified, Weighted
    from training.loading.sequences import Window
    from training.run import Run, fit
    from training.run_list import ListedRun, RunList, list_runs

_HOMES = {
    "Loader": "training.loading.loader",
    "Balanced": "training.loading.sampling",
    "Mixture": "training.loading.mixture",
    "Stratified": "training.loading.sampling",
    "Weighted": "training.loading.sampling",
    "Window": "training.loading.sequences",
    "RunConfig": "training.config",
    "RunBundle": "training.bundle",
    "Run": "training.run",
    "ListedRun": "training.run_list",
    "RunList": "training.run_list",
    "fit": "training.run",
    "list_runs": "training.run_list",
    "predict": "training.bundle",
    "compare": "training.comparison.compare",
    "Comparison": "training.comparison.result",
    "CompareConfig": "training.comparison.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'training' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "Balanced",
    "CompareConfig",
    "Comparison",
    "ListedRun",
    "Loader",
    "Mixture",
    "Run",
    "RunBundle",
    "RunConfig",
    "RunList",
    "Stratified",
    "Weighted",
    "Window",
    "compare",
    "fit",
    "list_runs",
    "predict",
]
