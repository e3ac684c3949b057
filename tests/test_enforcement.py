"""A limit that the kernel keeps: who goes beyond it is killed, who does not is not; nothing is left behind.

Version 1 is tried on the kernel itself where its files may be written; version 2 on files that behave as
its documents say.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import featurestore as fs
from featurestore.control_groups import ControlGroup, content, own_group
from featurestore.enforcement import Cage, Enforcement, enforced
from featurestore.errors import (
    EnforcementWarning,
    InvalidInputError,
    MemoryLimitError,
    UnsupportedError,
)
from featurestore.limited_group import PREFIX, GroupFiles, make_group, remove_abandoned
from featurestore.testing.clusters import loopback_client

MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")
HELD = 4096 * PAGE  # by each of the simulated processes


def why_not() -> str:
    """Return why this system cannot be asked to keep a limit; nothing if it can."""
    own = own_group()
    if own is None:
        return "no memory control groups"
    try:
        group = make_group(GroupFiles())
    except UnsupportedError as error:
        return str(error)
    group.dissolve()
    return ""


WHY_NOT = why_not()
real = pytest.mark.skipif(bool(WHY_NOT), reason=f"the kernel keeps no limits here: {WHY_NOT}")


# --- the kernel's files, version 2 -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Simulated(GroupFiles):
    """Files of version 2 in a folder, with the kernel's rules: where processes may be, what exists."""

    calls: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    @property
    def top(self) -> Path:
        return self.root / "sys/fs/cgroup"

    def namespace(self) -> int:
        return 4026531836

    def boot(self, **groups: list[int]) -> None:
        """Make groups with processes; ``_`` in a name stands for a level, ``_`` alone for the root."""
        mount = "36 32 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
        self._process("self", mount)
        self.top.mkdir(parents=True)
        (self.top / "cgroup.procs").write_text("")
        (self.top / "cgroup.subtree_control").write_text("cpu memory\n")
        (self.top / "cgroup.controllers").write_text("cpu memory\n")
        for name, processes in groups.items():
            path = self.top / name.strip("_").replace("_", "/")
            for level in reversed([path, *path.parents]):
                if level.is_relative_to(self.top) and not level.exists():
                    self.make(level)
            for one in processes:
                self._process(str(one), mount)
                (self.root / f"proc/{one}/stat").write_text(f"{one} (a) b) S {'0 ' * 18}{one}7 0\n")
                (self.root / f"proc/{one}/statm").write_text(f"99999 {HELD // PAGE} 7 1 0 9 0\n")
                self.put(one, path)

    def _process(self, name: str, mount: str) -> None:
        (self.root / f"proc/{name}").mkdir(parents=True)
        (self.root / f"proc/{name}/mountinfo").write_text(mount)

    def put(self, process: int, path: Path) -> None:
        for other in self.top.rglob("cgroup.procs"):
            inside = [one for one in other.read_text().split() if one != str(process)]
            if other.parent == path:
                inside.append(str(process))
            other.write_text("\n".join(inside))
        place = "/" + path.relative_to(self.top).as_posix().strip(".")
        (self.root / f"proc/{process}/cgroup").write_text(f"0::{place}\n")

    def passes_on(self, path: Path) -> bool:
        return "memory" in content(path / "cgroup.subtree_control")

    def _may(self, call: str) -> None:
        self.calls.append(call)
        if call in self.refused:
            raise OSError(errno.EACCES, "refused", call)

    def make(self, path: Path) -> None:
        self._may(f"make {path.relative_to(self.top)}")
        path.mkdir()
        for name in (
            "cgroup.procs",
            "cgroup.subtree_control",
            "cgroup.events",
            "cgroup.controllers",
        ):
            (path / name).write_text("")
        self._limit_files(path, self.passes_on(path.parent))

    def _limit_files(self, path: Path, there: bool) -> None:
        (path / "cgroup.controllers").write_text("cpu memory" if there else "cpu")
        for name in ("memory.max", "memory.swap.max"):
            if there:
                (path / name).write_text("max\n")
            else:
                (path / name).unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        self._may(f"remove {path.relative_to(self.top)}")
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "gone", str(path))
        if content(path / "cgroup.procs") or any(one.is_dir() for one in path.iterdir()):
            raise OSError(errno.EBUSY, "in use", str(path))
        shutil.rmtree(path)

    def write(self, path: Path, text: str) -> None:
        self._may(f"{path.relative_to(self.top)} {text}")
        group = path.parent
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        if path.name == "cgroup.procs":
            if self.passes_on(group) and group != self.top:
                raise OSError(errno.EBUSY, "passes controllers on", str(path))
            if not (self.root / f"proc/{text}").exists():
                raise ProcessLookupError(errno.ESRCH, "no such process", text)
            self.put(int(text), group)
        elif path.name == "cgroup.subtree_control":
            if text == "+memory" and content(group / "cgroup.procs") and group != self.top:
                raise OSError(errno.EBUSY, "has processes", str(path))
            path.write_text("memory" if text == "+memory" else "")
            for below in group.iterdir():
                if below.is_dir():
                    self._limit_files(below, text == "+memory")
        else:
            path.write_text(text)


ME, OTHER, CHILD = 101, 102, 103


@pytest.fixture
def kernel(tmp_path: Path) -> Simulated:
    return Simulated(tmp_path, ME)


def listing(kernel: Simulated) -> dict[str, str]:
    """Return the processes of every group, and which groups pass memory on."""
    found = {}
    for one in sorted(kernel.top.rglob("cgroup.procs")):
        group = one.parent.relative_to(kernel.top).as_posix()
        found[group] = " ".join(content(one).split()) + "+" * kernel.passes_on(one.parent)
    return found


NAME = f"{PREFIX}-4026531836-{ME}-{ME}7"


def test_alone_in_a_group_it_is_limited_below_it(kernel: Simulated) -> None:
    kernel.boot(job=[ME])
    before = listing(kernel)
    group = make_group(kernel)
    group.limit(5 * MIB)
    group.admit([ME])
    assert listing(kernel) == {".": "+", "job": "+", f"job/{NAME}": f"{ME}"}
    assert content(group.path / "memory.max") == f"{5 * MIB}"
    assert content(group.path / "memory.swap.max") == "0"
    assert group.limits_swap
    group.dissolve()
    assert listing(kernel) == before


def test_with_others_in_a_group_it_is_limited_beside_it(kernel: Simulated) -> None:
    kernel.boot(user=[], user_job=[ME, OTHER])
    kernel.write(kernel.top / "user/cgroup.subtree_control", "+memory")
    (kernel.top / "user/job/memory.max").write_text(f"{300 * MIB}\n")
    before = listing(kernel)
    group = make_group(kernel)
    group.limit(900 * MIB)
    group.admit([ME])
    assert listing(kernel)[f"user/{NAME}"] == f"{ME}"
    assert listing(kernel)["user/job"] == f"{OTHER}"
    assert content(group.path / "memory.max") == f"{300 * MIB}"  # that of its own group holds too
    group.dissolve()
    assert listing(kernel) == {**before, "user/job": f"{OTHER} {ME}"}


def test_in_the_root_it_is_limited_below_it(kernel: Simulated) -> None:
    kernel.boot(_=[ME, OTHER])
    group = make_group(kernel)
    group.admit([ME])
    assert listing(kernel) == {".": f"{OTHER}+", NAME: f"{ME}"}
    group.dissolve()
    assert listing(kernel) == {".": f"{OTHER} {ME}+"}


def test_a_root_that_passes_nothing_on_is_left_alone(kernel: Simulated) -> None:
    kernel.boot(_=[ME])
    (kernel.top / "cgroup.subtree_control").write_text("cpu")
    with pytest.raises(UnsupportedError, match="subtree_control"):
        make_group(kernel)
    assert listing(kernel) == {".": f"{ME}"}


def test_in_a_container_with_others_there_is_no_way(kernel: Simulated) -> None:
    kernel.boot(job=[ME, OTHER])
    before = listing(kernel)
    inside = ControlGroup(2, kernel.top / "job", kernel.top / "job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Simulated, "group_of", lambda self, process: inside)
        with pytest.raises(UnsupportedError, match="holds other processes too"):
            make_group(kernel)
    assert listing(kernel) == before


def test_a_group_without_the_memory_controller_is_no_way(kernel: Simulated) -> None:
    kernel.boot(a=[], a_job=[ME])
    with pytest.raises(UnsupportedError, match="no memory controller"):
        make_group(kernel)


def test_inside_the_limit_of_another_process_there_is_no_way(kernel: Simulated) -> None:
    kernel.boot(job=[OTHER])
    outer = make_group(Simulated(kernel.root, OTHER))
    outer.admit([OTHER])
    kernel._process(str(ME), content(kernel.root / "proc/self/mountinfo"))
    kernel.put(ME, outer.path)  # started by the other one
    before = listing(kernel)
    with pytest.raises(UnsupportedError, match="a limit of another process"):
        make_group(kernel)
    assert listing(kernel) == before


def test_processes_started_meanwhile_come_back_too(kernel: Simulated) -> None:
    kernel.boot(job=[ME], elsewhere=[OTHER])
    group = make_group(kernel)
    group.admit([ME, OTHER])
    kernel._process(str(CHILD), "")
    kernel.put(CHILD, group.path)
    group.dissolve()
    found = listing(kernel)
    assert found["elsewhere"] == f"{OTHER}"
    assert sorted(found["job"].split()) == [f"{ME}", f"{CHILD}"]


def test_a_worker_that_ends_meanwhile_is_forgotten(kernel: Simulated) -> None:
    kernel.boot(job=[ME], elsewhere=[OTHER])
    group = make_group(kernel)
    group.admit([ME, OTHER])
    shutil.rmtree(kernel.root / f"proc/{OTHER}")
    procs = group.path / "cgroup.procs"
    write = Simulated.write

    def ended(self: Simulated, path: Path, text: str) -> None:
        if text == str(OTHER):
            procs.write_text(f"{ME}" if str(ME) in procs.read_text() else "")
        write(self, path, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Simulated, "write", ended)
        group.dissolve()
    assert listing(kernel) == {".": "+", "elsewhere": "", "job": f"{ME}"}


@pytest.mark.parametrize("step", range(5))
def test_whatever_the_kernel_refuses_nothing_is_changed(tmp_path: Path, step: int) -> None:
    def attempt(refused: set[str], root: Path) -> tuple[Simulated, list[str], str]:
        kernel = Simulated(root, ME, [], refused)
        kernel.boot(job=[ME])
        kernel.calls.clear()
        before = listing(kernel)
        cage, message = Cage(kernel), ""
        try:
            cage.enter(1, 2**40, [])
        except UnsupportedError as error:
            message = str(error)
            assert listing(kernel) == before
        return kernel, list(kernel.calls), message

    _, calls, message = attempt(set(), tmp_path / "willing")
    assert not message
    assert len(calls) == 5  # make, enter, pass on, two limits
    _, _, message = attempt({calls[step]}, tmp_path / "refusing")
    assert "refused" in message


def test_groups_of_processes_that_are_gone_are_removed(kernel: Simulated) -> None:
    kernel.boot(job=[ME, OTHER])
    kernel.write(kernel.top / "cgroup.subtree_control", "+memory")
    names = {
        "gone": f"{PREFIX}-4026531836-555-1",
        "again": f"{PREFIX}-4026531836-{OTHER}-1",  # its number was given to another process
        "alive": f"{PREFIX}-4026531836-{OTHER}-{OTHER}7",
        "hidden": f"{PREFIX}-1-555-1",  # of another container
        "used": f"{PREFIX}-4026531836-556-1",
        "strange": f"{PREFIX}-mine",
    }
    for name in names.values():
        kernel.make(kernel.top / "job" / name)
    kernel.put(OTHER, kernel.top / "job" / names["used"])
    removed = remove_abandoned(kernel, [kernel.top / "job", kernel.top / "missing"])
    assert {one.name for one in removed} == {names["gone"], names["again"]}


# --- limits at once ------------------------------------------------------------------------------------


def limit_of(kernel: Simulated) -> int:
    found = [int(content(one)) for one in kernel.top.rglob(f"{PREFIX}-*/memory.max")]
    assert len(found) == 1
    return found[0]


def test_several_limits_mean_the_least_in_whatever_order_they_end(kernel: Simulated) -> None:
    kernel.boot(job=[ME])
    before, cage = listing(kernel), Cage(kernel)
    cage.enter(1, 2**40, [])
    assert limit_of(kernel) == 2**40 - HELD  # what it holds is charged elsewhere
    cage.enter(2, 2**39, [])
    cage.enter(3, 2**41, [])
    assert limit_of(kernel) == 2**39 - HELD
    cage.leave(1)
    assert limit_of(kernel) == 2**39 - HELD
    cage.leave(2)
    assert limit_of(kernel) == 2**41 - HELD
    cage.leave(2)
    cage.leave(3)
    assert listing(kernel) == before


def test_a_limit_that_the_kernel_refuses_leaves_the_others_as_they_were(kernel: Simulated) -> None:
    kernel.boot(job=[ME])
    before, cage = listing(kernel), Cage(kernel)
    cage.enter(1, 2**40, [])
    kernel.refused.add(f"job/{NAME}/memory.max {2**39 - HELD}")
    with pytest.raises(UnsupportedError, match="does not take the limit"):
        cage.enter(2, 2**39, [])
    assert limit_of(kernel) == 2**40 - HELD
    cage.leave(1)
    assert listing(kernel) == before


def test_a_process_that_cannot_go_back_is_limited_no_more(kernel: Simulated) -> None:
    kernel.boot(user=[], user_job=[ME, OTHER])
    kernel.write(kernel.top / "user/cgroup.subtree_control", "+memory")
    cage = Cage(kernel)
    cage.enter(1, 2**40, [])
    kernel.refused.add(f"user/job/cgroup.procs {ME}")
    with pytest.warns(EnforcementWarning, match="left behind"):
        cage.leave(1)
    group = kernel.top / "user" / NAME
    assert content(group / "memory.max") == content(group / "memory.swap.max") == "max"


def test_a_limit_below_what_is_held_is_refused(kernel: Simulated) -> None:
    kernel.boot(job=[ME])
    with pytest.raises(MemoryLimitError, match="held already"):
        Cage(kernel).enter(1, HELD, [])
    assert listing(kernel) == {".": "+", "job": f"{ME}"}


def test_a_system_without_groups_warns_and_goes_on(tmp_path: Path) -> None:
    with pytest.warns(EnforcementWarning, match="no memory control groups"):
        found = Enforcement(Cage(GroupFiles(tmp_path)), 2**40, [])
    with found:
        assert not found.active
        assert found.mechanism.startswith("none: this system shows no memory control groups")
        assert found.lowered_to(2**41) is found
    found.release()


def test_the_mechanism_is_named(kernel: Simulated) -> None:
    kernel.boot(job=[ME])
    with Enforcement(Cage(kernel), 2**40, []) as found:
        assert found.active
        assert str(found) == found.mechanism == f"cgroup v2: {kernel.top}/job/{NAME}"
        assert found.lowered_to(2**40) is found
        with found.lowered_to(2**39) as lower:
            assert limit_of(kernel) == lower.limit - HELD
        assert limit_of(kernel) == found.limit - HELD
        with pytest.raises(MemoryLimitError, match="is more than"):
            found.lowered_to(2**41)
    assert found.mechanism == "none: released"
    assert listing(kernel) == {".": "+", "job": f"{ME}"}


def test_one_that_is_forgotten_is_released(kernel: Simulated) -> None:
    kernel.boot(job=[ME])
    found = Enforcement(Cage(kernel), 2**40, [])
    assert len(listing(kernel)) == 3
    del found
    gc.collect()
    assert listing(kernel) == {".": "+", "job": f"{ME}"}


# --- the kernel itself ---------------------------------------------------------------------------------

# Loads what the work needs first, so that what follows is the work's own memory.
HOLD = """
import sys, featurestore.enforcement as e
from featurestore.limits import resident_bytes
def fill(mebibytes):
    block = bytearray(mebibytes * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    return block
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HOLD + code, *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Remove what killed processes left, as the next use would, and see that it is all."""
    yield
    own = own_group()
    assert own is not None
    remove_abandoned(GroupFiles(), [own.path, own.path.parent])
    left = [one for place in (own.path, own.path.parent) for one in place.glob(f"{PREFIX}-*")]
    mine = f"{PREFIX}-{GroupFiles().namespace()}-{os.getpid()}-"
    assert not [one for one in left if one.name.startswith(mine)]


@real
@pytest.mark.usefixtures("nothing_left")
def test_who_goes_beyond_it_is_killed() -> None:
    code = """
with e.enforced(resident_bytes() + 48 * 2**20) as kept:
    print(kept, flush=True)
    fill(16)
    print("within", flush=True)
    fill(96)
    print("beyond", flush=True)
"""
    done = run(code)
    assert done.returncode == -signal.SIGKILL, done.stderr
    mechanism, *said = done.stdout.splitlines()
    assert mechanism.startswith("cgroup v")
    assert said == ["within"]
    # The killed one left its group; the next use removes it.
    group = Path(mechanism.split(": ")[1].removesuffix(" (swap is not limited)"))
    with enforced("1TiB") as kept:
        assert kept.active
        assert not group.exists()


@real
@pytest.mark.usefixtures("nothing_left")
def test_who_stays_within_it_again_and_again_is_not() -> None:
    code = """
with e.enforced(resident_bytes() + 48 * 2**20):
    for _ in range(20):
        fill(16)
print("done")
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@real
@pytest.mark.usefixtures("nothing_left")
def test_pages_of_files_are_given_back_instead(tmp_path: Path) -> None:
    code = """
with e.enforced(resident_bytes() + 32 * 2**20):
    for number in range(4):
        with open(f"{sys.argv[1]}/{number}", "wb+") as file:
            for _ in range(32):
                file.write(bytes(2**20))
            file.seek(0)
            while file.read(2**20):
                pass
print("done")
"""
    done = run(code, str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@real
@pytest.mark.usefixtures("nothing_left")
def test_children_count_and_come_back_with_the_process() -> None:
    code = """
import subprocess
from featurestore.control_groups import own_group
before = own_group()
sleeper = [sys.executable, "-c", "import sys; sys.stdin.read()"]
with e.enforced(resident_bytes() + 64 * 2**20):
    child = subprocess.Popen(sleeper, stdin=subprocess.PIPE)
    inside = own_group()
    assert inside.path != before.path
    assert child.pid in inside.processes()
    beyond = subprocess.run([sys.executable, "-c", "bytearray(128 * 2**20).find(1)"]).returncode
assert own_group() == before and child.pid in before.processes()
assert not inside.path.exists()
child.communicate()
print(beyond)
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{-signal.SIGKILL}\n", "")


@real
@pytest.mark.usefixtures("nothing_left")
def test_the_process_comes_back_after_a_failure_and_at_its_end() -> None:
    before = own_group()

    def fail() -> None:
        with enforced("1TiB"):
            assert own_group() != before
            raise UnsupportedError("of another kind")

    with pytest.raises(UnsupportedError, match="another kind"):
        fail()
    assert own_group() == before
    done = run('kept = e.enforced("1TiB"); print(kept)')  # never released
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip().split(": ")[1]).exists()


@real
@pytest.mark.usefixtures("nothing_left")
def test_a_fork_does_not_let_its_parent_go() -> None:
    code = """
import os
kept = e.enforced("1TiB")
if os.fork() == 0:
    kept.release()
    os._exit(0)
os.wait()
print(kept.active)
from featurestore.control_groups import own_group
print(str(own_group().path) in str(kept))
"""
    done = run(code)
    assert done.stdout.split() == ["True", "True"], done.stderr


@real
@pytest.mark.usefixtures("nothing_left")
def test_a_store_holds_it_as_long_as_anything_of_it_is_used() -> None:
    import polars as pl

    before = own_group()
    store = fs.FeatureStore.create("memory://enforced", memory_limit="1TiB", enforce=True)
    assert store.enforcement.startswith("cgroup v")
    table = store.ingest("t", pl.DataFrame({"id": [1, 2], "x": [0.5, 1.5]}), key="id")
    lower = store.with_limit("512GiB")
    assert lower.enforcement == store.enforcement
    with pytest.raises(MemoryLimitError, match="is more than"):
        store.with_limit("2TiB")
    assert own_group() != before
    del store, lower
    gc.collect()
    assert own_group() != before
    assert table.read("x")["x"].to_list() == [0.5, 1.5]
    del table
    gc.collect()
    assert own_group() == before


@real
@pytest.mark.usefixtures("nothing_left")
def test_workers_on_this_host_are_in_it_and_come_back(tmp_path: Path) -> None:
    before = own_group()
    with loopback_client() as client:
        store = fs.FeatureStore.create(
            tmp_path / "store", memory_limit="1TiB", client=client, enforce=True
        )
        workers = set(client.run(os.getpid).values())
        assert len(workers) == 2
        inside = own_group()
        assert inside is not None
        assert inside != before
        assert workers | {os.getpid()} <= set(inside.processes())
        del store
        gc.collect()
        assert own_group() == before
        assert {own_group(process=one) for one in workers} == {before}
        assert not inside.path.exists()


def test_a_store_enforces_nothing_unasked() -> None:
    store = fs.FeatureStore.create("memory://unenforced")
    assert store.enforcement == "none: not asked for"
    assert store.with_limit("1GiB").enforcement == "none: not asked for"
    with pytest.raises(InvalidInputError, match="lots"):
        store.with_limit("lots")
