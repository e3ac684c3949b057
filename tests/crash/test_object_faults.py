"""Requests to an object store that fail, lose their answer or show old listings, and crashes between.

A crash leaves the objects as they were after some request: those states come from one undisturbed
run. A failing request needs a run of its own, so a normal test run takes a sample of them: of each
kind of request and fault some. Always: the operation succeeds, and is in the history once; or it
raises an error of the package's tree, and the store is as before or as after; whatever the outcome, no
file that a version names is gone, and the operation can be run again.
"""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from featurestore.errors import FeatureStoreError
from featurestore.storage.backends import open_object_store
from featurestore.storage.object_store import ObjectStore
from featurestore.testing.crash_states import Expected, any_seed
from featurestore.testing.object_store_contract import ObjectStoreContract
from featurestore.testing.simulated_disk import PowerFailure
from featurestore.testing.simulated_objects import (
    FAULTS,
    Bucket,
    FaultAt,
    Objects,
    RequestKind,
    attach_bucket,
)
from featurestore.testing.store_operations import OPERATIONS, STAGES, open_store

SAMPLE: dict[RequestKind, int] = {"create": 2, "put": 1, "delete": 1, "list": 1, "read": 1}
"""Requests of each kind for each fault, for each operation, in a normal run."""

_stages: dict[str, Objects] = {}


def stage(name: str) -> Objects:
    """Return the objects of a prepared store, made once."""
    if name not in _stages:
        bucket = Bucket()
        STAGES[name](attach_bucket(f"stage-{name}", bucket))
        bucket.age(3600)
        _stages[name] = bucket.objects
    return _stages[name]


def opened(objects: Objects) -> str:
    """Return the URL of a new bucket with these objects."""
    return attach_bucket("found", Bucket(objects))


class Story:
    """An operation run undisturbed twice: with looks at the store, and alone."""

    def __init__(self, name: str) -> None:
        self.operation = OPERATIONS[name]
        objects = stage(self.operation.stage)
        self.expected = Expected(self.operation, attach_bucket("look", Bucket(objects)))
        self.bucket = Bucket(objects)
        self.operation.run(attach_bucket("alone", self.bucket))

    def faults(self, rng: random.Random | None) -> list[FaultAt]:
        """Return all faults of all requests, or a sample of them."""
        found = []
        for kind, faults in FAULTS.items():
            numbers = range(self.bucket.count(kind))
            if self.operation.name == "repair" and kind == "read":
                continue  # what cannot be read is named as left, and the rest is mended: neither state
            for fault in faults:
                chosen = (
                    numbers
                    if rng is None
                    else sorted(rng.sample(numbers, min(SAMPLE[kind], len(numbers))))
                )
                found += [FaultAt(kind, number, fault) for number in chosen]
            if rng is not None and kind == "create" and numbers:  # the commit itself
                found += [FaultAt(kind, numbers[-1], fault) for fault in faults]
        return list(dict.fromkeys(found))


def run_with_fault(story: Story, at: FaultAt, again: bool) -> str:
    """Run an operation in which one request fails, check everything, return how it ended."""
    bucket = Bucket(stage(story.operation.stage))
    bucket.arm(at)
    url = attach_bucket("faulty", bucket)
    try:
        story.operation.run(url)
        ended = "succeeded"
    except FeatureStoreError as error:
        assert str(error)  # noqa: PT017
        ended = "failed"
    except PowerFailure:
        ended = "crashed"
    failed_at = bucket.failed_at
    if failed_at is None:  # the order of requests differs a little from run to run
        return "not met"
    if ended == "failed" and bucket.requests[failed_at].kind == "create":
        later = [one.path for one in bucket.requests[failed_at:] if one.kind == "delete"]
        ours = [one for one in later if not one.startswith(("leases/", "gc/"))]
        assert not ours, f"an unknown outcome deleted {ours}"
    url = opened(bucket.objects)
    new = story.expected.check(url, values=True, same_ids=False)
    assert new or ended != "succeeded", "the operation was acknowledged and is not there"
    if again:
        story.expected.check_again(url, new)
    return ended


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_request_fails(
    name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = any_seed()
    story = Story(name)
    slow = request.config.getoption("--slow")
    ends: dict[str, int] = {}
    for number, at in enumerate(story.faults(None if slow else random.Random(seed))):
        try:
            end = run_with_fault(story, at, again=number % 4 == 0)
        except Exception as error:
            raise AssertionError(f"{name}, {at}, seed {seed}: {error!r}") from error
        ends[end] = ends.get(end, 0) + 1
    with capsys.disabled():
        print(f"\n{name}: {len(story.bucket.requests)} requests, {ends}, seed {seed}", end=" ")
    assert ends.get("failed")


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_crash_between_requests(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After any request that changed something the process dies."""
    story = Story(name)
    states = 0
    for number, objects in enumerate(story.bucket.moments()):
        url = opened(objects)
        try:
            new = story.expected.check(url, values=number % 4 == 0, same_ids=False)
            if number % 6 == 0:
                story.expected.check_again(url, new)
        except Exception as error:
            raise AssertionError(f"{name}, after change {number}: {error!r}") from error
        states += 1
    assert new
    with capsys.disabled():
        print(f"\n{name}: {states} crash states on an object store", end=" ")


class TestStaleListings:
    """A listing without what was written lately, and with what was deleted lately, harms nothing."""

    @pytest.mark.parametrize(
        "name", ["append", "replace", "build", "compact", "tag", "untag", "gc"]
    )
    def test_gc_after_an_operation(self, name: str) -> None:
        for number in range(100):
            bucket = Bucket(stage(OPERATIONS[name].stage))
            url = attach_bucket("stale", bucket)
            OPERATIONS[name].run(url)
            lists = bucket.count("list")
            bucket.arm(FaultAt("list", lists + number, "stale"))
            store = open_store(url)
            with suppress(FeatureStoreError):
                store.gc(safety_age="10m", keep_versions=1)
            met = bucket.failed_at is not None
            bucket.disarm()
            self.check_sound(url)
            if not met:
                break
        assert number > 2

    def test_gc_after_an_old_version_was_tagged(self) -> None:
        for number in range(100):
            bucket = Bucket(stage("worn"))
            url = attach_bucket("stale", bucket)
            store = open_store(url)
            store.tag("kept", 2)
            lists = bucket.count("list")
            bucket.arm(FaultAt("list", lists + number, "stale"))
            with suppress(FeatureStoreError):
                store.gc(safety_age="10m", keep_versions=1)
            met = bucket.failed_at is not None
            bucket.disarm()
            self.check_sound(url)
            assert store.checkout("kept").table("rows").read(["x"]).height == 48, f"list {number}"
            if not met:
                break
        assert number > 2

    def check_sound(self, url: str) -> None:
        store = open_store(url)
        report = store.verify(all_versions=True)
        assert report.ok, str(report)
        kept = {one.version for one in store.history() if one.kept}
        assert set(store.tags().values()) <= kept
        store.gc(safety_age="0s", keep_versions=1)
        assert store.verify(all_versions=True).ok


class TestContract(ObjectStoreContract):
    """The simulated client answers as obstore's own do."""

    @pytest.fixture
    def store(self) -> ObjectStore:
        return open_object_store(attach_bucket("contract", Bucket()))
