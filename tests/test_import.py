"""Importing the package is cheap and loads no framework."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "tensorflow", "keras", "torch", "jax", "xgboost", "cudf", "cupy", "dask", "distributed", "zarr",
    "pandas", "matplotlib",
)  # fmt: skip


@pytest.mark.parametrize("package", ["featurestore", "training", "featurestore.store"])
def test_import_loads_no_framework(package: str) -> None:
    code = f"import sys, {package}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"


def test_import_takes_under_a_second() -> None:
    # The best of three: a busy machine may delay one, not all.
    code = (
        "import time; start = time.perf_counter(); import featurestore; "
        "print(time.perf_counter() - start)"
    )
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", code], timeout=60)) for _ in range(3)
    ]
    assert min(seconds) < 1.0


def test_every_public_name_exists() -> None:
    import featurestore
    import training

    for package in (featurestore, training):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            package.nonsense  # noqa: B018


# All that a program may have set, or a library for it. Libraries come first: Polars, for one, puts the
# settings of its allocator into the environment.
SETTINGS = """
import decimal, gc, importlib, json, locale, logging, multiprocessing, os, pathlib, resource
import signal, socket, sys, threading, warnings
import click, narwhals, numpy, polars, pyarrow, pyarrow.compute, pyarrow.csv, pyarrow.parquet

def settings():
    limits = ("AS", "CORE", "DATA", "MEMLOCK", "NOFILE", "NPROC", "RSS", "STACK")
    log = logging.getLogger("featurestore")
    return {
        "arrow's pool": pyarrow.default_memory_pool().backend_name,
        "arrow's threads": [pyarrow.cpu_count(), pyarrow.io_thread_count()],
        "polars": [polars.thread_pool_size(), polars.Config.save()],
        "numpy": [str(numpy.geterr()), str(numpy.get_printoptions())],
        "environment": dict(os.environ),
        "warnings": [str(one) for one in warnings.filters],
        "signals": [str(signal.getsignal(one)) for one in sorted(signal.valid_signals())],
        "limits": [resource.getrlimit(getattr(resource, f"RLIMIT_{one}")) for one in limits],
        "hooks": [repr(one) for one in (sys.excepthook, threading.excepthook, sys.displayhook)],
        "logging": [logging.root.level, len(logging.root.handlers), log.level, len(log.handlers)],
        "threads": [threading.stack_size(), threading.active_count(), sys.getswitchinterval()],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "recursion": sys.getrecursionlimit(),
        "garbage": [gc.get_threshold(), gc.isenabled(), gc.get_debug()],
        "decimal": str(decimal.getcontext()),
        "locale": locale.setlocale(locale.LC_ALL),
        "socket": socket.getdefaulttimeout(),
        "directory": os.getcwd(),
        "mask": os.umask(0o22),
        "processors": sorted(os.sched_getaffinity(0)),
        "priority": os.nice(0),
    }

def plain():
    return json.loads(json.dumps(settings()))

os.umask(0o22)
before = plain()
folder = pathlib.Path(importlib.import_module(sys.argv[1]).__file__).parent
loaded = 0
for path in sorted(folder.rglob("*.py")):
    parts = path.relative_to(folder.parent).with_suffix("").parts
    if not {"__init__", "__main__", "testing", "hooks", "fitting", "cudf"} & set(parts):
        importlib.import_module(".".join(parts))
        loaded += 1
after = plain()
print(json.dumps([loaded, [[one, before[one], after[one]] for one in after if after[one] != before[one]]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks for settings as Linux has them")
@pytest.mark.parametrize(("package", "modules"), [("featurestore", 100), ("training", 15)])
def test_import_of_every_module_sets_no_global_option(package: str, modules: int) -> None:
    found = subprocess.run(
        [sys.executable, "-c", SETTINGS, package],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    loaded, changed = json.loads(found.stdout)
    assert loaded > modules
    assert changed == []
