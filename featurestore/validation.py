"""A table's expectations: stated, listed, and held against what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.errors import InvalidInputError, NotFoundError
from featurestore.execution.publish import state_expectations
from featurestore.expectations.checking import (
    expectations_of,
    findings,
    judged_table,
    with_reference,
)
from featurestore.expectations.drift import ExpectDrift
from featurestore.expectations.expectation import (
    Expectation,
    ExpectUnique,
    require_expectations,
)
from featurestore.fingerprint import canonical_json
from featurestore.plan.table_files import TableFiles
from featurestore.report.validation import Validation
from featurestore.session import Session
from featurestore.storage.records import BASE_GROUP
from featurestore.storage.tags import Tags


@dataclass(frozen=True, slots=True)
class ExpectationSet:
    """The expectations of one table.

    Parameters
    ----------
    session : Session
    table : str
    """

    session: Session
    table: str

    def stated(self) -> tuple[Expectation, ...]:
        """Return the expectations, as they were stated."""
        return expectations_of(self.session.snapshot().table(self.table))

    def state(self, given: Sequence[Expectation], replacing: bool) -> None:
        """Add expectations, or let them take the place of all there are; see ``Table.expect``."""
        require_expectations(given)
        self.session.require_writable()
        with self.session.writing_newest() as (session, snapshot):
            files = session.files(self.table, snapshot)
            new = [_written(self._bound(session, files, one)) for one in given]
            kept = () if replacing else files.entry.expectations
            wanted = tuple(dict.fromkeys((*kept, *new)))
            if wanted == files.entry.expectations:
                return  # a script that runs again states nothing
            session.commit(
                f"expect {len(wanted)} of {self.table}", state_expectations(files.entry, wanted)
            )

    def _bound(self, session: Session, files: TableFiles, one: Expectation) -> Expectation:
        check_expectation(session, files, one)
        if isinstance(one, ExpectDrift):
            for stated in expectations_of(files.entry):  # with the bins that it has already
                if isinstance(stated, ExpectDrift) and stated.as_asked() == one:
                    return stated
            tagged = session.at(session.log.resolve(Tags(session.objects).get(one.tag).id))
            return with_reference(one, session.place, tagged.files(self.table))
        return one

    def validate(self) -> Validation:
        """Hold the table as it is against its expectations; see ``Table.validate``."""
        with self.session.holding_newest() as (session, snapshot):
            files = session.files(self.table, snapshot)
            found = findings(judged_table(session.place, files), expectations_of(files.entry))
            return Validation(self.table, snapshot.version, found)


def check_expectation(session: Session, files: TableFiles, one: Expectation) -> None:
    """Refuse an expectation that a table cannot have.

    Raises
    ------
    InvalidInputError
        If a column is not there, or is of a type that cannot be judged so.
    NotFoundError
        If there is no such tag.
    """
    one.check(files.schema)
    made = [name for name in one.columns if files.graph.owners[name] != BASE_GROUP]
    if isinstance(one, ExpectUnique) and made:
        raise InvalidInputError(
            f"column {made[0]!r} is a feature, and only ingested columns are compared with all rows",
            "name ingested columns",
        )
    if isinstance(one, ExpectDrift):
        kept = [each for each in expectations_of(files.entry) if isinstance(each, ExpectDrift)]
        if one not in [each.as_asked() for each in kept]:
            tags = Tags(session.objects)
            if tags.find(one.tag) is None:
                raise NotFoundError(f"there is no tag {one.tag!r}", f"tags are {tags.names()}")


def _written(one: Expectation) -> str:
    return canonical_json(one.to_json()).decode()
