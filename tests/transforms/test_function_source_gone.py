"""A function whose source goes while the process runs: values stay readable, builds say what is wrong."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import DefinitionError

ROWS = pl.DataFrame({"d": [1, 2, 3], "x": [1.0, 2.0, 3.0]})
SOURCE = "LIMIT = 2\n\ndef g(df):\n    return df['x'] * LIMIT\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "user_code_gone.py").write_text(SOURCE)
    importlib.invalidate_caches()
    yield importlib.import_module("user_code_gone")
    sys.modules.pop("user_code_gone", None)


def gone(module: ModuleType) -> None:
    Path(str(module.__file__)).unlink()


def shortened(module: ModuleType) -> None:
    Path(str(module.__file__)).write_text("LIMIT = 2\n")


def broken(module: ModuleType) -> None:
    Path(str(module.__file__)).write_text("LIMIT = 2\n\ndef g(df:\n")


def unnamed(module: ModuleType) -> None:
    module.LIMIT = object()  # type: ignore[attr-defined]  # has no fingerprint


@pytest.mark.parametrize("lose", [gone, shortened, broken, unnamed])
def test_values_stay_and_builds_are_refused(
    module: ModuleType, tmp_path: Path, lose: Callable[[ModuleType], None]
) -> None:
    store = fs.FeatureStore.create(tmp_path / "store", workers=1)
    table = store.ingest("t", ROWS, time="d")
    table.feature(module.g, inputs=["x"])
    table.build()
    lose(module)
    assert table.read("g")["g"].to_list() == [2.0, 4.0, 6.0]
    assert table.status().is_fresh
    assert table.plan().is_empty
    assert table.build().computed == 0
    assert table.dataset("g").all.rows == 3
    assert store.repair().ok

    [values] = (tmp_path / "store").glob("data/t/f_g*/*.parquet")
    whole = values.read_bytes()
    values.write_bytes(whole[:-1])
    assert "cannot be told" in str(store.repair())
    values.write_bytes(whole)

    table.append(ROWS.with_columns(pl.col("d") + 3))
    assert table.status()["g"].missing == 1
    for work in (table.build, table.plan, lambda: table.read("g")):
        with pytest.raises(
            DefinitionError, match="cannot be told, so its values are readable"
        ) as no:
            work()
        assert "source" in no.value.remedy
    Path(str(module.__file__)).write_text(SOURCE)
    module.LIMIT = 2  # type: ignore[attr-defined]
    table.build()
    assert table.read("g")["g"].to_list() == [2.0, 4.0, 6.0] * 2
