"""The layers hold: a module imports only from its own layer or from those before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# In order; a layer is a package or a set of modules that may import each other.
LAYERS: list[set[str]] = [
    {"errors"},
    {"units"},
    {"fingerprint"},
    {"schema"},
    {"times", "limits"},
    {"storage"},
    {"engines"},
    {"transforms"},
    {"plan"},
    {"execution"},
    {"ingest"},
    {"dataset"},
    {"profiling"},
    {"report"},
    {"session"},
    {"features"},
    {"table"},
    {"store"},
    {"cli"},
]
ORDER = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FRAMEWORKS = {"tensorflow", "keras", "torch", "jax", "xgboost"}
# The sole importers of each framework, below training/.
HOMES = {
    "tensorflow": {"hooks/keras.py", "hooks/tf_data.py", "hooks/keras_model.py"},
    "keras": {"hooks/keras.py", "hooks/keras_model.py", "models.py"},
    "xgboost": {"hooks/xgboost.py", "hooks/xgboost_model.py"},
}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no modules in {package}"
    return found


def imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports, wherever in it, type checking included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


def layer_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "featurestore")
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules("featurestore"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_layer_or_earlier_ones(path: Path) -> None:
    layer = layer_of(path)
    if layer in ("__init__", "testing"):
        return  # the package's names, and what tests of all layers use
    for name in imports(path):
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


def test_transforms_know_no_dataframe_library_but_narwhals() -> None:
    for path in modules("featurestore/transforms"):
        found = {name.split(".")[0] for name in imports(path)} & {"polars", "pandas", "cudf"}
        assert not found, f"{path.name} imports {found}"


def test_modules_are_small_and_named_for_something() -> None:
    for path in [*modules("featurestore"), *modules("training")]:
        lines = len(path.read_text().splitlines())
        assert lines <= 500, f"{path} has {lines} lines: which second noun hides in it?"
        assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}, path
