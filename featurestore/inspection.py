"""What a table is asked before anybody trusts it: do features leak, what would a new one be, are values as expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.arguments import column_names
from featurestore.expectations.expectation import Expectation
from featurestore.leakage import check_leakage
from featurestore.preview.preview import Request, preview
from featurestore.report.leakage import LeakReport
from featurestore.report.previews import Preview
from featurestore.report.validation import Validation
from featurestore.session import Session
from featurestore.validation import ExpectationSet


class Inspection:
    """What :class:`~featurestore.Table` answers about its values, and what it is to expect of them."""

    _session: Session
    _name: str

    def check_leakage(
        self,
        features: str | Sequence[str] | None = None,
        sample: int = 50,
        seed: int = 0,
        known: Mapping[str, Any] | None = None,
    ) -> LeakReport:
        """Recompute rows from what was known at their time, and report the features that differ.

        Parameters
        ----------
        features : str or sequence of str, optional
            All but labels, and what is computed from them, if not given.
        sample, seed : int
            How many rows are drawn; all rows of their times are compared.
        known : mapping of str to str, timedelta or int, optional
            For tables that joins read: the column that says when a row became known, or how long
            after its time that was. By default a column ``available``; see ``featurestore.leakage``.
        """
        return check_leakage(self._session, self._name, features, sample, seed, known or {})

    def preview(
        self,
        feature: Any,
        label: str | None = None,
        partitions: int | Sequence[int] = 3,
        *,
        fit_on: Any = None,
        rows: int = 5,
        against: str | Sequence[str] | None = None,
        leak_rows: int = 20,
        seed: int = 0,
        known: Mapping[str, Any] | None = None,
    ) -> Preview:
        """Compute features on a few partitions and say what they are like; nothing is written.

        Everything is computed in scratch space, with the code of a build. What looks back or ahead
        is computed on consecutive partitions, with as much history as it reaches, up to 256 MiB of
        the columns that it reads. Where values may differ from those of a build all the same, the
        result says why (``differs``).

        Parameters
        ----------
        feature : Transformer, str, or list of them
            May use each other's outputs; a name is that of a feature that is defined. One that gives
            columns of a name that is taken is compared with what is stored.
        label : str, optional
            A column, stored or previewed, that the features are correlated with.
        partitions : int or sequence of int
            How many, or which by their position. They are from all over the table where features look
            at no other rows, and consecutive else.
        fit_on : ``"all"`` or (start, stop), optional
            As of :meth:`Table.add`; of those rows, the ones of the partitions that are read are learnt
            from. If not given, these partitions, and no verdict is given on leaks.
        rows : int
            How many of the first rows the result shows.
        against : str or sequence of str, optional
            The stored columns to compare with; all numbers, truth values and texts if not given, but
            keys, time and label.
        leak_rows, seed, known
            Of the leak check: ``sample``, ``seed`` and ``known`` of :meth:`check_leakage`; 0 rows for
            none. Stored inputs are taken as they are: ``check_leakage`` judges those.

        Returns
        -------
        Preview

        Raises
        ------
        DefinitionError, SchemaError, NotPartitionIndependentError
            As ``add``, for a feature that cannot be.
        InvalidInputError
            For what is no feature, or no partition of the table.
        NotReadyError
            If columns of another table are missing or stale.
        MemoryLimitError
            If a partition's columns do not fit the memory limit.
        """
        return preview(
            self._session,
            self._name,
            Request(
                feature, label, partitions, fit_on, rows,
                None if against is None else column_names(against), leak_rows, seed, known or {},
            ),
        )  # fmt: skip

    # --- expectations ------------------------------------------------------------------------

    def expect(self, *expectations: Expectation, replace: bool = False) -> None:
        """State what is expected of the table's values, from now on.

        Held against what ``append`` and ``replace`` are about to publish, and what ``build`` and
        ``add`` computed of features that were there before; what is there already is judged by
        :meth:`validate`. Kept with the table, by version. The same again changes nothing.

        Parameters
        ----------
        *expectations : Expectation
            Such as ``fs.ExpectRange("price", low=0)``.
        replace : bool
            Whether these take the place of all that were stated before; with none given, nothing is
            expected any more.

        Raises
        ------
        InvalidInputError
            For a column that is not there, or whose type cannot be judged so; for a tag without values.
        """
        ExpectationSet(self._session, self._name).state(expectations, replace)

    @property
    def expectations(self) -> tuple[Expectation, ...]:
        """What is expected of the table's values."""
        return ExpectationSet(self._session, self._name).stated()

    def validate(self) -> Validation:
        """Hold the table as it is against its expectations; changes nothing.

        Features are judged in the partitions that are built. Only columns of which something is
        expected are read, a slice at a time.

        Returns
        -------
        Validation
            ``ok``, and what was found of each expectation.
        """
        return ExpectationSet(self._session, self._name).validate()
