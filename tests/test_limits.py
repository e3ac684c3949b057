"""What a machine or container allows is found, also where its control groups are partly hidden or broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.control_groups import ControlGroup, own_group
from featurestore.limits import DEFAULT_SHARE, available_memory, memory_limit

MIB = 2**20
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V1 = "36 32 0:31 {shown} /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
V2 = "36 32 0:31 {shown} /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
)


class Machine:
    """The files of a system that is not this one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tell("proc/self/mountinfo", OTHERS)

    def tell(self, path: str, content: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)

    def version_1(self, inside: str, shown: str = "/", **limits: str) -> None:
        """A process in a group; ``limits`` are those of the groups, ``_`` for ``/``."""
        self.tell("proc/self/cgroup", f"9:name=systemd:/\n4:memory:{inside}\n1:cpu:/\n0::/\n")
        self.tell("proc/self/mountinfo", OTHERS + V1.format(shown=shown))
        for group, limit in limits.items():
            path = group.strip("_").replace("_", "/")
            self.tell(f"sys/fs/cgroup/memory/{path}/memory.limit_in_bytes", limit)

    def version_2(self, inside: str, shown: str = "/", **limits: str) -> None:
        self.tell("proc/self/cgroup", f"0::{inside}\n")
        self.tell("proc/self/mountinfo", OTHERS + V2.format(shown=shown))
        for group, limit in limits.items():
            path = group.strip("_").replace("_", "/")
            self.tell(f"sys/fs/cgroup/{path}/memory.max", limit)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_here_it_is_positive_and_no_more_than_the_machine_has() -> None:
    assert 0 < available_memory() <= MACHINE


def test_a_system_without_control_groups_allows_what_the_machine_has(machine: Machine) -> None:
    assert own_group(machine.root) is None
    assert available_memory(machine.root) == MACHINE


@pytest.mark.parametrize("version", ["version_1", "version_2"])
def test_the_limit_of_the_own_group_counts_not_that_of_the_top(
    machine: Machine, version: str
) -> None:
    getattr(machine, version)("/jobs/mine", _="max\n", jobs="max", jobs_mine=f"{300 * MIB}\n")
    machine.tell("sys/fs/cgroup/memory/jobs/other/memory.limit_in_bytes", "1")
    assert available_memory(machine.root) == 300 * MIB


@pytest.mark.parametrize("version", ["version_1", "version_2"])
def test_the_least_limit_on_the_way_up_counts(machine: Machine, version: str) -> None:
    limits = {"a": f"{700 * MIB}", "a_b": f"{100 * MIB}", "a_b_c": f"{400 * MIB}"}
    getattr(machine, version)("/a/b/c", **limits)
    assert available_memory(machine.root) == 100 * MIB


@pytest.mark.parametrize("version", ["version_1", "version_2"])
def test_limits_beyond_the_machine_are_none(machine: Machine, version: str) -> None:
    getattr(machine, version)("/a", a="9223372036854771712", _=str(2**70))
    assert available_memory(machine.root) == MACHINE


def test_what_slows_a_group_down_is_a_limit_too(machine: Machine) -> None:
    machine.version_2("/a", a=str(900 * MIB))
    machine.tell("sys/fs/cgroup/a/memory.high", str(600 * MIB))
    assert available_memory(machine.root) == 600 * MIB


@pytest.mark.parametrize("version", ["version_1", "version_2"])
@pytest.mark.parametrize(
    ("inside", "shown"),
    [
        ("/docker/0a1b", "/docker/0a1b"),  # the host's names, its own group as the top
        ("/", "/"),  # a namespace of its own
        ("/docker/0a1b", "/"),  # the host's name, but a namespace's mount
        ("/../../other", "/"),  # moved out of its namespace
        ("/kubepods/pod1/0a1b", "/kubepods/pod2"),  # a mount that shows something else
    ],
)
def test_a_container_that_shows_its_own_group_as_the_top(
    machine: Machine, version: str, inside: str, shown: str
) -> None:
    getattr(machine, version)(inside, shown, _=str(256 * MIB))
    assert available_memory(machine.root) == 256 * MIB


def test_below_the_top_that_a_container_shows(machine: Machine) -> None:
    machine.version_1("/docker/0a1b/job", "/docker/0a1b", _=str(256 * MIB), job=str(64 * MIB))
    assert available_memory(machine.root) == 64 * MIB


def test_version_1_counts_where_both_are_there(machine: Machine) -> None:
    machine.version_1("/mine", mine=str(128 * MIB))
    both = V1.format(shown="/") + V2.format(shown="/").replace("/sys/fs/cgroup ", "/unified ")
    machine.tell("proc/self/mountinfo", both)
    machine.tell("unified/memory.max", str(MIB))
    found = own_group(machine.root)
    assert found is not None
    assert found.version == 1
    assert available_memory(machine.root) == 128 * MIB


def test_a_mount_point_with_blanks(machine: Machine) -> None:
    machine.tell("proc/self/cgroup", "0::/a\n")
    machine.tell(
        "proc/self/mountinfo", V2.format(shown="/").replace("cgroup ", r"my\040groups ", 1)
    )
    machine.tell("sys/fs/my groups/a/memory.max", str(32 * MIB))
    assert available_memory(machine.root) == 32 * MIB


@pytest.mark.parametrize(
    "content", ["", "max", "-1", "0", "none", "12 MB", "１２３", "\x00", "1e9", "9" * 5000]
)
def test_a_file_that_says_no_limit_sets_none(machine: Machine, content: str) -> None:
    machine.version_2("/a", a=content, _=str(512 * MIB))
    assert available_memory(machine.root) == 512 * MIB


def test_a_limit_that_cannot_be_read_sets_none(machine: Machine) -> None:
    machine.version_2("/a", _=str(512 * MIB))
    (machine.root / "sys/fs/cgroup/a/memory.max").mkdir(parents=True)  # reading it is an error
    assert available_memory(machine.root) == 512 * MIB


@pytest.mark.parametrize(
    "groups", ["", "\n", "nonsense", ":::", "4:memory", "0::", "4:cpu:/\n", "\x00\xff", "0:memory"]
)
@pytest.mark.parametrize(
    "mounts",
    ["", "nonsense", "36 32 - cgroup2", "- cgroup2 a b", "1 2 3 4 5 -", V2.format(shown="?"), V1],
)
def test_broken_lists_set_no_limit(machine: Machine, groups: str, mounts: str) -> None:
    machine.tell("proc/self/cgroup", groups)
    machine.tell("proc/self/mountinfo", mounts)
    assert available_memory(machine.root) == MACHINE


def test_the_groups_above_and_the_processes_inside(machine: Machine) -> None:
    machine.version_1("/a/b", a_b="1")
    machine.tell("sys/fs/cgroup/memory/a/b/cgroup.procs", "12\n345\n")
    found = own_group(machine.root)
    assert found is not None
    assert found.processes() == [12, 345]
    top = machine.root / "sys/fs/cgroup/memory"
    assert list(found.lineage()) == [ControlGroup(1, top / one, top) for one in ("a/b", "a", "")]
    assert list(found.lineage())[1].processes() == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits of processes as Linux has them")
@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_process_itself_counts(kind: str) -> None:
    code = (
        "import resource; from featurestore.limits import available_memory; "
        f"resource.setrlimit(resource.{kind}, ({900 * MIB}, resource.RLIM_INFINITY)); "
        "print(available_memory())"
    )
    found = subprocess.check_output([sys.executable, "-c", code], timeout=60)
    assert int(found) == min(MACHINE, 900 * MIB)


def test_the_default_is_a_share_of_what_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEATURESTORE_MEMORY_LIMIT", raising=False)
    monkeypatch.delenv("FEATURESTORE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert memory_limit(None) == int(available_memory() * DEFAULT_SHARE)
    assert memory_limit("2GiB") == 2**31
