"""ListPad and TextHash: lists and texts as tensors, against brute force over plain values."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.engines.tokens import separators
from featurestore.errors import DefinitionError, InvalidInputError, SchemaError
from featurestore.testing import oracles
from featurestore.transforms.base import Partition, Transformer, transformer_from_spec

ENGINE = PolarsEngine()
M64 = 2**64


def run(one: Transformer, values: Sequence[Any], type_: pa.DataType, points: Any = ()) -> Any:
    """Return the tensor that is made of a column, cut before some rows."""
    table = pa.table({"x": pa.array(values, type_)})
    schema = oracles.schema_of(table)
    made = []
    for piece in oracles.cut(table, None, points):
        out = one.apply(Partition(ENGINE.from_arrow(piece), schema), {}, ENGINE)
        (field,) = one.outputs(schema)
        tensor = out.tensors[field.name]
        assert tensor.dtype == field.type.to_pandas_dtype()
        assert tensor.shape == (len(piece), *(field.shape or ()))
        made.append(tensor)
    return np.concatenate(made)


# --- lists ----------------------------------------------------------------------------------------

ITEMS = st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1))
FLOATS = st.one_of(st.none(), st.floats(width=32))


def padded(one: fs.ListPad, items: list[Any] | None) -> list[Any]:
    held = [one.fill_value if item is None else item for item in items or []]
    held = held[: one.length] if one.keep == "first" else held[-one.length :]
    return held + [one.fill_value] * (one.length - len(held))


@settings(deadline=None, max_examples=60)
@given(st.data(), st.booleans(), st.integers(1, 5), st.sampled_from(["first", "last"]))
def test_lists_equal_brute_force_however_cut(
    data: st.DataObject, whole: bool, length: int, keep: str
) -> None:
    items = st.lists(ITEMS if whole else FLOATS, max_size=8)
    rows = data.draw(st.lists(st.one_of(st.none(), items), min_size=1, max_size=12))
    one = fs.ListPad("x", length, fill_value=-1, keep=keep)
    type_ = pa.list_(pa.int64() if whole else pa.float64())
    points = data.draw(st.lists(st.integers(0, 12), max_size=3))
    wanted = np.array([padded(one, row) for row in rows], np.int32 if whole else np.float32)
    np.testing.assert_array_equal(run(one, rows, type_, points), wanted)


def test_lists_that_do_not_fit() -> None:
    ints = pa.list_(pa.int64())
    with pytest.raises(InvalidInputError, match="holds 2147483648, which int32 cannot hold"):
        run(fs.ListPad("x", 2), [[1], [2**31]], ints)
    assert run(fs.ListPad("x", 2, dtype="float32"), [[2**31]], ints).tolist() == [[2.0**31, 0.0]]
    with pytest.raises(InvalidInputError, match=r"holds 1e\+300, which float32 cannot hold"):
        run(fs.ListPad("x", 2), [[1e300]], pa.list_(pa.float64()))
    nan = run(fs.ListPad("x", 2, fill_value=math.nan), [[math.inf]], pa.list_(pa.float64()))
    assert nan[0][0] == math.inf
    assert math.isnan(nan[0][1])
    schema = oracles.schema_of(
        pa.table({"f": pa.array([[1.0]]), "i": pa.array([[1]]), "s": pa.array([["a"]]), "n": [1]})
    )
    for column in ("s", "n"):
        with pytest.raises(SchemaError, match="takes lists of integers or floats"):
            fs.ListPad(column, 2).outputs(schema)
    with pytest.raises(SchemaError, match="cannot hold the floats of column 'f' as int32"):
        fs.ListPad("f", 2, dtype="int32").outputs(schema)
    for pad in (0.5, 2**31, math.nan, math.inf):
        with pytest.raises(DefinitionError, match="cannot pad int32"):
            fs.ListPad("i", 2, fill_value=pad).outputs(schema)
    with pytest.raises(DefinitionError, match="ListPad has fill_value=True"):
        fs.ListPad("i", 2, fill_value=True)


# --- texts ----------------------------------------------------------------------------------------

ALPHABET = "aAbZ9_ .,-—äÖß日本。“İΣ😀\t"


def is_separator(character: str) -> bool:
    return bool(separators(np.array([ord(character)]))[0])


def split_mix(bits: int) -> int:
    bits = (bits + 0x9E3779B97F4A7C15) % M64
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % M64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % M64
    return bits ^ (bits >> 31)


def hash_of(token: str, unit: str) -> int:
    if unit == "characters":
        return split_mix(ord(token))
    state = 0xCBF29CE484222325
    for byte in token.encode():
        state = ((state ^ byte) * 0x100000001B3) % M64
    return split_mix(state ^ 0x737472696E670000)


def tokens_of(text: str, unit: str) -> list[str]:
    if unit == "characters":
        return list(text)
    return "".join(" " if is_separator(one) else one for one in text).split(" ")


def ids_of(one: fs.TextHash, text: str | None) -> list[int]:
    text = text or ""
    if one.lowercase:  # by code point, as is said; "ß" and "İ" have no longer forms then
        text = "".join(one.lower()[0] for one in text)
    tokens = [token for token in tokens_of(text, one.unit) if token]
    low, high = (one.ngrams, one.ngrams) if isinstance(one.ngrams, int) else one.ngrams
    ids = []
    for start in range(len(tokens)):
        for size in range(low, high + 1):
            if start + size <= len(tokens):
                total = split_mix(one.seed)
                for token in tokens[start : start + size]:
                    total = split_mix(total ^ hash_of(token, one.unit))
                ids.append(total % one.buckets + 1)
    return ids


@settings(deadline=None, max_examples=120)
@given(
    st.lists(st.one_of(st.none(), st.text(ALPHABET, max_size=14)), min_size=1, max_size=8),
    st.sampled_from([None, 1, 3, 6]),
    st.sampled_from(["words", "characters"]),
    st.sampled_from([1, 2, 3, (1, 2), (2, 4)]),
    st.booleans(),
    st.sampled_from(["first", "last"]),
    st.integers(0, 3),
    st.lists(st.integers(0, 8), max_size=3),
)
def test_texts_equal_brute_force_however_cut(
    texts: list[str | None],
    length: int | None,
    unit: str,
    ngrams: Any,
    lowercase: bool,
    keep: str,
    seed: int,
    points: list[int],
) -> None:
    one = fs.TextHash(
        "x", 7, length=length, unit=unit, ngrams=ngrams, lowercase=lowercase, keep=keep, seed=seed
    )
    found = run(one, texts, pa.string(), points)
    ids = [ids_of(one, text) for text in texts]
    if length is None:
        wanted = [[row.count(code) for code in range(1, 8)] for row in ids]
    else:
        kept = [row[:length] if keep == "first" else row[-length:] for row in ids]
        wanted = [row + [0] * (length - len(row)) for row in kept]
    assert found.tolist() == wanted


def test_which_characters_end_a_word() -> None:
    words = "az AZ 09 _ äÖß éñ Ωω жЖ 日本語 ひらがな 한국어 عربى ªµº"
    assert [one for one in words if is_separator(one)] == [" "] * words.count(" ")
    apart = " \t\n!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~\x7f\xa0«»¿¡×÷—–“”‘’…€→≤■☃「」、。　！？［］😀🚀\ufeff"
    assert [one for one in apart if not is_separator(one)] == []
    assert tokens_of("It’s “Up-to-date”", "words") == ["It", "s", "", "Up", "to", "date", ""]


def test_ids_never_change() -> None:
    found = run(
        fs.TextHash("x", 2**31 - 2, length=4, ngrams=(1, 2)), ["Fed cuts rates"], pa.string()
    )
    assert found.tolist() == [[122070093, 1146710706, 827664524, 1357019895]]
    found = run(fs.TextHash("x", 1000, length=2, unit="characters"), ["aé"], pa.string())
    assert found.tolist() == [[690, 253]]


def test_many_rows_are_the_rows_one_by_one() -> None:
    rng = np.random.default_rng(2)
    words = np.array(["alpha", "Beta", "γάμμα", "d-e", ""])
    texts = [" ".join(words[rng.integers(0, 5, size)]) for size in rng.integers(0, 9, 3000)]
    one = fs.TextHash("x", 50, length=5, ngrams=(1, 2))
    together = run(one, texts, pa.string())
    alone = np.concatenate([run(one, [text], pa.string()) for text in texts[1000:1100]])
    assert together[1000:1100].tolist() == alone.tolist()
    lists = [list(range(size)) for size in rng.integers(0, 9, 40_000)]
    padded_ = run(fs.ListPad("x", 4, keep="last"), lists, pa.list_(pa.int32()))
    assert padded_.tolist() == [padded(fs.ListPad("x", 4, keep="last"), one) for one in lists]


# --- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one",
    [
        fs.ListPad("v", 3, keep="last"),
        fs.TextHash("s", 20, length=4),
        fs.TextHash("s", 20, ngrams=(1, 3)),
    ],
    ids=["lists", "ids", "counts"],
)
def test_stored_features(one: Any) -> None:
    assert transformer_from_spec(json.loads(json.dumps(one.spec()))) == one
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    lists, texts = [[1, 2, 3, 4], None, [5], []], ["one two", None, "", "Two, ONE two"]
    data = pa.table({"t": [1, 2, 3, 4], "v": lists, "s": texts})
    table = store.ingest("rows", data.slice(0, 2), time="t", partition_bytes=60)
    table.add(one)
    table.append(data.slice(2))
    table.build()
    (field,) = one.outputs(table.schema)
    column, type_ = (lists, pa.list_(pa.int64())) if field.name[0] == "v" else (texts, pa.string())
    wanted = run(type(one)("x", **{k: v for k, v in vars(one).items() if k != "column"}),
                 column, type_)  # fmt: skip
    assert [list(row) for row in table.read([field.name])[field.name]] == wanted.tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: fs.ListPad("x", 0),
        lambda: fs.ListPad("x", 2, keep="middle"),
        lambda: fs.ListPad("x", 2, dtype="int8"),
        lambda: fs.TextHash("x", 0),
        lambda: fs.TextHash("x", 5, length=0),
        lambda: fs.TextHash("x", unit="sentences"),
        lambda: fs.TextHash("x", ngrams=0),
        lambda: fs.TextHash("x", ngrams=(3, 2)),
        lambda: fs.TextHash("x", ngrams=17),
    ],
    ids=range(9),
)
def test_what_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(DefinitionError):
        make()


def test_only_texts_are_hashed() -> None:
    with pytest.raises(SchemaError, match="takes texts; column 'x' is int64"):
        fs.TextHash("x").outputs(oracles.schema_of(pa.table({"x": [1]})))
