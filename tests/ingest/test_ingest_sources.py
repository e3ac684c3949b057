"""Sources: every kind that is understood gives the same rows, twice, under normalised types."""

from __future__ import annotations

import gzip

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from featurestore.errors import SchemaError, SourceError
from featurestore.ingest.sources import open_source
from featurestore.schema import Field

TABLE = pa.table({"a": pa.array([3, 1, 2], pa.int64()), "b": ["x", None, "z"]})
ROWS = TABLE.to_pylist()


def rows_of(source):
    first, second = ([row for b in source.batches() for row in b.to_pylist()] for _ in range(2))
    assert first == second
    return first


class Cursor:
    """Like a database cursor: rows can be fetched once."""

    def fetch_record_batch(self):
        return TABLE.to_reader()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TABLE,
        lambda: TABLE.to_batches()[0],
        TABLE.to_reader,
        TABLE.to_pandas,
        lambda: TABLE.to_pandas().set_index(pd.Index([7, 8, 9], name="gone")),
        lambda: pl.from_arrow(TABLE),
        lambda: pads.dataset(TABLE),
        lambda: pads.dataset(TABLE).scanner(),
        lambda: duckdb.connect().from_arrow(TABLE),
        Cursor,
        lambda: TABLE.cast(pa.schema([("a", pa.int64()), ("b", pa.large_string())])),
        lambda: pa.table({"a": TABLE["a"], "b": TABLE["b"].dictionary_encode()}),
        lambda: [TABLE.slice(0, 1), TABLE.slice(1)],
    ],
)
def test_streams(make):
    with open_source(make()) as source:
        assert source.schema == pa.schema([("a", pa.int64()), ("b", pa.string())])
        assert rows_of(source) == ROWS


def test_a_one_shot_stream_is_kept_on_disk_and_given_back(tmp_path):
    source = open_source(TABLE.to_reader(), scratch=tmp_path)
    assert rows_of(source) == ROWS
    source.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SourceError, match="open the source again"):
        list(source.batches())


def test_a_stream_that_fails_names_itself_and_leaves_nothing(tmp_path):
    def batches():
        yield TABLE.to_batches()[0]
        raise pa.ArrowInvalid("connection lost")

    reader = pa.RecordBatchReader.from_batches(TABLE.schema, batches())
    source = open_source(reader, scratch=tmp_path)
    with pytest.raises(SourceError, match=r"the source cannot be read as Arrow: .*connection lost"):
        list(source.batches())
    assert list(tmp_path.iterdir()) == []


def write_all(folder):
    pq.write_table(TABLE, folder / "x.parquet")
    feather.write_feather(TABLE, str(folder / "x.feather"))
    with pa.ipc.new_stream(str(folder / "x.arrows"), TABLE.schema) as writer:
        writer.write_table(TABLE)
    text = b"a,b\n3,x\n1,\n2,z\n"
    (folder / "x.csv").write_bytes(text)
    (folder / "x.csv.gz").write_bytes(gzip.compress(text))
    (folder / "x.tsv").write_bytes(text.replace(b",", b"\t"))
    # The content decides, not the name.
    (folder / "parquet-by-content").write_bytes((folder / "x.parquet").read_bytes())


@pytest.mark.parametrize(
    "name", ["parquet", "feather", "arrows", "csv", "csv.gz", "tsv", "parquet-by-content"]
)
def test_files(tmp_path, name):
    write_all(tmp_path)
    path = tmp_path / (name if "-" in name else f"x.{name}")
    assert rows_of(open_source(path)) == ROWS
    source = open_source([str(path), path])
    assert rows_of(source) == ROWS + ROWS
    assert source.files == (str(path), str(path))


def test_directories_and_globs_are_in_order_of_names(tmp_path):
    for name, value in (("b", 2), ("a", 1), ("c[1]", 3)):
        pq.write_table(pa.table({"v": [value]}), tmp_path / f"{name}.parquet")
    (tmp_path / "_SUCCESS").touch()
    assert [row["v"] for row in rows_of(open_source(tmp_path))] == [1, 2, 3]
    assert [row["v"] for row in rows_of(open_source(str(tmp_path / "[ab].parquet")))] == [1, 2]
    assert [row["v"] for row in rows_of(open_source(str(tmp_path / "c[1].parquet")))] == [3]
    assert "3 Parquet files, 1 column" in open_source(tmp_path).describe()


def test_batches_are_bounded(tmp_path):
    table = pa.table({"s": ["x" * 1000] * 20_000, "i": range(20_000)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=20_000)
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    for source in (tmp_path / "x.parquet", tmp_path / "x.arrow", table, table.to_reader()):
        batches = list(open_source(source).batches(batch_bytes=1 << 20))
        # Parquet says how wide encoded rows are, and these repeat: slices bound what is passed on.
        assert max(batch.nbytes for batch in batches) <= 1.2 * (1 << 20)
        assert sum(batch.num_rows for batch in batches) == 20_000


def test_columns_are_projected_in_the_order_of_the_schema(tmp_path):
    write_all(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        batch = next(iter(open_source(path).batches(["b"])))
        assert batch.schema.names == ["b"]


def test_types_are_normalised():
    found = open_source(
        pa.table(
            {
                "s": pa.array([1], pa.timestamp("s", tz="UTC")),
                "d": pa.array([86_400_000], pa.date64()),
                "l": pa.array([[1]], pa.large_list(pa.int16())),
                "f": pa.array([b"ab"], pa.binary(2)),
                "e": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
                "n": pa.array([[[1, 2], [3, 4], [5, 6]]], pa.list_(pa.list_(pa.int8(), 2), 3)),
                "t": pa.ExtensionArray.from_storage(
                    pa.fixed_shape_tensor(pa.float64(), (2, 2)),
                    pa.array([[1.0, 2, 3, 4]], pa.list_(pa.float64(), 4)),
                ),
            }
        )
    )
    assert found.fields == (
        Field("s", pa.timestamp("ms", tz="UTC")),
        Field("d", pa.date32()),
        Field("l", pa.list_(pa.int16())),
        Field("f", pa.binary()),
        Field("e", pa.float32(), (2,)),
        Field("n", pa.int8(), (3, 2)),
        Field("t", pa.float64(), (2, 2)),
    )
    row = rows_of(found)[0]
    assert row["n"] == [1, 2, 3, 4, 5, 6]
    assert row["t"] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int16(), pa.float32(), pa.float32()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.uint8(), pa.int8(), pa.int16()),
        (pa.null(), pa.string(), pa.string()),
        (pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.decimal128(5, 2), pa.decimal128(6, 1), pa.decimal128(7, 2)),
        (pa.list_(pa.int8()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.int64(), pa.string(), None),
        (pa.int64(), pa.bool_(), None),
        (pa.uint64(), pa.int64(), None),
        (pa.timestamp("us"), pa.timestamp("us", tz="UTC"), None),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 3), None),
    ],
)
def test_types_of_parts_are_unified_if_nothing_is_lost(tmp_path, first, second, result):
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for path, type_ in zip(paths, (first, second), strict=True):
        pq.write_table(pa.table({"c": pa.nulls(0, type_), "x": pa.nulls(0, pa.int8())}), path)
    if result is not None:
        assert open_source(paths).schema.field("c").type == result
        return
    with pytest.raises(SchemaError, match="column 'c'") as caught:
        _ = open_source(paths).schema
    assert str(paths[0]) in str(caught.value)
    assert str(paths[1]) in str(caught.value)
    assert "Remedy" in str(caught.value)


def test_widening_checks_the_values():
    source = open_source(
        [pa.table({"c": [2**53 + 1]}), pa.table({"c": pa.array([0.5], pa.float64())})]
    )
    with pytest.raises(SchemaError, match=r"column 'c' of source 0 .*9007199254740993"):
        list(source.batches())


def test_csv_nulls_and_texts(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('s,n,t\nNA,NA,2013-01-01 05:00:00\n"a\nb",1,2013-01-01T06:00:00\n"",2,\n')
    source = open_source(path)
    assert source.schema.field("t").type == pa.timestamp("ms")
    assert [(r["s"], r["n"]) for r in rows_of(source)] == [("NA", None), ("a\nb", 1), (None, 2)]


def test_csv_types_are_unified_over_files_and_can_be_given(tmp_path):
    (tmp_path / "a.csv").write_text("x,zip,t\n1,01234,2013-01-01\n")
    (tmp_path / "b.csv").write_text("zip,t,x\n00501,2013-01-01 10:00:00,1.5\n")
    source = open_source(tmp_path, types={"zip": "string"})
    assert source.schema == pa.schema(
        [("x", pa.float64()), ("zip", pa.string()), ("t", pa.timestamp("ms"))]
    )
    assert [r["zip"] for r in rows_of(source)] == ["01234", "00501"]


def test_csv_value_that_does_not_parse(tmp_path):
    path = tmp_path / "x.csv"
    with path.open("w") as file:
        file.write("y,x\n")
        for index in range(700_000):
            file.write(f"{index % 10},{index}\n")
        file.write("7,oops\n")
    for columns in (None, ["x"]):
        with pytest.raises(SourceError) as caught:
            list(open_source(path).batches(columns))
        text = str(caught.value)
        for part in (str(path), "row 700002", "column 'x'", "oops", "types={'x': 'string'}"):
            assert part in text
    assert sum(b.num_rows for b in open_source(path, types={"x": "string"}).batches()) == 700_001


def test_pandas_column_of_a_slice_without_values_keeps_its_type():
    frame = pd.DataFrame({"s": [None] * 70_000 + ["x"], "v": np.arange(70_001.0)})
    source = open_source(frame)
    assert source.schema.field("s").type == pa.string()
    assert sum(b.num_rows for b in source.batches()) == 70_001


TARGET = (Field("a", pa.int32()), Field("b", pa.string()), Field("e", pa.float32(), (2,)))


def test_conforming_casts_what_fits():
    batch = pa.table({"b": ["x"], "e": [[1.0, 2.0]], "a": pa.array([3.0])})
    source = open_source(batch).conforming((TARGET[0], TARGET[1], Field("e", pa.float64(), (2,))))
    assert rows_of(source) == [{"a": 3, "b": "x", "e": [1.0, 2.0]}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1], "b": ["x"]}, r"lacks columns \['e'\], compared with the table"),
        ({"a": [1], "b": ["x"], "e": [[1, 2]], "q": [1]}, r"has extra columns \['q'\]"),
        ({"a": ["1"], "b": ["x"], "e": [[1, 2]]}, "'a' is int32 in the table but string in"),
        ({"a": [2**40], "b": ["x"], "e": [[1, 2]]}, "does not fit int32 exactly"),
        ({"a": [1.5], "b": ["x"], "e": [[1, 2]]}, "does not fit int32 exactly"),
        ({"a": [1], "b": ["x"], "e": [[1, 2, 3]]}, "rows of other than 2 elements"),
        ({"a": [1], "b": ["x"], "e": [[1, None]]}, "'e' of the source has 1 nulls"),
    ],
)
def test_conforming_refuses_what_does_not_fit(columns, message):
    with pytest.raises(SchemaError, match=message):
        list(open_source(pa.table(columns)).conforming(TARGET).batches())


def test_csv_is_parsed_as_what_the_table_holds(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("zip,x\n01234,1\n")
    target = (Field("zip", pa.string()), Field("x", pa.float32()))
    assert rows_of(open_source(path).conforming(target)) == [{"zip": "01234", "x": 1.0}]


def test_selecting_passes_over_what_is_not_wanted() -> None:
    from featurestore.schema import Field

    rows = pa.table({"a": pa.array([1, 2], pa.int32()), "junk": pa.nulls(2), "b": pa.nulls(2)})
    wanted = (Field("b", pa.string()), Field("a", pa.int64()))
    with open_source(rows) as source:
        chosen = source.selecting(wanted)
        found = pa.Table.from_batches(list(chosen.batches()))
        assert found.schema == pa.schema([("b", pa.string()), ("a", pa.int64())])
        assert found.to_pydict() == {"b": [None, None], "a": [1, 2]}
        with pytest.raises(SchemaError, match="lacks columns"):
            _ = source.selecting((Field("c", pa.int64()),)).fields


@pytest.mark.parametrize("type_", [pl.Categorical, pl.Enum(["a", "b"])])
def test_categories_of_polars_are_strings(type_) -> None:
    frame = pl.DataFrame({"k": pl.Series(["b", None, "a"], dtype=type_)})
    source = open_source(frame)
    assert source.schema.field("k").type == pa.string()
    [batch] = source.batches()
    assert batch.column(0).to_pylist() == ["b", None, "a"]
