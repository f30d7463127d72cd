"""Which way a wake goes, and why not another one."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from torpor.errors import RestoreRefused
from torpor.image import image_pb2 as pb
from torpor.objects.process import keyrings
from torpor.objects.process.birth_order import MAX_PID
from torpor.probe import Probe, probe
from torpor.procfs import read
from torpor.remote import pid_allocation
from torpor.remote.children import forked, sleep_with
from torpor.remote.pid_allocation import Numbers, Pace
from torpor.restorer import id_maps, surroundings
from torpor.restorer.capsule import Namespaces, Setting
from torpor.restorer.id_maps import Mapped

LOW = next(pid for pid in range(pid_allocation.FIRST - 1, 1, -1) if not pid_allocation.is_taken(pid))


def job(pid: int, sid: int = 0, pgid: int = 0) -> pb.Tree:
    image = pb.Tree()
    image.host.boot_id = read("/proc/sys/kernel/random/boot_id").strip().decode()
    image.processes.add(pid=pid, ppid=0, sid=sid or pid, pgid=pgid or sid or pid).threads.add(tid=pid)
    return image


def free_pid() -> int:
    return next(
        pid
        for pid in range(pid_allocation.here().end - 1, pid_allocation.FIRST, -1)
        if not pid_allocation.is_taken(pid)
    )


def of_user(*groups: int) -> Probe:
    """What a user may do who may not choose PIDs."""
    return replace(probe(), can_choose_pids=False, set_mm_map=True, groups=groups)


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A user who may not choose PIDs, in another group, on a host where a walk is quick."""
    host = of_user(27)
    monkeypatch.setattr(surroundings, "probe", lambda: host)
    monkeypatch.setattr(pid_allocation, "pace", lambda: Pace(1e9, 1))
    monkeypatch.setattr(id_maps, "wanted", dict)
    return monkeypatch


@pytest.mark.parametrize(
    ("pid", "words"),
    [
        (LOW, f"the kernel never gives the PID {LOW} again: PIDs below 300 are given only once after the boot"),
        (30_000, "no process can have the PID 30000 here: kernel.pid_max is 30000"),
        (os.getpid(), f"another process, thread or process group has the PID {os.getpid()}"),
    ],
    ids=["given once", "above pid_max", "taken"],
)
def test_no_walk_leads_there(ordinary: pytest.MonkeyPatch, pid: int, words: str) -> None:
    image = job(pid)
    ordinary.setattr(pid_allocation, "here", lambda: Numbers(300, 30_000))
    with pytest.raises(RestoreRefused) as refused:
        surroundings.setting(image, way="native")
    assert words in str(refused.value)
    assert "--as=capsule" in str(refused.value)
    assert surroundings.setting(image).capsule


@pytest.fixture
def zombie() -> Iterator[subprocess.Popen[bytes]]:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    yield ended
    ended.wait()


def test_what_was_killed_just_now_is_waited_for(ordinary: pytest.MonkeyPatch, zombie: subprocess.Popen[bytes]) -> None:
    """An orphan has its PID until init has waited for it, which that of some containers does every 2 s only."""
    ordinary.setattr(pid_allocation, "here", lambda: Numbers(1, MAX_PID))  # PIDs of a young namespace do, too
    ordinary.setattr(time, "sleep", lambda _: zombie.wait())
    assert surroundings.setting(job(zombie.pid), way="native").walk


def test_a_zombie_is_not_waited_for_without_end(ordinary: pytest.MonkeyPatch, zombie: subprocess.Popen[bytes]) -> None:
    ordinary.setattr(pid_allocation, "here", lambda: Numbers(1, MAX_PID))
    ordinary.setattr(pid_allocation, "_REAPED_SECONDS", 0.0)
    says = f"a zombie has the PID {zombie.pid} until its parent, process {os.getpid()}, waits for it"
    with pytest.raises(RestoreRefused, match=says):
        surroundings.setting(job(zombie.pid), way="native")
    assert surroundings.setting(job(zombie.pid)).capsule


def test_a_walk_without_namespaces_executes_the_programs(ordinary: pytest.MonkeyPatch) -> None:
    host = replace(probe(), can_choose_pids=False, user_namespaces=False, set_mm_map=False, lay_out_memory=True)
    for lesser, executes in ((replace(host, user_namespaces=True, set_mm_map=True), False), (host, True)):
        ordinary.setattr(surroundings, "probe", lambda lesser=lesser: lesser)
        where = surroundings.setting(job(free_pid()), way="native")
        assert where.walk and surroundings.here(where).executes == executes
    nothing = replace(host, lay_out_memory=False, why={"lay_out_memory": "prctl PR_SET_MM_MAP: Invalid argument"})
    ordinary.setattr(surroundings, "probe", lambda: nothing)
    with pytest.raises(RestoreRefused, match=r"PR_SET_MM_MAP: Invalid argument"):
        surroundings.setting(job(free_pid()), way="native")


@pytest.mark.parametrize("ahead", [True, False])
def test_clocks_of_another_boot_where_no_namespace_can_be_made(ordinary: pytest.MonkeyPatch, ahead: bool) -> None:
    """Ahead of the job's they are as after a suspension; they never go back."""
    host = replace(probe(), can_choose_pids=False, user_namespaces=False, set_mm_map=False, lay_out_memory=True)
    ordinary.setattr(surroundings, "probe", lambda: replace(host, why={"user_namespaces": "no namespaces"}))
    ordinary.setattr(surroundings, "CAP_SYS_ADMIN", 63)  # which nobody has
    image, later = job(free_pid()), 0 if ahead else 1 << 61
    image.host.boot_id = "another"
    image.host.monotonic_ns = image.host.boottime_ns = later
    if ahead:
        where = surroundings.setting(image)
        assert where.jump_ns > 0 and not where.namespaces and where.walk
        assert any("CLOCK_MONOTONIC has gone on by" in words for words in surroundings.warnings(where, None))
    else:
        with pytest.raises(RestoreRefused, match="this host has not been up for as long"):
            surroundings.setting(image)


def test_a_host_where_nobody_can_walk(ordinary: pytest.MonkeyPatch) -> None:
    def nowhere() -> Pace:
        raise BlockingIOError(11, os.strerror(11))

    ordinary.setattr(pid_allocation, "pace", nowhere)
    with pytest.raises(RestoreRefused, match=os.strerror(11)):
        surroundings.setting(job(free_pid()), way="native")
    assert surroundings.setting(job(free_pid())).capsule


def test_unasked_a_walk_is_short_and_for_the_sake_of_groups(ordinary: pytest.MonkeyPatch) -> None:
    pid = free_pid()
    near = surroundings.setting(job(pid))
    assert near.walk
    assert not near.capsule
    assert 0 < near.walk.length <= pid_allocation.here().end
    ordinary.setattr(pid_allocation, "pace", lambda: Pace(0.01, 1))
    far = surroundings.setting(job(pid))
    assert far.capsule
    assert far.walk is None
    assert surroundings.setting(job(pid), way="native").walk
    ordinary.setattr(pid_allocation, "pace", lambda: Pace(1e9, 1))
    alone = of_user()
    ordinary.setattr(surroundings, "probe", lambda: alone)
    assert surroundings.setting(job(pid)).capsule


@pytest.mark.parametrize(("gids", "capsule"), [((range(27, 28),), True), ((range(20, 24),), False), (None, False)])
def test_for_groups_that_a_capsule_has_no_walk_is_gone(
    ordinary: pytest.MonkeyPatch, gids: tuple[range, ...] | None, capsule: bool
) -> None:
    """Which it has is found out by making one: lines in a file are no promise."""
    ordinary.setattr(id_maps, "wanted", lambda: {"gid": [range(27, 28)]})
    ordinary.setattr(surroundings, "tried_ids", lambda: gids and Mapped((range(1),), gids))
    assert surroundings.setting(job(free_pid())).capsule == capsule
    assert surroundings.setting(job(free_pid()), way="native").walk


def test_nobody_waits_for_a_walk_that_is_not_gone(ordinary: pytest.MonkeyPatch) -> None:
    """Not while a tree still lives, nor for who has no other groups: the pace is not measured."""

    def measured() -> Pace:
        raise AssertionError

    ordinary.setattr(pid_allocation, "pace", measured)
    pid = free_pid()
    assert surroundings.setting(job(pid), standing={pid}).capsule
    alone = of_user()
    ordinary.setattr(surroundings, "probe", lambda: alone)
    assert surroundings.setting(job(pid)).capsule


def test_who_may_choose_does_not_walk(ordinary: pytest.MonkeyPatch) -> None:
    ordinary.setattr(surroundings, "probe", lambda: replace(probe(), can_choose_pids=True))
    found = surroundings.setting(job(free_pid()))
    assert (found.walk, found.namespaces) == (None, Namespaces(0))


@pytest.fixture
def leader() -> Iterator[int]:
    """A process that leads a session."""
    reader, writer = os.pipe()
    parent = os.getpid()

    def lead() -> None:
        os.setsid()
        os.write(writer, b"1")
        sleep_with(parent)

    pid = forked(lead)
    os.read(reader, 1)
    yield pid
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def test_a_session_that_lives_on_is_joined(ordinary: pytest.MonkeyPatch, leader: int) -> None:
    """Another's if it is asked for, which is said; one's own in any case."""
    image = job(free_pid(), leader)
    assert surroundings.setting(image).capsule
    asked = surroundings.setting(image, way="native")
    assert asked.joined == {leader}
    assert "it is in your session now" in next(surroundings.warnings(asked, None))
    ordinary.setattr(os, "getsid", lambda _: leader)
    ordinary.setattr(os, "getpgrp", lambda: leader)
    found = surroundings.setting(image)
    assert found.joined == {leader}
    assert not found.capsule
    assert not [*surroundings.warnings(found, None)]


def test_a_session_with_a_terminal_is_not_joined(ordinary: pytest.MonkeyPatch, leader: int) -> None:
    image = job(free_pid(), leader)
    image.sessions.add(sid=leader, terminal=0)
    ordinary.setattr(os, "getsid", lambda _: leader)
    assert surroundings.setting(image).capsule


def test_groups_that_do_not_exist_in_a_capsule_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getegid()
    host = replace(probe(), groups=(99_001, 99_002))
    monkeypatch.setattr(surroundings, "probe", lambda: host)
    monkeypatch.setattr(keyrings, "keys_of_user", lambda: 0)
    where = Setting(Namespaces.USER | Namespaces.PID)

    def said(*gids: int, why: str = "") -> list[str]:
        return [*surroundings.warnings(where, Mapped((), tuple(range(gid, gid + 1) for gid in gids), why))]

    begin = "it is in a capsule, where it cannot give files to your groups"
    assert said(own) == [f"{begin} 99001, 99002: cp -a and sed -i lose them"]
    assert said(99_001, own, why="a reason") == [f"{begin} 99002: cp -a and sed -i lose them (a reason)"]
    assert said(99_001, 99_002, own, why="of other ids") == []
    assert [*surroundings.warnings(Setting(Namespaces(0)), None)] == []
