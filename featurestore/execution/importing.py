"""Optional packages, imported when needed and asked for by name when they are not there."""

from __future__ import annotations

import importlib
from typing import Any

from featurestore.errors import MissingDependencyError


def require(module: str, extra: str) -> Any:
    """Return an optional module.

    Parameters
    ----------
    module : str
    extra : str
        The extra of this package that installs it.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is needed for this and cannot be imported: {error}",
            f"pip install 'featurestore[{extra}]'",
        ) from error
