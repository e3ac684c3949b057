"""The store: tables behind one commit log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.arguments import shown, text, whole_number
from featurestore.errors import InvalidInputError
from featurestore.execution.publish import drop_table
from featurestore.plan.readers import readers
from featurestore.report.progress import counted_progress
from featurestore.report.tables import History, StoreSummary
from featurestore.rows import ingest_rows, new_table
from featurestore.schema import check_name
from featurestore.session import Session, workplace
from featurestore.storage.commit_log import CommitLog
from featurestore.table import Table
from featurestore.units import Duration
from featurestore.versions import VersionLike, find_version

if TYPE_CHECKING:
    from featurestore.dataset.split import Split
    from featurestore.report.differences import StoreDiff
    from featurestore.report.repairs import RepairReport
    from featurestore.storage.doctor import DoctorReport
    from featurestore.storage.maintenance import GcReport, VerifyReport


class FeatureStore:
    """A directory or object-store prefix that holds tables and one commit log.

    Make one with :meth:`create` or :meth:`open`.

    Examples
    --------
    >>> import polars as pl
    >>> store = FeatureStore.create("memory://readme-store")
    >>> rows = pl.DataFrame({"id": [1, 1, 2], "day": [1, 2, 1], "x": [0.5, 1.5, 2.5]})
    >>> table = store.ingest("prices", rows, key="id", time="day")
    >>> table.rows
    3
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    # --- making and opening --------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: str | Path,
        *,
        memory_limit: int | str | None = None,
        engine: str = "polars",
        workers: int | None = None,
        client: Any = None,
        enforce: bool = False,
        scratch: str | Path | None = None,
        scratch_limit: int | str | None = None,
    ) -> FeatureStore:
        """Create an empty store.

        Parameters
        ----------
        url : str or Path
            A directory that does not exist or is empty, ``s3://bucket/prefix``, or
            ``memory://name``.
        memory_limit : int or str, optional
            For all work of this session, ``"2GiB"`` or bytes. If not given, what the variable
            ``FEATURESTORE_MEMORY_LIMIT`` or ``featurestore.toml`` says, else 60% of what the machine
            or its container allows.
        engine : {"polars", "cudf", "auto"}
        workers : int, optional
            Threads of this process; the CPUs it may use if not given.
        client : distributed.Client, optional
            Where to run instead.
        enforce : bool
            Let the kernel keep the limit, for as long as the store or anything made of it is used:
            this process, and the client's workers on this host, are killed beyond it. What keeps
            it is in :attr:`enforcement`; a warning says if nothing does. See :func:`enforced`.
        scratch : str or Path, optional
            The directory for what does not fit in memory.
        scratch_limit : int or str, optional
            Bytes that may lie there. Both are found as ``memory_limit`` is if not given; else it is
            the system's directory for temporary files, and its free space.

        Raises
        ------
        NameTakenError
            If there is a store already.
        MemoryLimitError
            If it is to be enforced, and the process holds more already.
        """
        place = workplace(
            url, memory_limit, engine, workers, client, enforce, scratch, scratch_limit
        )
        return cls(Session(CommitLog.create(place.store), place))

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        memory_limit: int | str | None = None,
        engine: str = "polars",
        workers: int | None = None,
        client: Any = None,
        enforce: bool = False,
        scratch: str | Path | None = None,
        scratch_limit: int | str | None = None,
    ) -> FeatureStore:
        """Open a store. Parameters as in :meth:`create`. Runs no code from the store.

        Raises
        ------
        NotFoundError
            If there is none.
        FormatError
            If a newer version of this package wrote it.
        """
        place = workplace(
            url, memory_limit, engine, workers, client, enforce, scratch, scratch_limit
        )
        return cls(Session(CommitLog.open(place.store), place))

    @property
    def session(self) -> Session:
        """What it shares with its tables."""
        return self._session

    @property
    def url(self) -> str:
        return self._session.objects.url

    @property
    def memory_limit(self) -> int:
        """Bytes that work of this session may use."""
        return self._session.place.memory_limit

    @property
    def enforcement(self) -> str:
        """What keeps the limit: ``"cgroup v1: /path"``, ``"cgroup v2: /path"`` or ``"none: why"``."""
        kept = self._session.place.enforcement
        return "none: not asked for" if kept is None else kept.mechanism

    def with_limit(self, memory_limit: int | str) -> FeatureStore:
        """Return the store with another memory limit, for whatever is done with what it returns.

        Raises
        ------
        MemoryLimitError
            If a smaller one is enforced.

        Examples
        --------
        >>> store = FeatureStore.create("memory://limits", memory_limit="1GiB")
        >>> store.with_limit("256MiB").memory_limit, store.memory_limit
        (268435456, 1073741824)
        """
        return FeatureStore(self._session.limited(memory_limit))

    @property
    def version(self) -> int:
        """The version this store is at."""
        return self._session.snapshot().version

    # --- tables ------------------------------------------------------------------------------------------

    def ingest(
        self,
        name: str,
        source: Any,
        *,
        key: str | Sequence[str] = (),
        time: str | None = None,
        partition_bytes: int | str = "128MiB",
        duplicates: str = "error",
        types: dict[str, str] | None = None,
        memory_limit: int | str | None = None,
    ) -> Table:
        """Make a table of rows from files or a stream, larger than memory if need be.

        Parameters
        ----------
        name : str
        source : path, glob, list of them, or object with ``__arrow_c_stream__``
            Parquet, CSV or Arrow IPC files; a pandas, Polars, PyArrow or DuckDB table; a reader.
        key : str or sequence of str
            The columns that say whose row it is; never null.
        time : str, optional
            The event time: a timestamp, date or integer column; never null. Without it rows keep
            the order of the files, and windows are refused.
        partition_bytes : int or str
            Target size of a partition in memory.
        duplicates : {"error", "keep", "last"}
            What rows that share key and time get.
        types : mapping of str to str, optional
            Types of CSV columns where inference is not wanted: ``{"zip": "string"}``.
        memory_limit : int or str, optional
            Of this call; the store's if not given.

        Returns
        -------
        Table

        Raises
        ------
        InvalidInputError
            For every fault of the data; the store is then exactly as before.
        """
        entry = new_table(self._session, name, key, time, partition_bytes, duplicates)
        ingest_rows(self._session.limited(memory_limit), entry, source, types)
        return self.table(name)

    def table(self, name: str) -> Table:
        """Return a table.

        Raises
        ------
        NotFoundError
        """
        self._session.snapshot().table(text(name, "table"))
        return Table(self._session, name)

    def tables(self) -> tuple[str, ...]:
        """Return the names of all tables."""
        return self._session.snapshot().tables()

    def drop(self, table: str) -> None:
        """Remove a table with its features; older versions keep it, and its files stay until ``gc``.

        Raises
        ------
        NotFoundError
        InvalidInputError
            While features of other tables read it.
        ConflictError
            If somebody changed it, or came to read it, meanwhile.
        """
        self._session.require_writable()
        snapshot, table = self._session.snapshot(), text(table, "table")
        columns = {name for group in snapshot.groups(table) for name in group.names}
        for reader in readers(snapshot, table, columns):
            if reader.table != table:
                raise InvalidInputError(str(reader), "drop that feature first")
        self._session.commit(f"drop table {table}", drop_table(snapshot, table))

    # --- versions ------------------------------------------------------------------------------------------

    def history(self, last: int | None = None) -> History:
        """Return the versions, or the ``last`` ones, oldest first: number, time, operation, id.

        One whose file is damaged is listed as unreadable; ``verify(all_versions=True)`` says more.
        """
        count = None if last is None else whole_number(last, "last")
        return History(self._session.log.history(count))

    def tag(self, name: str, version: int | None = None) -> None:
        """Name a version (the newest if not given), so that it is kept and can be checked out."""
        self._session.require_writable()
        number = None if version is None else whole_number(version, "version")
        self._session.log.tag(check_name(name, "tag"), number)

    def untag(self, name: str) -> None:
        """Remove a tag; its version may go with the next ``gc``. One that is not there is no error."""
        self._session.require_writable()
        self._session.log.untag(check_name(name, "tag"))

    def tags(self) -> dict[str, int]:
        """Return the version of each tag."""
        return self._session.log.tags()

    def checkout(self, version: VersionLike) -> FeatureStore:
        """Return the store as it was, read-only.

        Parameters
        ----------
        version : int, str, date or datetime
            A version number, a tag, a snapshot id as in a run folder (``"12-<commit>"``), or a time,
            as ISO 8601 text or not, in UTC if it has no offset: the newest version not later than
            it. Decimal text is a number (``"12"``), but eight digits that are a date
            (``"20261122"``) are a time.

        Returns
        -------
        FeatureStore
            While it, or anything made of it, is used, ``gc`` keeps the version.

        Raises
        ------
        NotFoundError
            If there is no such version, or gc let it go.
        """
        return FeatureStore(self._session.at(find_version(self._session.log, version)))

    def diff(self, a: VersionLike, b: VersionLike | None = None, rows: bool = True) -> StoreDiff:
        """Return what differs between two versions: rows, features, definitions, values.

        Parameters
        ----------
        a, b : int, str, date or datetime
            As for :meth:`checkout`. Without ``b``, the version this store is at.
        rows : bool
            Compare the rows of partitions that differ by content (reads them; 64 bytes of memory for
            each row of partitions that overlap in time); else only metadata, by partitions.

        Returns
        -------
        StoreDiff
            With ``is_empty``; ``diff["flights"]`` is one table's.

        Raises
        ------
        MemoryLimitError
            If the hashes of the rows do not fit.
        """
        from featurestore.diff import diff

        session, before = self._session, find_version(self._session.log, a)
        with session.hold(before):
            if b is None:
                after, lease = session.newest_held()
            else:
                after = find_version(session.log, b)
                lease = session.hold(after)
            with lease:
                return diff(session, before, after, rows)

    def report(
        self,
        path: str | Path = "report.html",
        *,
        tables: str | Sequence[str] | None = None,
        split: Split | None = None,
        values: bool = True,
    ) -> Path:
        """Write one HTML file about the store, which needs nothing but a browser; return its path.

        Parameters
        ----------
        path : str or Path
            Replaced if it is there.
        tables : str or sequence of str, optional
            All if not given.
        split : Split, optional
            Whose parts are compared, in every table that is reported; eight parts of each table in its
            order if not given.
        values : bool
            Whether distributions are drawn, of 4,096 rows of each part; else only metadata is read.
        """
        from featurestore.store_report import write_report

        return write_report(self._session, path, tables, split, values)

    # --- care ------------------------------------------------------------------------------------------------

    def verify(self, full: bool = True, all_versions: bool = False) -> VerifyReport:
        """Check files against their sizes and checksums.

        Parameters
        ----------
        full : bool
            Read every byte; else only sizes and existence.
        all_versions : bool
            Every kept version, tags, states and journals; else the version this store is at.

        Returns
        -------
        VerifyReport
            With ``ok`` and ``faults``.
        """
        from featurestore.plan.stored_definitions import accepted_fingerprints
        from featurestore.storage.maintenance import verify, verify_store

        with counted_progress("verify") as report:
            if all_versions:
                return verify_store(self._session.log, full, accepted_fingerprints, report)
            with self._session.holding_newest() as (session, snapshot):
                told = session.touching(report)
                return verify(session.objects, snapshot, full, accepted_fingerprints, told)

    def repair(self, report: VerifyReport | None = None, dry_run: bool = False) -> RepairReport:
        """Mend what is damaged at the newest version, as far as sound data allows; one commit.

        Damaged values of features are taken from an older kept version where that names an intact
        copy, or computed again where their inputs are sound; damaged states, journals and leases are
        deleted. Ingested data is only ever taken from an intact copy. What was stale becomes missing.

        Parameters
        ----------
        report : VerifyReport, optional
            Of :meth:`verify`; made, in full, if not given. What it names is looked at again, so that
            a file that was restored meanwhile is left alone.
        dry_run : bool
            Only say what would be done.

        Returns
        -------
        RepairReport
            What was mended, and what is left, why, and what mends it.
        """
        from featurestore.plan.stored_definitions import accepted_fingerprints
        from featurestore.repair import repair
        from featurestore.storage.maintenance import VerifyReport, verify_again, verify_store

        self._session.require_writable()
        if not (report is None or isinstance(report, VerifyReport)):
            raise InvalidInputError(f"{shown(report)} is no report of verify", "pass verify()'s")
        held = self._session.holding_newest() if dry_run else self._session.writing_newest()
        with held as (session, snapshot):
            if report is None:
                with counted_progress("verify") as told:
                    report = verify_store(
                        session.log,
                        True,
                        accepted_fingerprints,
                        session.touching(told),
                        only=snapshot,
                    )
            else:
                report = verify_again(session.log, snapshot, report, accepted_fingerprints)
            return repair(session, snapshot, report, dry_run)

    def doctor(self) -> DoctorReport:
        """Try whether the place this store lies at keeps what it relies on.

        Works in a folder of its own, which it removes.
        """
        from featurestore.storage.doctor import examine

        return examine(self.url)

    def give_up(self, version: int) -> int:
        """Give up the newest version, whose file is damaged, for the one before it.

        The commit in it is lost. Only for a version that cannot be restored from a backup; one that
        can be read, and any but the newest, is refused.

        Returns
        -------
        int
            The version the store is at: the same number, with the content of the one before.
        """
        self._session.require_writable()
        return self._session.log.give_up(whole_number(version, "version")).version

    def gc(
        self, safety_age: str = "1d", keep_versions: int = 10, dry_run: bool = False
    ) -> GcReport:
        """Remove files that no kept version names, none younger than ``safety_age``.

        What runs in other processes is safe: checkouts, datasets, Dask frames and everything that
        reads or writes values hold leases on their versions and on the files they write.

        Parameters
        ----------
        safety_age : str
            A duration. What leases cannot protect is protected by its age: what only looks at the
            newest version (status, plan, describe), files of programs that write through the storage
            layer directly, and stores that are copied with other tools. ``"0s"`` is safe when there
            are none of these.
        keep_versions : int
            How many of the newest versions stay readable; tagged ones always do.
        dry_run : bool
            Only say what would be removed.

        Returns
        -------
        GcReport
            What was, or would be, removed.
        """
        from featurestore.storage.maintenance import gc

        self._session.require_writable()
        age = Duration.parse(safety_age).nanoseconds / 1e9
        keep = whole_number(keep_versions, "keep_versions", lowest=1)
        return gc(self._session.log, safety_age_seconds=age, keep_versions=keep, dry_run=dry_run)

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().to_html()

    def summary(self) -> StoreSummary:
        """Return the tables with their rows, partitions, features and bytes."""
        snapshot = self._session.snapshot()
        return StoreSummary(
            self.url,
            snapshot.version,
            tuple(self.table(name).describe() for name in snapshot.tables()),
        )
