"""What every transformer keeps, tried on random tables: one suite to inherit.

A test module says which transformers to try and what brute force makes of plain rows; the suite cuts
the tables at random, puts states together in every way, stores and reads specifications, and drives
whole tables through appends and replaced ranges.

    class TestClip(TransformerContract):
        def transformers(self) -> st.SearchStrategy[Transformer]:
            return st.builds(fs.Clip, st.just(["x"]), st.sampled_from([None, -1.0]), st.just(2.0))

        def expected(self, transformer, rows, other):
            return {"x": [None if row["x"] is None else min(row["x"], 2.0) for row in rows]}
"""

from __future__ import annotations

import inspect
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.schema import TableSchema
from featurestore.storage.states import decode_state, encode_state
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.strategies import cuts, tables
from featurestore.transforms.base import (
    EMPTY_STATE,
    Partition,
    Scope,
    SourceTransformer,
    State,
    Transformer,
    transformer_from_spec,
)

OTHER: Final = "other"
"""The name under which a transformer of the contract knows the other table."""
_CLOCKS_CHANGE: Final = 1_729_990_800
"""2024-10-27 01:00 UTC, in seconds: clocks in Berlin go back from 3 to 2."""
_COLUMNS: Final = frozenset("tkgxnbs")
_SECTIONS: Final = ("Null rule", "Boundary rule", "State", "Memory", "Examples")


class TransformerContract(ABC):
    """Subclass it as ``Test...`` for each transformer, or family of them."""

    examples: ClassVar[int] = 50
    """How many random tables the brute force is tried on."""
    tables_driven: ClassVar[int] = 3
    """How many random histories of a real table are driven."""
    tolerance: ClassVar[float] = 1e-9
    """How far values may be from brute force, relative to their size; integers and texts not at all."""
    bitwise: ClassVar[bool] = True
    """Whether values are the same bits for every cutting; else they are within ``tolerance``."""
    key: ClassVar[Sequence[str]] = ("k",)
    time: ClassVar[str] = "t"

    # --- what a test module says -----------------------------------------------------------------

    @abstractmethod
    def transformers(self) -> st.SearchStrategy[Transformer]:
        """Return the transformers to try, for the columns of :meth:`tables`."""

    @abstractmethod
    def expected(
        self, transformer: Any, rows: Sequence[Row], other: Sequence[Row]
    ) -> Mapping[str, Sequence[Any]]:
        """Return each output column for rows in table order, by brute force."""

    def tables(self) -> st.SearchStrategy[pa.Table]:
        """Return tables in order of time."""
        return tables()

    def others(self) -> st.SearchStrategy[pa.Table] | None:
        """Return the other table's rows, for transformers that read one (as ``OTHER``)."""
        return None

    def learnable(self, transformer: Any, rows: Sequence[Row]) -> bool:
        """Whether there is anything to learn from these rows; refusals are tested by themselves."""
        return bool(rows) or transformer.scope is not Scope.FIT

    # --- the suite -------------------------------------------------------------------------------

    def test_values_equal_brute_force_however_rows_are_cut(self) -> None:
        def check(case: _Case, points: list[int], more: list[int]) -> None:
            assume(self.learnable(case.transformer, oracles.rows_of(case.rows)))
            whole = case.outputs([case.rows], [case.other])
            empty = case.rows.slice(0, 0)
            pieces = [empty, *oracles.cut(case.rows, self.time, points), empty]
            others = oracles.cut(case.other, self.time, more)
            self._same(whole, case.outputs(pieces, others))
            self._compare(case.transformer, case.rows, case.other, whole)

        self._try(check, self._cases(), cuts(), cuts())

    def test_a_partition_per_time_gives_the_same(self) -> None:
        """As rows are served: each is computed knowing what came before, and nothing else."""

        def check(case: _Case) -> None:
            assume(self.learnable(case.transformer, oracles.rows_of(case.rows)))
            pieces = oracles.cut(case.rows, self.time, range(len(case.rows)))
            whole = case.outputs([case.rows], [case.other], fit_on=[case.rows])
            self._same(whole, case.outputs(pieces, [case.other], fit_on=[case.rows]))

        self._try(check, self._cases(), share=4)

    def test_a_time_zone_whose_clocks_change_is_the_same_instants(self) -> None:
        """Rows around the hour that Berlin's clocks show twice give what they give without a zone."""

        def check(case: _Case, points: list[int]) -> None:
            assume(self.learnable(case.transformer, oracles.rows_of(case.rows)))
            plain, zoned = (case.around(_CLOCKS_CHANGE, zone) for zone in (None, "Europe/Berlin"))
            pieces = oracles.cut(zoned.rows, self.time, points)
            found = zoned.outputs(pieces, [zoned.other])
            whole = plain.outputs([plain.rows], [plain.other])
            self._same(whole, pa.table({one: _unzoned(found[one]) for one in found.column_names}))

        self._try(check, self._cases(), cuts(), most=min(self.examples, 6))

    def test_states_combine_in_any_grouping_and_survive_being_stored(self) -> None:
        def check(case: _Case, points: tuple[int, int]) -> None:
            if case.transformer.scope is Scope.NONE:
                return  # there is no state
            pieces = oracles.cut(case.summarized, self.time, points)
            pieces = [*pieces, *[case.summarized.slice(0, 0)] * (3 - len(pieces))]
            one = case.transformer
            a, b, c = (_stored(case.summarize(piece)) for piece in pieces)
            left, right = one.combine(one.combine(a, b), c), one.combine(a, one.combine(b, c))
            self._same_states(left, right)
            self._same_states(left, one.combine_all([a, b, c]))
            for empty in (one.combine(EMPTY_STATE, a), one.combine(a, EMPTY_STATE)):
                self._same_states(empty, a)

        self._try(check, self._cases(), st.tuples(*[st.integers(0, 40)] * 2), share=2)

    def test_specifications_survive_being_stored(self) -> None:
        def check(case: _Case) -> None:
            spec = json.loads(json.dumps(case.transformer.spec()))
            again = transformer_from_spec(spec)
            assert again == case.transformer
            assert hash(again) == hash(case.transformer)
            assert again.fingerprint() == case.transformer.fingerprint()
            assert again.outputs(case.schema) == case.transformer.outputs(case.schema)

        self._try(check, self._cases(), share=2)

    def test_tables_that_grow_and_change_hold_what_brute_force_makes_of_their_rows(self) -> None:
        def check(case: _Case, points: list[int], span: tuple[int, int], new: pa.Table) -> None:
            case = case.with_keys_known()
            assume(len(case.rows) > 0 and len(case.summarized) > 0)
            table, other = self._grown(case, points)
            assume(self.learnable(case.transformer, oracles.rows_of(_plain(table))))
            table.add(case.transformer, **_fitted(case.transformer))
            self._check_table(case.transformer, table, other)
            low, high = min(span), max(span) + 1
            times = new[self.time].cast(pa.int64()).to_pylist()
            inside = pa.array([low <= one < high for one in times], pa.bool_())
            bounds = pa.array([low, high]).cast(new[self.time].type).to_pylist()
            table.replace(_keys_known(new.filter(inside), self.key), tuple(bounds))
            assume(self.learnable(case.transformer, oracles.rows_of(_plain(table))))
            table.build()
            self._check_table(case.transformer, table, other)

        spans = st.tuples(*[st.integers(0, 25)] * 2)
        self._try(check, self._cases(), cuts(), spans, self.tables(), most=self.tables_driven)

    def test_its_page_says_what_users_must_know(self) -> None:
        def check(case: _Case) -> None:
            page = inspect.getdoc(type(case.transformer)) or ""
            assert [one for one in _SECTIONS if one.lower() not in page.lower()] == []

        self._try(check, self._cases(), most=5)

    # --- how -------------------------------------------------------------------------------------

    def _try(
        self,
        check: Callable[..., None],
        *strategies: st.SearchStrategy[Any],
        share: int = 1,
        most: int | None = None,
    ) -> None:
        count = max(1, self.examples // share) if most is None else most
        # Histories of whole tables take a second each: shrinking one would take minutes.
        phases = [one for one in Phase if most is None or one is not Phase.shrink]
        tried = settings(
            max_examples=count,
            deadline=None,
            phases=phases,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        if count:
            tried(given(*strategies)(check))()

    def _cases(self) -> st.SearchStrategy[_Case]:
        others = self.others()
        other = st.just(tables_like(0)) if others is None else others
        made = st.tuples(self.transformers(), self.tables(), other)
        return made.map(lambda one: _Case(*one, tuple(self.key), self.time))

    def _same(self, left: pa.Table, right: pa.Table) -> None:
        if self.bitwise:
            assert oracles.same_values(left, right), (left.to_pydict(), right.to_pydict())
            return
        for a, b in zip(left.columns, right.columns, strict=True):
            assert oracles.close_values(a.to_pylist(), b.to_pylist(), self.tolerance)

    def _same_states(self, left: State, right: State) -> None:
        assert left.keys() == right.keys()
        for name in left:
            self._same(left[name], right[name])

    def _compare(
        self, transformer: Transformer, rows: pa.Table, other: pa.Table, found: pa.Table
    ) -> None:
        wanted = self.expected(transformer, oracles.rows_of(rows), oracles.rows_of(other))
        assert list(wanted) == found.column_names
        for name, values in wanted.items():
            actual = found[name].to_pylist()
            assert oracles.close_values(actual, list(values), self.tolerance), (
                name,
                actual,
                values,
            )

    def _grown(self, case: _Case, points: list[int]) -> tuple[fs.Table, pa.Table]:
        """Return a real table, ingested and appended to piece by piece, and the other's rows."""
        store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
        how: dict[str, Any] = {"time": self.time, "duplicates": "keep", "partition_bytes": 700}
        other = case.other
        if isinstance(case.transformer, SourceTransformer):
            held = store.ingest(OTHER, case.other, key=list(self.key), **how)
            other = held.read(case.other.column_names, as_="arrow")
        pieces = [one for one in oracles.cut(case.rows, self.time, points) if len(one)]
        table = store.ingest("rows", pieces[0], key=list(self.key), **how)
        for piece in pieces[1:]:
            table.append(piece)
        return table, other

    def _check_table(self, transformer: Transformer, table: fs.Table, other: pa.Table) -> None:
        fields = transformer.outputs(table.schema)
        names = [one.name for one in fields if not one.is_tensor]
        tensors = [one.name for one in fields if one.is_tensor]
        held = table.read(names, as_="arrow") if names else None
        made = {} if held is None else dict(zip(names, held.columns, strict=True))
        for name in tensors:
            cells = table.read(name, as_="arrow")[name].to_pylist()
            shape = table.schema[name].shape or ()
            values = np.array(cells, np.float32).reshape(len(cells), *shape)
            made.update(oracles.tensor_cells(name, values))
        self._compare(transformer, _plain(table), other, pa.table(made))


class _Case:
    """A transformer and the rows it is tried on."""

    def __init__(
        self,
        transformer: Transformer,
        rows: pa.Table,
        other: pa.Table,
        key: Sequence[str],
        time: str,
    ) -> None:
        self.transformer, self.rows, self.other = transformer, rows, other
        self.engine = PolarsEngine()
        self.other_schema = oracles.schema_of(other, key, time)
        self.schema: TableSchema = oracles.schema_of(rows, key, time, {OTHER: self.other_schema})

    def __repr__(self) -> str:
        return f"{self.transformer!r} on {self.rows.to_pydict()} beside {self.other.to_pydict()}"

    @property
    def summarized(self) -> pa.Table:
        """The rows that its states are learnt of."""
        return self.other if isinstance(self.transformer, SourceTransformer) else self.rows

    def outputs(
        self,
        rows: Sequence[pa.Table],
        others: Sequence[pa.Table],
        fit_on: Sequence[pa.Table] | None = None,
    ) -> pa.Table:
        return oracles.run_partitioned(
            self.transformer, rows, self.schema, self.engine, others, fit_on
        )

    def with_keys_known(self) -> _Case:
        """Return it without the rows that no table takes, those whose key has a null."""
        rows, other = (_keys_known(one, self.schema.key) for one in (self.rows, self.other))
        return _Case(self.transformer, rows, other, self.schema.key, cast("str", self.schema.time))

    def around(self, instant: int, zone: str | None) -> _Case:
        """Return it with all times moved to around an instant, of a zone."""
        time = cast("str", self.schema.time)
        moved = [_moved(one, instant, zone) for one in (self.rows, self.other)]
        return _Case(self.transformer, moved[0], moved[1], self.schema.key, time)

    def summarize(self, piece: pa.Table) -> State:
        one = self.transformer
        if one.scope is Scope.NONE:
            return EMPTY_STATE
        if isinstance(one, SourceTransformer):
            names, schema = one.source_inputs(self.schema), self.other_schema
        else:
            names, schema = one.learns_from(self.schema), self.schema
        frame = self.engine.from_arrow(piece.select(list(names)))
        return one.summarize(Partition(frame, schema), self.engine)


def tables_like(rows: int) -> pa.Table:
    """Return a table with a key and a time and this many rows, all of one time."""
    return pa.table(
        {
            "k": pa.array([f"k{one}" for one in range(rows)], pa.string()),
            "t": pa.array([0] * rows, pa.timestamp("us")),
        }
    )


def _moved(rows: pa.Table, instant: int, zone: str | None) -> pa.Table:
    """Return rows with all times later by an instant in seconds, and of a zone."""
    for place, one in enumerate(rows.schema):
        if pa.types.is_timestamp(one.type):
            unit = one.type.unit
            shift = instant * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
            steps = pc.add(rows[place].cast(pa.int64()), shift)
            rows = rows.set_column(place, one.name, steps.cast(pa.timestamp(unit, zone)))
    return rows


def _unzoned(column: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = column.type
    return column.cast(pa.timestamp(type_.unit)) if pa.types.is_timestamp(type_) else column


def _stored(state: State) -> State:
    return decode_state(encode_state(state)) if state else state


def _fitted(transformer: Transformer) -> dict[str, Any]:
    return {"fit_on": "all"} if transformer.scope is Scope.FIT else {}


def _keys_known(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    for name in key:
        rows = rows.filter(pc.is_valid(rows[name]))
    return rows


def _plain(table: fs.Table) -> pa.Table:
    """Return a table's own columns as they were ingested, in table order."""
    return table.read([one for one in table.columns if one in _COLUMNS], as_="arrow")
