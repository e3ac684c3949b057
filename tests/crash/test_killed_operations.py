"""Processes that are killed in the middle of a random stream of all operations.

A process carries out one operation after another and says on its standard output what it begins and
what is done. It is killed at a random moment. Then the store must verify and hold what the model
says: all that was acknowledged, and the operation that was under way as a whole or not at all. The next
process goes on from there.

One process imports everything and forks the ones that are killed, which spares a second for each.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pytest

from featurestore.testing.crash_states import any_seed
from featurestore.testing.operation_stream import (
    FIRST,
    KINDS,
    Model,
    after,
    begin,
    carry_out,
    choose,
    mismatch,
)
from featurestore.testing.store_operations import leftovers, open_store

AHEAD = 8
"""Operations that a process is given; it is killed before it is through."""

SERVER = """
import json, os, sys
from featurestore.testing.operation_stream import carry_out
from featurestore.testing.store_operations import leftovers, open_store

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

say("ready")
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            say("go", os.getpid())
            store = open_store(order["path"])
            for number, step in enumerate(order["steps"]):
                say("begin", number)
                carry_out(store, step)
                say("done", number)
            os._exit(0)
        except BaseException:  # whatever it was is printed; only os._exit leaves a forked child
            import traceback
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    say("ended", os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended: how many operations it began, and how many it was done with."""

    begun: int
    done: int
    code: int

    @property
    def hit(self) -> bool:
        """Whether an operation was under way."""
        return self.begun > self.done


class Server:
    """The process that forks others."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in: IO[str] = process.stdin
        self._out: IO[str] = process.stdout
        self._line("ready")

    def _line(self, word: str) -> list[str]:
        words = self._out.readline().split()
        assert words[:1] == [word], f"expected {word!r}, got {words}"
        return words[1:]

    def run(self, path: Path, steps: list[Any], begun: int, seconds: float) -> End:
        """Let a process carry out operations; kill it some time after it began so many of them."""
        self._in.write(json.dumps({"path": str(path), "steps": steps}) + "\n")
        self._in.flush()
        child = int(self._line("go")[0])
        seen: Counter[str] = Counter()
        while True:
            words = self._out.readline().split()
            assert words, "the server is gone"
            seen[words[0]] += 1
            if words[0] == "ended":
                return End(seen["begin"], seen["done"], int(words[1]))
            if words[0] == "begin" and seen["begin"] == begun:
                time.sleep(seconds)
                with suppress(ProcessLookupError):  # it was through already
                    os.kill(child, signal.SIGKILL)


@contextmanager
def server() -> Iterator[Server]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONWARNINGS": "ignore",
        "POLARS_MAX_THREADS": "1",
    }
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def planned(model: Model, rng: random.Random) -> tuple[list[Any], list[Model]]:
    """Return operations, and the model before the first and after each of them."""
    steps, models = [], [model]
    for _ in range(AHEAD):
        steps.append(choose(models[-1], rng))
        models.append(after(models[-1], steps[-1]))
    return steps, models


def check(path: Path, models: list[Model], end: End) -> Model:
    """Assert that a store is as it was acknowledged, or one operation further; return which."""
    report = open_store(path).verify(all_versions=True)
    assert report.ok, str(report)
    possible = models[end.done : end.begun + 1]
    found = ""
    for model in reversed(possible):
        found = mismatch(path, model)
        if not found:
            return model
    raise AssertionError(f"after {end}: {found}")


def moment(rng: random.Random) -> float:
    """Seconds into an operation: of quick ones, as removing a tag, and of long ones."""
    return rng.choice([rng.uniform(0, 0.06), 10 ** rng.uniform(-4, -1.2)])


def kill_again_and_again(path: Path, kills: int, seed: int) -> Counter[str]:
    """Return how often each kind of operation was hit."""
    rng = random.Random(seed)
    begin(path)
    model, hit = FIRST, Counter[str]()
    with server() as forks:
        for number in range(3 * kills):
            if hit.total() == kills:
                break
            steps, models = planned(model, rng)
            end = forks.run(path, steps, rng.randint(1, AHEAD - 3), moment(rng))
            assert end.code in (-signal.SIGKILL, 0), f"seed {seed}, kill {number}: it failed"
            if end.hit:
                hit[steps[end.done]["kind"]] += 1
            try:
                model = check(path, models, end)
            except AssertionError as error:
                raise AssertionError(
                    f"seed {seed}, kill {number}, in {steps[end.done]}: {error}"
                ) from error
    assert hit.total() == kills, "too few kills hit a running operation to prove anything"
    store = open_store(path)
    store.table("rows").build()
    for _ in range(2):
        store.gc(safety_age="0s", keep_versions=3)
    # What is being written is left alone for some minutes.
    assert not {one for one in leftovers(path) if not one.startswith("tmp/")}
    assert store.verify(all_versions=True).ok
    return hit


def test_fifty_kills(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = any_seed()
    hit = kill_again_and_again(memory / "fifty", 50, seed)
    with capsys.disabled():
        print(f"\n{hit.total()} kills, in {dict(hit)}, seed {seed}", end=" ")


def test_a_wrong_store_is_told_from_a_right_one(memory: Path) -> None:
    path = memory / "told"
    begin(path)
    rng = random.Random(1)
    steps, models = planned(FIRST, rng)
    for step, model in zip(steps, models[1:], strict=True):
        carry_out(open_store(path), step)
        assert not mismatch(path, model)
    end = models[-1]
    wrong = (
        replace(end, rows=end.rows[1:]),
        replace(end, rows=(*end.rows[:-1], (*end.rows[-1][:2], -1.0))),
        replace(end, features=end.features | {"times_9"}),
        replace(end, sides={**end.sides, "more": 3}),
        replace(end, tags={**end.tags, "more": 3}),
    )
    assert all(mismatch(path, one) for one in wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_kills(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = any_seed()
    hit = kill_again_and_again(memory / "thousand", 1000, seed)
    with capsys.disabled():
        print(f"\n{hit.total()} kills, in {dict(hit)}, seed {seed}", end=" ")
    assert hit.keys() == set(KINDS), "some operations were never hit"
