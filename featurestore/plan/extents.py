"""How much each call of a table's features is handed, known from metadata.

Sizes of columns are those recorded when they were written. Of columns that this build is going to make
first, their maker says how large they get at most; of states that are kept, their files say it, of the
others their transformer.

Always true: nothing is read but metadata; the same question gets the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from featurestore.plan.definition import Feature
from featurestore.plan.learner_sizes import LearnerSizes, members_of
from featurestore.plan.slicing import Work, is_one_time
from featurestore.plan.staleness import Assessment
from featurestore.plan.table_files import TableFiles, source_of, summarized_of
from featurestore.storage.states import StateStore
from featurestore.transforms.base import row_width
from featurestore.transforms.extent import Extent


class Extents:
    """The extents of one table's features.

    Parameters
    ----------
    files : TableFiles
        The table as it will be.
    sources : mapping of str to TableFiles
    assessments : mapping of str to sequence of Assessment
    states : StateStore
    """

    def __init__(
        self,
        files: TableFiles,
        sources: Mapping[str, TableFiles],
        assessments: Mapping[str, Sequence[Assessment]],
        states: StateStore,
    ) -> None:
        self._files = files
        self._sources = sources
        self._assessments = assessments
        self._makers = {
            name: one for one in files.graph.features() for name in one.names
        }  # of every column that is a feature
        self._made: dict[tuple[str, int], Mapping[str, int]] = {}
        self._extents: dict[tuple[str, int], Extent] = {}
        self._learners: dict[str, LearnerSizes] = {}
        self._widest: dict[tuple[str, tuple[str, ...]], int] = {}
        self._kept = states.sizes(self._keys())

    def _keys(self) -> set[str]:
        keys: set[str] = set()
        for found in self._assessments.values():
            needs = [one.need for one in found if not one.is_fresh]
            keys.update(need.key for need in needs)
            keys.update(member.key for member in members_of(needs))
        return keys - {""}

    def is_kept(self, key: str) -> bool:
        return key in self._kept

    # --- columns ---------------------------------------------------------------------------------

    def columns(self, files: TableFiles, position: int, names: Iterable[str]) -> dict[str, int]:
        """Return the Arrow bytes of columns of a partition of this table or of another."""
        base = files.base[position]
        found = {}
        for name in dict.fromkeys(names):
            maker = self._maker(files, name, position)
            if maker is not None:
                found[name] = self._outputs(maker, position)[name]
                continue
            entry = files.entries[files.graph.owners[name]].get(base.partition)
            found[name] = 0 if entry is None else entry.column_bytes.get(name, 0)
        return found

    def _maker(self, files: TableFiles, name: str, position: int) -> Feature | None:
        """Return the feature that has yet to make a column in a partition, if there is one."""
        maker = self._makers.get(name) if files.name == self._files.name else None
        if maker is None:
            return None
        found = self._assessments.get(maker.group, ())
        unfinished = bool(found) and not found[position].is_fresh
        return maker if unfinished else None

    def _outputs(self, feature: Feature, position: int) -> Mapping[str, int]:
        """Return the most bytes of a feature's columns; each of varying width may have all the rest."""
        at = feature.group, position
        if at not in self._made:
            total = self.output_bytes(feature, position)
            rows = self._files.base[position].rows
            widths = {one.name: row_width(one) for one in feature.outputs}
            rest = max(0, total - rows * sum(one for one in widths.values() if one is not None))
            self._made[at] = {
                name: rest if width is None else rows * width for name, width in widths.items()
            }
        return self._made[at]

    def output_bytes(self, feature: Feature, position: int) -> int:
        """Return the most Arrow bytes of what a feature writes in a partition."""
        schema, extent = self._files.schema, self.extent(feature, position)
        return feature.transformer.output_bytes(schema, extent)

    def _widest_row(self, files: TableFiles, position: int, names: Sequence[str]) -> int:
        widest = files.widest_row(position, names)
        for name in names:
            if self._maker(files, name, position) is not None:
                # Not written yet: a single row might hold nearly all of a text column.
                width = row_width(files.schema[name])
                size = self.columns(files, position, [name])[name]
                widest += size if width is None else width
        return widest

    # --- apply -----------------------------------------------------------------------------------

    def extent(self, feature: Feature, position: int) -> Extent:
        """Return what ``apply`` is handed in a partition."""
        at = feature.group, position
        if at not in self._extents:
            self._extents[at] = self._extent(feature, position)
        return self._extents[at]

    def _extent(self, feature: Feature, position: int) -> Extent:
        files, need = self._files, self._assessments[feature.group][position].need
        source_rows = source_bytes = widest = 0
        joined = source_of(feature, files, self._sources)
        if joined is not None:
            source, names = joined
            for one in need.rows:
                source_rows += source.base[one].rows
                source_bytes += sum(self.columns(source, one, names).values())
            widest = self._widest_source_row(source, names)
        elif feature.transformer.is_keyed:
            widest = self._widest_source_row(files, feature.inputs)
        return Extent(
            files.base[position].rows,
            self.columns(files, position, feature.inputs),
            self._widest_row(files, position, feature.inputs),
            0 if not need.key else self.learnt(feature).state_bytes(need),
            source_rows,
            source_bytes,
            widest,
            self.learner(feature)[0].rows_between(*need.span(feature.transformer.scope)),
            self._nulls(position, feature.inputs),
        )

    def _nulls(self, position: int, names: Iterable[str]) -> dict[str, int]:
        """Return how many nulls columns have in a partition, of those that are written already."""
        files, found = self._files, {}
        base = files.base[position]
        for name in names:
            entry = files.entries[files.graph.owners[name]].get(base.partition)
            if entry is not None and self._maker(files, name, position) is None:
                found[name] = entry.nulls.get(name, base.rows)
        return found

    def _widest_source_row(self, source: TableFiles, names: tuple[str, ...]) -> int:
        """Return the most bytes of a row of any partition: looked up once for all of them."""
        key = source.name, names
        if key not in self._widest:
            found = (self._widest_row(source, one, names) for one in range(len(source.base)))
            self._widest[key] = max(found, default=0)
        return self._widest[key]

    def work(self, feature: Feature, position: int) -> Work:
        """Return ``apply`` of a feature in a partition."""
        schema = self._files.schema
        return Work(
            feature.transformer,
            schema,
            schema,
            self.extent(feature, position),
            self._time_bytes(self._files, position),
            one_time=is_one_time(self._files.base[position]),
        )

    def summary_work(self, feature: Feature, position: int, *, cut: bool) -> Work:
        """Return ``summarize`` of a feature on a partition of its learner's table."""
        files, _ = self.learner(feature)
        return Work(
            feature.transformer,
            self._files.schema,
            files.schema,
            self.learnt(feature).summarized(position),
            self._time_bytes(files, position),
            summarizes=True,
            cut=cut,
            one_time=is_one_time(files.base[position]),
        )

    def _time_bytes(self, files: TableFiles, position: int) -> int:
        time = files.schema.time
        return 0 if time is None else self.columns(files, position, [time])[time]

    # --- states ----------------------------------------------------------------------------------

    def learner(self, feature: Feature) -> tuple[TableFiles, tuple[str, ...]]:
        """Return the table that a feature's summaries are made of, and the columns."""
        return summarized_of(feature, self._files, self._sources)

    def learnt(self, feature: Feature) -> LearnerSizes:
        """Return the sizes of a feature's summaries and states."""
        if feature.group not in self._learners:
            files, names = self.learner(feature)
            self._learners[feature.group] = LearnerSizes(
                feature.transformer,
                self._files.schema,
                partial(self._summarized, files, names),
                [one.need for one in self._assessments[feature.group]],
                self._kept,
            )
        return self._learners[feature.group]

    def _summarized(self, files: TableFiles, names: Sequence[str], position: int) -> Extent:
        return Extent(
            files.base[position].rows,
            self.columns(files, position, names),
            self._widest_row(files, position, names),
        )
