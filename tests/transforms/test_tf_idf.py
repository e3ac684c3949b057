"""TfIdf: brute force over words, cut in every way; scikit-learn; tables and appends."""

from __future__ import annotations

import math
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.engines.tokens import hash_runs, hash_tokens
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing import oracles
from featurestore.transforms.base import Partition, State

ENGINE = PolarsEngine()
SCHEMA = TableSchema((Field("s", pa.string()),))
WORDS = st.sampled_from(["up", "Up", "down", "a1", "rates", "profit_warning", "ÄRGER", "日本"])
TEXTS = st.one_of(
    st.none(), st.lists(WORDS, max_size=6).map(", ".join), st.sampled_from(["", " ...", "up-up"])
)


def token_hash(word: str) -> int:
    data = np.frombuffer(word.encode(), np.uint8)
    hashes, rows = hash_tokens(np.array([0, len(data)]), data, "words")
    return int(hash_runs(hashes, rows, (1,), 0)[0][0])


def words_of(text: str | None) -> list[str]:
    return [] if text is None else re.findall(r"\w+", text.lower())


def brute_force(one: fs.TfIdf, texts: Sequence[str | None], learnt: Sequence[str | None]) -> Any:
    documents = [words_of(text) for text in learnt if text is not None]

    def token(word: str) -> int:
        return token_hash(word) % one.size if one.hashed else token_hash(word)

    counts = Counter(term for words in documents for term in {token(word) for word in words})
    kept = [term for term, n in counts.items() if n >= one.min_count]
    ranked = sorted(kept, key=lambda term: (-counts[term], term))[: one.size]
    place = {term: term if one.hashed else i for i, term in enumerate(ranked)}
    out = np.zeros((len(texts), one.size))
    for row, text in enumerate(texts):
        for term, n in Counter(token(word) for word in words_of(text)).items():
            if term in place:
                rarity = math.log((1 + len(documents)) / (1 + counts[term])) + 1
                out[row, place[term]] = n * rarity
        out[row] /= math.sqrt((out[row] ** 2).sum()) or 1.0
    return out


def part(texts: Sequence[str | None]) -> Partition:
    return Partition(ENGINE.from_arrow(pa.table({"s": pa.array(texts, pa.string())})), SCHEMA)


def learn(one: fs.TfIdf, pieces: Sequence[Sequence[str | None]]) -> State:
    return one.finish(one.combine_all([one.summarize(part(piece), ENGINE) for piece in pieces]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TEXTS, max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
    st.builds(
        fs.TfIdf, st.just("s"), st.sampled_from([2, 5, 40]), hashed=st.booleans(),
        min_count=st.sampled_from([1, 2]),
    ),
)  # fmt: skip
def test_values_equal_brute_force_however_rows_are_cut(
    texts: list[str | None], points: list[int], one: fs.TfIdf
) -> None:
    whole = pa.table({"s": pa.array(texts, pa.string())})
    pieces = [piece["s"].to_pylist() for piece in oracles.cut(whole, None, points)]
    state = learn(one, pieces)
    assert state["terms"].equals(learn(one, [texts])["terms"])
    made = [one.apply(part(piece), state, ENGINE).tensors["s_tfidf"] for piece in pieces]
    together = one.apply(part(texts), state, ENGINE).tensors["s_tfidf"]
    assert np.array_equal(np.concatenate(made), together)
    assert np.allclose(together, brute_force(one, texts, texts), rtol=1e-6, atol=1e-7)


def test_the_same_weights_as_scikit_learn() -> None:
    from sklearn.feature_extraction import text

    rng = np.random.default_rng(0)
    news = [" ".join(f"w{n}" for n in rng.zipf(1.5, 12) % 50) for _ in range(300)]
    wanted = text.TfidfVectorizer(token_pattern=r"\w+").fit_transform(news).toarray()
    one = fs.TfIdf("s", wanted.shape[1])
    found = one.apply(part(news), learn(one, [news]), ENGINE).tensors["s_tfidf"]
    assert np.allclose(np.sort(found, axis=1), np.sort(wanted, axis=1), atol=1e-6)


def test_runs_of_words_are_tokens_too() -> None:
    one = fs.TfIdf("s", 8, ngrams=(1, 2))
    texts = ["rates up", "rates down", "up rates"]
    made = one.apply(part(texts), learn(one, [texts]), ENGINE).tensors["s_tfidf"]
    assert (made > 0).sum(axis=1).tolist() == [3, 3, 3]


def test_a_table_learns_from_its_range_and_grows() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    rows = pl.DataFrame({"id": range(6), "s": ["a b", "a", None, "c c", "b", "z"]})
    table = store.ingest("news", rows.head(4), time="id", partition_bytes=60)
    one = fs.TfIdf("s", 3)
    table.add(one, fit_on=(0, 4))
    table.append(rows.tail(2))
    table.build()
    found = np.concatenate([tensor[:] for tensor in table.tensor("s_tfidf")])
    texts = rows["s"].to_list()
    assert np.allclose(found, brute_force(one, texts, texts[:4]), atol=1e-6)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(SchemaError, match="takes texts"):
        fs.TfIdf("n").inputs(TableSchema((Field("n", pa.int64()),)))
    with pytest.raises(DefinitionError, match="min_count"):
        fs.TfIdf("s", min_count=0)
    with pytest.raises(DefinitionError, match="ngrams"):
        fs.TfIdf("s", ngrams=(2, 1))
