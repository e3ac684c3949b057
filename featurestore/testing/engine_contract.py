"""What every engine must do; inherit :class:`EngineContract` and give it an ``engine`` fixture.

Expectations are written down, not computed by another engine, so a single engine can be judged alone;
:class:`EngineParity` compares two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest

from featurestore.engines.hashing import hash_columns
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import CorruptionError, InvalidInputError, UnsupportedError
from featurestore.testing import oracles
from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.asof_aggregate import AsOfAggregate
from featurestore.transforms.asof_window import AsOfWindow
from featurestore.transforms.calendar import Calendar
from featurestore.transforms.categories import Categorify
from featurestore.transforms.cross_section import CrossSection
from featurestore.transforms.expression import Expression
from featurestore.transforms.forward import STATISTICS as FORWARD
from featurestore.transforms.forward import Forward
from featurestore.transforms.function import Function
from featurestore.transforms.impute import Impute
from featurestore.transforms.lag import Lag
from featurestore.transforms.lookup import Lookup
from featurestore.transforms.standardize import Standardize
from featurestore.transforms.window import Rolling

NAN = math.nan

COLUMNS: dict[str, pa.Array] = {
    "flag": pa.array([True, None, False, True]),
    "small": pa.array([1, None, -3, 4], pa.int8()),
    "large": pa.array([2**62, None, -(2**62), 0], pa.int64()),
    "unsigned": pa.array([2**64 - 1, None, 0, 1], pa.uint64()),
    "real": pa.array([1.5, None, NAN, -0.0], pa.float64()),
    "single": pa.array([1.5, None, math.inf, 0.25], pa.float32()),
    "moment": pa.array([0, None, -1, 10**15], pa.timestamp("us")),
    "zoned": pa.array([0, None, -1, 10**15], pa.timestamp("ns", tz="Europe/Berlin")),
    "milli": pa.array([0, None, -1, 10**12], pa.timestamp("ms")),
    "day": pa.array([0, None, -1, 20_000], pa.int32()).cast(pa.date32()),
    "text": pa.array(["b", None, "", "日本"]),
}
"""One column of each type, with a null at position 1."""


def sample() -> pa.Table:
    return pa.table(COLUMNS)


def host(engine: Engine, array: Array) -> list[Any]:
    return list(engine.to_host(array).tolist())


class EngineContract:
    """Tests of one engine."""

    @pytest.fixture
    def engine(self) -> Engine:
        raise NotImplementedError("give the engine under test")

    def frame(self, engine: Engine, **columns: Any) -> Frame:
        return engine.from_arrow(pa.table(columns))

    # --- Arrow ---------------------------------------------------------------------------------

    def test_arrow_round_trip_keeps_rows_and_types(self, engine: Engine) -> None:
        table = sample()
        for rows in (table, table.slice(0, 0), table.slice(2, 1)):
            back = engine.to_arrow(engine.from_arrow(rows))
            assert back.column_names == rows.column_names
            for name in rows.column_names:
                assert back[name].type == rows[name].type, name
                assert oracles.close_values(back[name].to_pylist(), rows[name].to_pylist(), 0.0)

    def test_foreign_arrow_types_are_normalised(self, engine: Engine) -> None:
        table = pa.table(
            {
                "d": pa.array(["a", None, "a"]).dictionary_encode(),
                "l": pa.array(["x", "y", None], pa.large_string()),
            }
        )
        back = engine.to_arrow(engine.from_arrow(table))
        assert back.schema.types == [pa.string(), pa.string()]
        assert back.to_pydict() == {"d": ["a", None, "a"], "l": ["x", "y", None]}

    # --- arrays --------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", [name for name in COLUMNS if name != "text"])
    def test_values_and_column_are_inverse(self, engine: Engine, name: str) -> None:
        frame = engine.from_arrow(sample())
        values, valid = engine.values(frame[name])
        assert host(engine, valid) == [True, False, True, True]
        assert host(engine, values)[1] == 0, "values under nulls are 0"
        type_ = COLUMNS[name].type
        back = engine.to_arrow(engine.column("again", values, valid, type_).to_frame())
        assert oracles.close_values(
            back["again"].cast(type_).to_pylist(), COLUMNS[name].to_pylist(), 0.0
        )
        whole = engine.to_arrow(engine.column("again", values, None, type_).to_frame())
        assert whole["again"].null_count == 0

    def test_times_count_steps_of_the_unit_and_dates_microseconds(self, engine: Engine) -> None:
        frame = engine.from_arrow(sample())
        steps = {
            name: engine.values(frame[name])[0] for name in ("moment", "zoned", "milli", "day")
        }
        assert host(engine, steps["moment"]) == [0, 0, -1, 10**15]
        assert host(engine, steps["zoned"]) == [0, 0, -1, 10**15]
        assert host(engine, steps["milli"]) == [0, 0, -1, 10**12]
        day = 86_400_000_000
        assert host(engine, steps["day"]) == [0, 0, -day, 20_000 * day]
        assert all(one.dtype == np.int64 for one in steps.values())

    def test_dtypes_of_values(self, engine: Engine) -> None:
        frame = engine.from_arrow(sample())
        dtypes = {
            name: str(engine.values(frame[name])[0].dtype) for name in ("flag", "small", "single")
        }
        assert dtypes == {"flag": "bool", "small": "int8", "single": "float32"}

    def test_decimals_come_as_floats(self, engine: Engine) -> None:
        column = pa.array([1, None], pa.int32()).cast(pa.decimal128(12, 2))
        values, valid = engine.values(self.frame(engine, v=column)["v"])
        assert (host(engine, values), host(engine, valid)) == ([1.0, 0.0], [True, False])

    def test_nan_is_a_value(self, engine: Engine) -> None:
        values, valid = engine.values(self.frame(engine, v=pa.array([NAN, 1.0]))["v"])
        assert host(engine, valid) == [True, True]
        assert math.isnan(host(engine, values)[0])

    def test_strings_have_no_values(self, engine: Engine) -> None:
        with pytest.raises(UnsupportedError):
            engine.values(self.frame(engine, s=["a"])["s"])

    def test_empty_columns(self, engine: Engine) -> None:
        frame = engine.from_arrow(sample().slice(0, 0))
        for name in COLUMNS:
            if name != "text":
                values, valid = engine.values(frame[name])
                assert (values.shape, valid.shape) == ((0,), (0,))
        assert host(engine, engine.codes(frame, ["text", "real"])) == []

    def test_strings_are_offsets_and_utf8(self, engine: Engine) -> None:
        offsets, data, valid = engine.strings(engine.from_arrow(sample().slice(1, 3))["text"])
        bounds, valid_list = host(engine, offsets), host(engine, valid)
        raw = engine.to_host(data).tobytes()
        texts = [raw[a:b].decode() for a, b in pairwise(bounds)]
        assert valid_list == [False, True, True]
        assert texts[1:] == ["", "日本"]
        empty = engine.strings(engine.from_arrow(sample().slice(0, 0))["text"])
        assert host(engine, empty[0]) == [0]
        with pytest.raises(UnsupportedError):
            engine.strings(engine.from_arrow(sample())["real"])

    def test_host_and_device(self, engine: Engine) -> None:
        array = np.arange(5)
        assert engine.to_host(engine.from_host(array)).tolist() == array.tolist()

    # --- groups and rows -----------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("columns", "groups"),
        [
            ({"k": pa.array(["a", None, "b", "a", None])}, [0, 1, 2, 0, 1]),
            ({"k": pa.array([0.0, NAN, -0.0, NAN, None])}, [0, 1, 0, 1, 2]),
            ({"k": pa.array([1, 1, None, 2, 1])}, [0, 0, 1, 2, 0]),
            (
                {"k": pa.array(["a", "a", None, "a", None]), "j": pa.array([1, None, 1, 1, 1])},
                [0, 1, 2, 0, 2],
            ),
            ({"k": pa.array([True, False, None, True, True])}, [0, 1, 2, 0, 0]),
            ({"k": pa.array([1, 2, 1, 1, 2], pa.timestamp("us"))}, [0, 1, 0, 0, 1]),
        ],
    )
    def test_codes_are_equal_exactly_where_columns_are(
        self, engine: Engine, columns: dict[str, pa.Array], groups: list[int]
    ) -> None:
        codes = engine.codes(self.frame(engine, **columns), list(columns))
        assert codes.dtype == np.int64
        found = host(engine, codes)
        assert all(0 <= one < len(groups) for one in found)
        assert [found.index(one) for one in found] == [groups.index(one) for one in groups]

    def test_codes_of_odd_nans_and_no_columns(self, engine: Engine) -> None:
        odd = np.array([0x7FF8000000000001, 0xFFF8000000000000, 0x7FF8000000000000], np.uint64)
        frame = self.frame(engine, k=pa.array(odd.view(np.float64)))
        assert len(set(host(engine, engine.codes(frame, ["k"])))) == 1
        assert host(engine, engine.codes(frame, [])) == [0, 0, 0]

    @pytest.mark.parametrize("rows", [0, 1, 5, 300])
    @pytest.mark.parametrize(
        "known",
        [
            {"k": pa.array([], pa.string())},
            {"k": pa.array(["ü", "", "a"])},
            {"k": pa.array([0.0, NAN, 2.5])},
            {"k": pa.array([7, -1], pa.int16())},
            {"k": pa.array(["a", "a", "ü"]), "j": pa.array([1, 2, 1])},
        ],
        ids=["no texts", "texts", "floats", "integers", "two columns"],
    )
    def test_find_says_where_rows_are_among_known_ones(
        self, engine: Engine, known: dict[str, pa.Array], rows: int
    ) -> None:
        values: dict[str, list[Any]] = {
            "string": ["ü", None, "a", "not there", "", "A"],
            "double": [NAN, None, -0.0, 2.5, 1e300],
            "int16": [-1, None, 7, 8],
            "int64": [2, 1, None],
        }
        columns = {
            name: pa.array(
                [values[str(one.type)][row % len(values[str(one.type)])] for row in range(rows)],
                one.type,
            )
            for name, one in known.items()
        }

        def keys(table: dict[str, pa.Array]) -> list[tuple[Any, ...]]:
            rows = zip(*(one.to_pylist() for one in table.values()), strict=True)
            return [tuple("nan" if one != one else one for one in row) for row in rows]  # noqa: PLR0124

        places = {key: place for place, key in enumerate(keys(known))}
        found = engine.find(self.frame(engine, **columns), list(known), self.frame(engine, **known))
        assert found.dtype == np.int32
        assert host(engine, found) == [places.get(key, -1) for key in keys(columns)]

    def test_take(self, engine: Engine) -> None:
        table = sample().append_column("items", pa.array([[1], None, [], [2, 3]]))
        frame, xp = engine.from_arrow(table), engine.xp
        order = xp.asarray([3, 0, 0, 2])
        plain = engine.to_arrow(engine.take(frame, order))
        assert plain["text"].to_pylist() == ["日本", "b", "b", ""]
        holes = engine.take(frame, order, xp.asarray([True, False, True, True]))
        table = engine.to_arrow(holes)
        assert table["text"].to_pylist() == ["日本", None, "b", ""]
        assert table["items"].to_pylist() == [[2, 3], None, [1], []]
        assert table["small"].to_pylist() == [4, None, 1, -3]
        nothing = xp.asarray([], dtype=xp.int64)
        assert len(engine.take(frame, nothing)) == 0

    def test_take_from_no_rows(self, engine: Engine) -> None:
        frame, xp = engine.from_arrow(sample().slice(0, 0)), engine.xp
        out = engine.take(frame, xp.zeros(2, dtype=xp.int64), xp.zeros(2, dtype=xp.bool_))
        assert engine.to_arrow(out)["text"].to_pylist() == [None, None]

    # --- users' functions ------------------------------------------------------------------------

    def test_native_frames_come_back(self, engine: Engine) -> None:
        frame = self.frame(engine, a=[1, 2], s=["x", "y"])
        for kind in ("narwhals", "pandas", *(["polars"] if engine.name == "polars" else [])):
            back = engine.from_native(engine.native(frame, kind))
            assert engine.to_arrow(back).to_pydict() == {"a": [1, 2], "s": ["x", "y"]}
        series = engine.from_native(engine.native(frame, "pandas")["a"])
        assert engine.to_arrow(series).to_pydict() == {"a": [1, 2]}
        with pytest.raises(InvalidInputError):
            engine.native(frame, "spark")
        with pytest.raises(InvalidInputError):
            engine.from_native(3)

    def test_nan_of_a_pandas_function_is_null(self, engine: Engine) -> None:
        frame = engine.native(self.frame(engine, a=pa.array([1.0, None, 2.0])), "pandas")
        back = engine.to_arrow(engine.from_native(frame["a"] * 2))
        assert back["a"].to_pylist() == [2.0, None, 4.0]

    # --- files -------------------------------------------------------------------------------------

    def test_parquet_is_read_in_the_order_asked_for(self, engine: Engine, tmp_path: Path) -> None:
        from featurestore.storage.backends import open_object_store
        from featurestore.storage.column_group import write_partition
        from featurestore.storage.provenance import Provenance
        from featurestore.storage.records import StoredFile

        store = open_object_store(tmp_path)
        files: list[StoredFile] = []
        for group, names in (("one", ["text", "large"]), ("two", ["real"])):
            entry = write_partition(
                store, table="t", group=group, partition="p0", columns=sample().select(names),
                tensors={}, provenance=Provenance("ingest", group),
            )  # fmt: skip
            files += entry.files
        table = engine.to_arrow(engine.read_parquet(store, files, ["real", "text"]))
        assert table.column_names == ["real", "text"]
        assert oracles.close_values(table["real"].to_pylist(), COLUMNS["real"].to_pylist())
        some = engine.to_arrow(engine.read_parquet(store, files, ["text"], rows=(1, 3)))
        assert some["text"].to_pylist() == table["text"].to_pylist()[1:3]
        with pytest.raises(CorruptionError, match="nope"):
            engine.read_parquet(store, files, ["nope"])
        path = next(tmp_path.rglob(Path(files[0].path).name))
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CorruptionError):
            engine.read_parquet(store, files, ["text"])


class EngineParity:
    """The same answer from two engines: integers, strings, nulls and hashes equal, floats to 1e-9."""

    @pytest.fixture
    def engines(self) -> tuple[Engine, Engine]:
        raise NotImplementedError("give the engine under test and the one to compare it with")

    def test_hashes(self, engines: tuple[Engine, Engine]) -> None:
        for name in COLUMNS:
            one, other = (
                host(engine, hash_columns(engine, engine.from_arrow(sample()), [name]))
                for engine in engines
            )
            assert one == other, name

    @pytest.mark.parametrize("rows", [0, 1, 400])
    def test_transformers(self, engines: tuple[Engine, Engine], rows: int) -> None:
        table, right = random_table(rows, 1), late_table(rows // 2, 2)
        schema = oracles.schema_of(table, ["k"], "t", {"o": oracles.schema_of(right, ["k"], "t")})
        stats = ("mean", "std", "sum", "min", "max", "count", "first", "last")
        for transformer, source in (
            (Rolling(["x", "n"], "40ms", stats=stats, closed="left", lag="3ms"), []),
            (Rolling(["x", "b"], 5, stats=stats, by=["g"], min_count=2), []),
            (Lag(["x", "s"], [1, 3]), []),
            (Forward(["x", "n"], "40ms", stats=FORWARD), []),
            (Forward(["x", "b"], 3, stats=FORWARD, by=["g"]), []),
            (Forward(["s", "b"], 2), []),
            (CrossSection(["x", "n"], ["rank", "zscore"], by="g"), []),
            (AsOfJoin("o", ["x", "s"], lag="2ms", prefix="o_"), [right]),
            (AsOfJoin("o", ["n"], by=["g"], max_age="30ms", exact=False, prefix="o_"), [right]),
            (AsOfJoin("o", ["n"], by=["k"], available="a", prefix="o_"), [right]),
            (
                AsOfAggregate("o", ["x", "n"], "30ms", stats=stats, closed="left", lag="2ms"),
                [right],
            ),
            (AsOfAggregate("o", ["x", "b"], "90ms", stats=stats, by=["g"], available="a"), [right]),
            (AsOfWindow("o", ["x", "b"], 3, fill_value=0.0, length=True, available="a"), [right]),
            (Lookup("o", ["s"], prefix="o_"), [right]),
        ):
            parts = oracles.cut(table, "t", [rows // 3, rows // 2])
            one, other = (
                oracles.run_partitioned(transformer, parts, schema, engine, source)
                for engine in engines
            )
            for name in one.column_names:
                same = oracles.close_values(one[name].to_pylist(), other[name].to_pylist())
                assert same, (transformer, name)

    def test_row_wise_and_fitted_transformers(self, engines: tuple[Engine, Engine]) -> None:
        table = random_table(400, 3)
        schema = oracles.schema_of(table, ["k"], "t")
        parts = oracles.cut(table, "t", [100, 250])
        for transformer in (
            Expression(ratio=nw.col("x") / nw.col("n"), long=nw.col("s").str.len_chars() > 2),
            Calendar("t", parts=("month", "weekday", "hour"), cyclical=True),
            Function(_doubled, inputs=["x"], output="doubled", dtypes={"doubled": "float64"}),
            Impute(["x", "n"], indicator=True),
            Impute(["s", "n"], strategy="most_frequent"),
            Standardize(["x", "n", "b"]),
            Categorify(["s", "b"], min_count=2),
        ):
            one, other = (
                oracles.run_partitioned(transformer, parts, schema, engine) for engine in engines
            )
            assert one.schema == other.schema, transformer
            for name in one.column_names:
                same = oracles.close_values(one[name].to_pylist(), other[name].to_pylist())
                assert same, (transformer, name)


def _doubled(df: nw.DataFrame[Any]) -> nw.Series[Any]:
    return df["x"] * 2


def random_table(rows: int, seed: int) -> pa.Table:
    """Return a table with ties, nulls, NaN and infinities in columns ``t k g x n b s``."""
    rng = np.random.default_rng(seed)

    def nulls(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
        mask = rng.random(rows) < 0.15
        return pa.array(np.asarray(values, dtype=object), type_, mask=mask)

    x = rng.standard_normal(rows).round(1)
    x[rng.random(rows) < 0.05] = NAN
    x[rng.random(rows) < 0.03] = math.inf
    return pa.table(
        {
            "t": pa.array(np.sort(rng.integers(0, max(rows // 2, 1), rows)), pa.timestamp("ms")),
            "k": pa.array([f"k{i}" for i in rng.integers(0, 5, rows)], pa.string()),
            "g": nulls(rng.integers(0, 3, rows).tolist(), pa.int32()),
            "x": nulls(x.tolist(), pa.float64()),
            "n": nulls(rng.integers(-9, 9, rows).tolist(), pa.int64()),
            "b": nulls((rng.random(rows) < 0.5).tolist(), pa.bool_()),
            "s": nulls([f"ß{i}" for i in rng.integers(0, 9, rows)], pa.string()),
        }
    )


def late_table(rows: int, seed: int) -> pa.Table:
    """Return a random table with a column ``a`` more: when each row became known, in no order."""
    table = random_table(rows, seed)
    backwards = pa.array(np.arange(rows - 1, -1, -1))
    return table.append_column("a", table["t"].take(backwards))
