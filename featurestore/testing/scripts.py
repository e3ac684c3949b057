"""Python code run in a process of its own, as a script in a project's root would be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_code(code: str, root: Path, *arguments: str) -> str:
    """Run code in a folder, which is where it imports from too; return what it printed.

    Raises
    ------
    AssertionError
        If it failed; with what it said.

    Examples
    --------
    >>> run_code("import sys; print(sys.argv[1:])", Path(), "a")
    "['a']\\n"
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
