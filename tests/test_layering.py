"""The layers hold: a module imports only from its own layer or from those before it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

import featurestore
import training

ROOT = Path(__file__).parent.parent

# In order; a layer is a package or a set of modules that may import each other.
LAYERS: list[set[str]] = [
    {"errors"},
    {"arguments"},
    {"units", "markup"},
    {"fingerprint"},
    {"schema"},
    {"configuration", "control_groups"},
    {"times", "limits", "watermark", "allocators"},
    {"enforcement", "limited_group"},
    {"storage"},
    {"versions"},
    {"engines"},
    {"transforms"},
    {"plan"},
    {"execution"},
    {"ingest"},
    {"dataset"},
    {"profiling"},
    {"report"},
    {"expectations"},
    {"session"},
    {"validation"},
    {"features", "compaction"},
    {"diff", "leakage", "repair", "store_report"},
    {"preview"},
    {"rows"},
    {"inspection"},
    {"table"},
    {"store"},
    {"project"},
    {"inspection_commands", "report_command", "completion_command", "look_commands"},
    {"cli"},
]
ORDER = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FRAMEWORKS = {"tensorflow", "keras", "torch", "jax", "xgboost"}
# The sole importers of each library, as files and folders below the root.
LIBRARIES = {
    "polars": {
        "featurestore/engines/polars.py",
        "featurestore/engines/group_codes.py",  # of its columns
        "featurestore/ingest/",  # Polars reads and sorts files, before there is a table
        "featurestore/testing/",  # tables and oracles of tests
        "training/bundle.py",  # what predict returns is a Polars frame, as of Table.compute
    },
    # Selection looks whether a GPU can be used at all, by loading both.
    "cudf": {"featurestore/engines/cudf.py", "featurestore/engines/selection.py"},
    "cupy": {"featurestore/engines/cudf.py", "featurestore/engines/selection.py"},
    "dask": {"featurestore/execution/"},
    "distributed": {
        "featurestore/execution/",
        "training/hooks/xgboost_dask.py",  # which worker a task is on
        "featurestore/testing/clusters.py",  # for tests to run on
    },
}
# The same of training: packages and modules, in order.
TRAINING_LAYERS: list[set[str]] = [
    {
        "durable",
        "environment",
        "history",
        "interrupts",
        "memory_series",
        "ranking",
        "config_checks",
        "stored_pipeline",
        "flights",
    },
    {"checkpoints", "metrics"},
    {"loading"},
    {"hooks"},
    {"config", "loader_config", "split_config", "models"},
    {"source", "unfinished", "run_folder", "run_loaders", "run_memory"},
    {"fitting"},
    {"run", "bundle", "run_report", "run_list"},
    {"comparison"},
    {"cli", "demo"},
    {"__main__"},
]
TRAINING_ORDER = {name: rank for rank, names in enumerate(TRAINING_LAYERS) for name in names}
# Loader.keras(), .xgboost(), .tf_data(), .torch() and .jax() hand the loader to its hook: imported when called only.
HANDED_OVER = {"loading/framework_hooks.py": {"hooks"}}
# The sole importers of each framework, below training/.
HOMES = {
    "tensorflow": {"hooks/tf_data.py", "hooks/tensorboard.py"},
    "keras": {"hooks/keras.py", "hooks/keras_state.py"},
    "xgboost": {"hooks/xgboost.py", "hooks/xgboost_dask.py"},
    "torch": {"hooks/torch.py", "hooks/torch_device.py"},
    "jax": {"hooks/jax.py"},
}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no modules in {package}"
    return found


def imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports, wherever in it, type checking included.

    Names taken from the root of a package count as the module they are in.
    """
    return imported(ast.walk(ast.parse(path.read_text())), path)


def imports_when_loaded(path: Path) -> set[str]:
    """Return the dotted names that are imported with the module, not by calls or for types only."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    found: list[ast.AST] = []
    while waiting:
        node = waiting.pop()
        found.append(node)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not typing_only and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return imported(found, path)


def imported(nodes: Iterable[ast.AST], path: Path) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.update(home(node.module or "", one.name) for one in node.names)
    return names


def home(module: str, name: str) -> str:
    """Return the module that ``from module import name`` depends on."""
    if module == "featurestore":
        return f"featurestore.{featurestore._HOMES.get(name, name)}"
    if module == "training":
        return training._HOMES.get(name, f"training.{name}")
    # Of a package inside, its modules; of a module, itself.
    return f"{module}.{name}" if (ROOT / module.replace(".", "/")).is_dir() else module


def layer_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "featurestore")
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules("featurestore"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_layer_or_earlier_ones(path: Path) -> None:
    layer = layer_of(path)
    if layer in ("__init__", "testing"):
        return  # the package's names, and what tests of all layers use
    for name in imports(path):
        assert name != "featurestore", f"{path.name} imports all layers: name the module"
        if name == "training" or name.startswith("training."):
            pytest.fail(f"{path.name} imports {name}: training comes after featurestore")
        if not name.startswith("featurestore."):
            continue
        other = name.split(".")[1]
        assert other in ORDER, f"{name} is in no layer"
        assert ORDER[other] <= ORDER[layer], f"{layer} imports {other}, which comes after it"


def test_nothing_imports_the_testing_package() -> None:
    for path in [*modules("featurestore"), *modules("training")]:
        if "testing" in path.parts:
            continue
        assert not any(name.startswith("featurestore.testing") for name in imports(path)), path


def test_every_module_is_in_a_layer() -> None:
    found = {layer_of(path) for path in modules("featurestore")} - {"__init__", "testing"}
    assert found == set(ORDER)


@pytest.mark.parametrize("path", modules("featurestore"), ids=lambda p: str(p.relative_to(ROOT)))
def test_featurestore_imports_no_training_framework(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & FRAMEWORKS


@pytest.mark.parametrize("path", modules("training"), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_framework_is_imported_by_its_hook_alone(path: Path) -> None:
    relative = str(path.relative_to(ROOT / "training"))
    for name in {one.split(".")[0] for one in imports(path)} & FRAMEWORKS:
        assert relative in HOMES.get(name, set()), f"{relative} imports {name}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_library_is_imported_where_it_belongs(library: str) -> None:
    for path in [*modules("featurestore"), *modules("training")]:
        if library in {name.split(".")[0] for name in imports(path)}:
            relative = path.relative_to(ROOT).as_posix()
            assert relative.startswith(tuple(LIBRARIES[library])), f"{relative} imports {library}"


@pytest.mark.parametrize("path", modules("training"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_of_training_imports_only_from_its_layer_or_earlier_ones(path: Path) -> None:
    relative = path.relative_to(ROOT / "training").as_posix()
    layer = part_of(relative)
    if layer == "__init__":
        return  # the package's names
    later = {one for one in TRAINING_ORDER if TRAINING_ORDER[one] > TRAINING_ORDER[layer]}
    assert of_training(imports(path)) & later <= HANDED_OVER.get(relative, set()), relative
    at_once = of_training(imports_when_loaded(path)) & later
    assert not at_once, f"{relative} imports {at_once} when it is loaded"


def test_every_module_of_training_is_in_a_layer() -> None:
    found = {
        part_of(path.relative_to(ROOT / "training").as_posix()) for path in modules("training")
    }
    assert found - {"__init__"} == set(TRAINING_ORDER)


@pytest.mark.parametrize(
    "name", ["cli", "run", "bundle", "models", "loading.loader", "fitting.kinds"]
)
def test_no_framework_is_imported_before_it_is_needed(name: str) -> None:
    waiting, loaded = {f"training.{name}"}, set()
    while waiting:
        loaded |= waiting
        files = [ROOT / f"{one.replace('.', '/')}.py" for one in waiting]
        found = {one for file in files for one in imports_when_loaded(file)}
        waiting = {one for one in found if one.startswith("training.")} - loaded
    assert not [one for one in loaded if one.startswith("training.hooks")]


def part_of(relative: str) -> str:
    """Return the package or module below ``training`` that a file belongs to."""
    return relative.split("/", maxsplit=1)[0].removesuffix(".py")


def of_training(names: Iterable[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("training.")}


def test_names_from_a_package_count_as_the_module_they_are_in(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from featurestore import Table, errors\n"
        "from featurestore.storage import gc\n"
        "from featurestore.units import Duration\n"
        "if TYPE_CHECKING:\n    from training import fit\n"
        "def later():\n    import polars.testing\n"
    )
    loaded = {
        "featurestore.table", "featurestore.errors", "featurestore.storage.gc", "featurestore.units",
    }  # fmt: skip
    assert imports_when_loaded(path) == loaded
    assert imports(path) == loaded | {"training.run", "polars.testing"}


def test_transforms_know_no_dataframe_library_but_narwhals() -> None:
    for path in modules("featurestore/transforms"):
        found = {name.split(".")[0] for name in imports(path)} & {"polars", "pandas", "cudf"}
        assert not found, f"{path.name} imports {found}"


def test_modules_are_small_and_named_for_something() -> None:
    for path in [*modules("featurestore"), *modules("training")]:
        lines = len(path.read_text().splitlines())
        assert lines <= 500, f"{path} has {lines} lines: which second noun hides in it?"
        assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}, path


def test_the_table_of_layers_names_them_all() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    table = text.split("| layer |", 1)[1].split("\n\n", 1)[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert set(named) == {*ORDER, "training"}
    rows = [
        [ORDER.get(name, len(LAYERS)) for name in re.findall(r"`(\w+)`", cell)] for cell in cells
    ]
    assert all(max(one) <= min(other) for one, other in pairwise(rows))
