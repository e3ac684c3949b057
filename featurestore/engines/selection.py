"""Which engine runs: asked for by name, or the best one that works here.

Always true: a name that was asked for is what one gets, or an error; only ``"auto"`` chooses.
"""

from __future__ import annotations

import importlib.util
import os

from featurestore.engines.protocol import Engine
from featurestore.errors import InvalidInputError, MissingDependencyError, UnsupportedError

_INSTALL = (
    "install the GPU extra on a machine with an NVIDIA GPU (pip install 'featurestore[gpu]' "
    "--extra-index-url=https://pypi.nvidia.com), or use engine='polars'"
)


def gpu_problem() -> str | None:
    """Return why cuDF cannot run here, or None if it can. Looks for a device only if installed."""
    for module in ("cudf", "cupy"):
        if importlib.util.find_spec(module) is None:
            return f"the package {module} is not installed"
    try:
        import cupy  # noqa: F401  (loading it is the check: it finds the CUDA libraries)
        from cupy.cuda import runtime

        count = int(runtime.getDeviceCount())
        import cudf  # noqa: F401
    except Exception as error:  # noqa: BLE001  (drivers fail in many ways; each means: no GPU here)
        return f"cuDF or its GPU does not start: {type(error).__name__}: {error}"
    return None if count else "there is no NVIDIA GPU"


def get_engine(name: str = "auto") -> Engine:
    """Return an engine by name.

    Parameters
    ----------
    name : {"auto", "polars", "cudf"}
        ``"auto"`` is cuDF where it is installed and a GPU works, else Polars.

    Raises
    ------
    MissingDependencyError
        If cuDF was asked for and cannot run here.
    UnsupportedError
        In a process that was forked from one that used Polars.
    InvalidInputError
        For other names.

    Examples
    --------
    >>> get_engine("polars").name
    'polars'
    """
    if name not in ("auto", "polars", "cudf"):
        raise InvalidInputError(f"there is no engine {name!r}", "use 'auto', 'polars' or 'cudf'")
    problem = None if name == "polars" else gpu_problem()
    if name == "cudf" and problem is not None:
        raise MissingDependencyError(f"engine 'cudf' cannot run: {problem}", _INSTALL)
    if name == "polars" or problem is not None:
        _require_own_threads()
        from featurestore.engines.polars import PolarsEngine

        return PolarsEngine()
    from featurestore.engines.cudf import CudfEngine

    return CudfEngine()


_users: list[int] = []
"""The process that asked for Polars first: its threads are in no process forked from it."""


def _require_own_threads() -> None:
    if not _users:
        _users.append(os.getpid())
    elif _users[0] != os.getpid():
        raise UnsupportedError(
            f"process {os.getpid()} was forked from {_users[0]}, which had used Polars: its threads are "
            "not here, and work would wait for them for ever",
            "start processes with multiprocessing.get_context('spawn'), or 'forkserver'",
        )
