"""Acting inside other processes: freeze, calls in their name, snapshots of their memory, and no trace of any of it."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.remote.targets import Start, appearance, caught, entered, run, start, tell
from torpor import procfs
from torpor.arch import x86_64
from torpor.arch.x86_64 import NR
from torpor.errors import CheckpointFailed, NotFound, NotPermitted
from torpor.remote import memory, ptrace
from torpor.remote.batch import ArgumentOf, Batch, Out, Result
from torpor.remote.code_stubs import STUBS, CodeStubs, VdsoStubs, without_stubs
from torpor.remote.freeze import Frozen, Stuck
from torpor.remote.injection import Injection
from torpor.remote.naming import not_permitted
from torpor.remote.snapshot import Snapshot
from torpor.remote.tracer import in_own_thread
from torpor.remote.waits import Waits
from torpor.util.ranges import intersection

__all__ = ["start"]

PAUSE = 34
"""pause(2), arch/x86/entry/syscalls/syscall_64.tbl."""

WAITS = "import sys\nprint('ready', flush=True)\n"


def test_calls_run_in_the_name_of_the_process(start: Start) -> None:
    target = start(WAITS + "sys.stdin.readline(); print('on')")
    before = appearance(target.pid)
    with entered(target.pid) as (injection, batch, _):
        pid = batch.add(NR.getpid)
        action = batch.add(NR.rt_sigaction, signal.SIGINT, 0, Out(32), 8)
        bad = batch.add(NR.close, 12345)
        replies = run(injection, batch, [])
        assert replies.result(pid) == target.pid
        assert struct.unpack("<4Q", replies.output(action, 2))[0] != 0  # Python catches SIGINT
        assert replies.result(bad) == -9  # EBADF
    assert appearance(target.pid) == before
    assert tell(target) == "on"


def test_results_become_arguments(start: Start) -> None:
    target = start(WAITS + "sys.stdin.readline(); print(len(__import__('os').listdir('/proc/self/fd')))")
    with entered(target.pid) as (injection, batch, _):
        made = batch.add(NR.eventfd2, 7, 0)
        content = batch.add(NR.read, Result(made), Out(8), 8)
        batch.add(NR.close, Result(made))
        failing = batch.add(NR.close, 999, on_error=len(batch) + 2)
        skipped = batch.add(NR.getpid)
        set_by = batch.add(NR.prctl, 37, ArgumentOf(len(batch) + 1, 1))  # PR_GET_CHILD_SUBREAPER
        batch.add(NR.prctl, 36, 1)  # PR_SET_CHILD_SUBREAPER: the 1 is replaced by what was got
        now = batch.add(NR.prctl, 37, Out(4))
        replies = run(injection, batch, [])
        assert replies.output(content, 1) == struct.pack("<Q", 7)
        assert replies.result(failing) == -9
        assert replies.result(skipped) < -4096  # was not reached
        assert replies.result(set_by) == 0
        assert replies.output(now, 1) == bytes(4)
    assert tell(target) == "4"  # the three, and the listing's own


@pytest.mark.parametrize("caught_signals", [(), (signal.SIGURG,), (signal.SIGURG, signal.SIGWINCH)])
def test_no_handler_runs(start: Start, caught_signals: tuple[int, ...]) -> None:
    target = start(
        "import signal, sys\nseen = []\n"
        f"for s in {list(map(int, caught_signals))}: signal.signal(s, lambda *a: seen.append(a))\n"
        "print('ready', flush=True)\nsys.stdin.readline(); print(seen)"
    )
    before = appearance(target.pid)
    for _ in range(3):
        with entered(target.pid, snapshot=True) as (injection, batch, snapshots):
            made = batch.add(NR.getpid)
            assert run(injection, batch, snapshots).result(made) == target.pid
            assert snapshots[0].pid
    assert appearance(target.pid) == before
    assert tell(target) == "[]"


def test_a_tracer_that_dies_as_the_calls_begin_leaves_no_signal_pending(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the thread blocks all signals, that by which a batch ends too."""
    target = start(
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        + WAITS
        + "sys.stdin.readline(); print(signal.sigpending())"
    )
    tracer = os.fork()
    if not tracer:
        try:
            with entered(target.pid) as (injection, batch, _):
                batch.add(NR.getpid)
                monkeypatch.setattr(ptrace, "set_sigmask", lambda *_: os._exit(0))
                injection.start({injection.host.tid: batch})
        finally:
            os._exit(1)
    assert os.waitpid(tracer, 0)[1] == 0
    assert tell(target) == "set()"


def test_a_snapshot_shows_the_memory_of_its_moment(start: Start) -> None:
    target = start(
        "import ctypes, sys\nbuffer = ctypes.create_string_buffer(b'then', 8192)\n"
        "print('ready', flush=True)\nprint(ctypes.addressof(buffer), flush=True)\n"
        "sys.stdin.readline(); buffer.value = b'now!'; print('written', flush=True)\nsys.stdin.readline()"
    )
    assert target.stdout is not None
    address = int(target.stdout.readline())
    with Frozen(target.pid, 5) as frozen:
        injection = Injection(frozen.processes[target.pid], CodeStubs(), caught(target.pid))
        injection.open(1 << 16)
        snapshot = Snapshot(injection)
        batch = Batch()
        snapshot.ask(batch)
        run(injection, batch, [snapshot])
        frozen.thaw()
        try:
            assert tell(target) == "written"
            assert memory.read(snapshot.pid, address, 4) == b"then"
            assert memory.read(target.pid, address, 4) == b"now!"
            ranges = memory.own_pages(snapshot.pid, [(0, x86_64.TASK_SIZE)])
            assert any(start <= address < end for start, end in ranges)
            assert procfs.children(target.pid, [target.pid]) == []
        finally:
            snapshot.end()
            assert snapshot.pid == 0


@pytest.mark.parametrize("failing", range(6))
def test_a_snapshot_that_is_lost_harms_nobody(start: Start, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    target = start(WAITS + "sys.stdin.readline(); print('on')")
    before = appearance(target.pid)
    requests: list[str] = []

    def refuse(name: str) -> None:
        """Let one request fail, counted from the first about a child."""
        if requests or name == "event_message":
            requests.append(name)
            if len(requests) == failing + 1:
                raise ProcessLookupError(errno.ESRCH, "killed by somebody")

    def refusing(name: str) -> Callable[..., int]:
        real = getattr(ptrace, name)

        def instead(*words: int) -> int:
            refuse(name)
            return int(real(*words))

        return instead

    for name in ("event_message", "request"):
        monkeypatch.setattr(ptrace, name, refusing(name))
    with Frozen(target.pid, 5) as frozen:
        injection = Injection(frozen.processes[target.pid], CodeStubs(), caught(target.pid))
        injection.open(1 << 16)
        snapshot = Snapshot(injection)
        batch = Batch()
        snapshot.ask(batch)
        injection.start({injection.host.tid: batch})
        injection.finish()
        assert len(requests) > failing
        with pytest.raises(CheckpointFailed, match="killed by somebody"):
            snapshot.settle()
        snapshot.end()
        injection.close()
    assert appearance(target.pid) == before
    assert tell(target) == "on"


def test_a_batch_that_fails_can_be_given_up(start: Start) -> None:
    target = start(WAITS + "sys.stdin.readline(); print('on')")
    before = appearance(target.pid)
    with entered(target.pid) as (injection, batch, _):
        batch.add(NR.getpid, stop=True)  # SIGTRAP, as if something unheard of came
        injection.start({injection.host.tid: batch})
        with pytest.raises(CheckpointFailed, match="SIGTRAP"):
            injection.finish()
        injection.recall()
        injection.close()
    assert appearance(target.pid) == before
    assert tell(target) == "on"


@pytest.mark.parametrize("failing", range(6))
def test_a_wait_that_fails_leaves_nothing_in_the_process(
    start: Start, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The batch goes on to its end: a process that it has made is attended, and what it has set is set back."""
    subreaper = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
    shown = "value = ctypes.c_int(); ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0); print(value.value)"
    target = start(f"{subreaper}{WAITS}sys.stdin.readline(); {shown}")
    before = appearance(target.pid)
    waits: list[int] = []
    kernels_own = ptrace.wait_surely

    def wait(tid: int) -> int:
        waits.append(tid)
        if len(waits) == failing + 1:
            raise OSError(errno.EMFILE, "too many open files")
        return kernels_own(tid)

    with entered(target.pid, snapshot=True) as (injection, batch, snapshots):
        monkeypatch.setattr(ptrace, "wait_surely", wait)
        with pytest.raises(CheckpointFailed, match="too many open files"):
            run(injection, batch, snapshots)
        injection.close()
    assert appearance(target.pid) == before
    assert tell(target) == "1"


def test_a_call_that_is_lost_sight_of_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop at a system call's exit clears the one that was asked for meanwhile."""
    target = start(WAITS + "sys.stdin.readline(); print('on')")
    before = appearance(target.pid)
    waits: list[int] = []
    kernels_own = ptrace.wait_surely

    def wait(tid: int) -> int:
        waits.append(tid)
        if len(waits) == 2:  # it sleeps in the call
            raise OSError(errno.EIO, "a fault of /proc")
        return kernels_own(tid)

    with entered(target.pid) as (injection, _, __):
        monkeypatch.setattr(ptrace, "wait_surely", wait)
        with pytest.raises(OSError, match="a fault of /proc"):
            injection._call_on_stack(PAUSE)
        injection.close()
    assert appearance(target.pid) == before
    assert tell(target) == "on"


def test_an_end_between_two_looks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["true"])
    looks = []

    def poll(tid: int) -> int | None:
        looks.append(tid)
        if len(looks) < ptrace._LOOK_EVERY * 4:
            return None
        return kernels_own(tid)

    def has_ended(tid: int) -> bool:
        os.waitid(os.P_PID, tid, os.WEXITED | os.WNOWAIT)
        looks.extend([tid] * ptrace._LOOK_EVERY * 4)
        return True

    kernels_own = ptrace.poll
    monkeypatch.setattr(ptrace, "poll", poll)
    monkeypatch.setattr(ptrace, "has_ended", has_ended)
    assert ptrace.wait_surely(child.pid) == 0
    child.returncode = 0  # it was reaped here


def test_own_pages_are_those_of_pagemap(start: Start) -> None:
    target = start(  # 0x4000 is MAP_NORESERVE
        "import mmap, sys\nvast = mmap.mmap(-1, 16 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\n"
        "for page in (0, 5 << 18, (9 << 18) - 1, (16 << 18) - 1): vast[page << 12] = 1\n"
        "print('ready', flush=True)\nsys.stdin.readline()"
    )
    wanted = [(m.start, m.end) for m in procfs.mappings(target.pid) if not m.shared and not m.name.startswith(b"[v")]
    scanned = memory.own_pages(target.pid, wanted)
    assert scanned
    fd = os.open(f"/proc/{target.pid}/pagemap", os.O_RDONLY)
    try:
        plain = memory._walk_pagemap(fd, wanted)  # last: until it waits, the program touches more and more
    finally:
        os.close(fd)
    for start_, end in scanned:  # the walk also gives zero pages, which nobody wrote
        assert any(a <= start_ and end <= b for a, b in plain)
    vast = next((start_, end) for start_, end in wanted if end - start_ >= 16 << 30)
    for found in (scanned, plain):
        assert sum(end - start_ for start_, end in intersection(found, [vast])) < 1 << 20
        assert sum(vast[0] <= start_ and end <= vast[1] for start_, end in found) >= 3


def test_a_kernel_without_pagemap_scan_tells_less_and_fails_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = start(WAITS + "sys.stdin.readline()")
    private = [m for m in procfs.mappings(target.pid) if not m.shared and not m.name.startswith(b"[v")]
    wanted, backed = [(m.start, m.end) for m in private], [(m.start, m.end) for m in private if m.inode]
    scanned = memory.own_pages(target.pid, wanted, backed)

    def lack(*_: object) -> None:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(memory, "syscall", lack)
    walked = memory.own_pages(target.pid, wanted, backed)
    assert all(any(a <= begin and end <= b for a, b in walked) for begin, end in scanned)
    assert not memory.dropped_pages(target.pid, backed)
    assert not memory.guard_pages(target.pid, wanted)
    with memory.PageMap(target.pid) as pages:
        assert not pages.is_watched(wanted[0][0])
        assert pages.written(*wanted[0], again=False) is None


def test_a_stack_at_its_deepest_is_grown(start: Start) -> None:
    target = start(
        "import sys, threading\nsys.setrecursionlimit(10**6)\n"
        "def down(n):\n"
        "    if n: return sorted([0], key=lambda _: down(n - 1))\n"
        "    print('ready', flush=True); sys.stdin.readline(); print('back')\n"
        "down(1500)"
    )
    for _ in range(2):
        with entered(target.pid) as (injection, batch, _):
            made = batch.add(NR.getpid)
            assert run(injection, batch, []).result(made) == target.pid
    assert tell(target) == "back"


def test_refusals_name_the_process(start: Start) -> None:
    with pytest.raises(NotFound, match="no process 4194303"), Frozen(4194303, 1):
        pass
    target = start(WAITS + "sys.stdin.readline(); print('on')")
    with Frozen(target.pid, 5):
        inner = subprocess.run(
            [sys.executable, "-c", f"from torpor.remote.freeze import Frozen; Frozen({target.pid}, 1)"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "already traced" not in str(not_permitted(target.pid))  # nobody is to end ourselves
    assert "already traced by" in inner.stderr
    assert NotPermitted.__name__ in inner.stderr
    assert tell(target) == "on"


def test_a_process_without_code_to_return_with_is_refused() -> None:
    assert CodeStubs().find(os.getpid(), []) is None
    with pytest.raises(CheckpointFailed, match="rt_sigreturn"):
        VdsoStubs(os.getpid(), [])


def test_what_is_lent_in_the_vdso_is_taken_away() -> None:
    code = bytes(range(1, 101)).ljust(4096, b"\0")
    assert without_stubs(code) == code
    for lent in (STUBS, STUBS[:8] + bytes(8), bytes(8) + STUBS[8:]):
        assert without_stubs(code[: -len(STUBS)] + lent) == code
    assert without_stubs(code[:-1] + b"\1") != code


STUCK = """
#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
	struct clone_args args = {.flags = CLONE_VFORK, .exit_signal = SIGCHLD};
	if (!syscall(SYS_clone3, &args, sizeof args))
		for (;;)
			pause();
	return 0;
}
"""


def test_nobody_waits_frozen_for_a_thread_that_nothing_can_stop(tmp_path: Path) -> None:
    (tmp_path / "stuck.c").write_text(STUCK)
    subprocess.run(["gcc", "-o", tmp_path / "stuck", tmp_path / "stuck.c"], check=True)
    with subprocess.Popen([tmp_path / "stuck"]) as target:
        while procfs.stat(target.pid).state != "D":
            assert target.poll() is None

        def freeze(_: object) -> None:
            with pytest.raises(Stuck, match="uninterruptible"), Frozen(target.pid, 600):
                pass

        try:
            in_own_thread(freeze)  # whose end lets go of the thread, and comes a moment after it was waited for
            while procfs.status(procfs.read(f"/proc/{target.pid}/status"))[b"TracerPid"] != b"0":
                pass
        finally:
            (child,) = procfs.children(target.pid, [target.pid])
            os.kill(child, signal.SIGKILL)
        assert target.wait() == 0


def test_a_stopped_process_stays_stopped(start: Start) -> None:
    target = start(WAITS + "sys.stdin.readline(); print('on')")
    os.kill(target.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, target.pid, os.WSTOPPED)
    with entered(target.pid) as (injection, batch, _):
        assert injection.host.stop_signal == signal.SIGSTOP
        made = batch.add(NR.getpid)
        assert run(injection, batch, []).result(made) == target.pid
    deadline = time.monotonic() + 5
    while procfs.stat(target.pid).state != "T":  # let go, it takes a moment to stop again
        assert time.monotonic() < deadline
    os.kill(target.pid, signal.SIGCONT)
    assert tell(target) == "on"


@pytest.mark.parametrize(("module", "call"), [(ptrace, "get_sigmask"), (memory, "read"), (ptrace, "get_registers")])
def test_a_freeze_that_fails_takes_no_mask_away(
    start: Start, monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: str
) -> None:
    program = f"import signal; signal.pthread_sigmask(0, [{signal.SIGUSR1}]); {WAITS}sys.stdin.readline(); print('on')"
    target = start(program)
    blocked = procfs.status(procfs.read(f"/proc/{target.pid}/status"))[b"SigBlk"]
    assert int(blocked, 16) == 1 << (signal.SIGUSR1 - 1)

    def fails(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(module, call, fails)
    monkeypatch.setattr("torpor.remote.freeze.was_restarted", lambda _: True)
    with pytest.raises(OSError, match="Cannot allocate"):
        in_own_thread(lambda _: Frozen(target.pid, 5))
    os.kill(target.pid, signal.SIGUSR1)
    assert tell(target) == "on"
    assert procfs.status(procfs.read(f"/proc/{target.pid}/status"))[b"SigBlk"] == blocked


def test_how_long_a_thread_has_waited(start: Start) -> None:
    began = time.monotonic_ns()
    target = start(WAITS + "import select; select.poll().poll(60_000)")
    while procfs.read(f"/proc/{target.pid}/syscall").split()[0] != str(int(NR.poll)).encode():
        assert time.monotonic_ns() < began + 5 * 10**9
    asleep = time.monotonic_ns()
    time.sleep(0.3)  # what is measured
    waits = Waits()
    waits.look([(target.pid, target.pid)])
    with Frozen(target.pid, 5) as frozen:
        stopped = frozen.processes[target.pid].threads[target.pid].stopped_ns
        waited = waits.waited(target.pid, target.pid, stopped)
    assert waited is not None
    assert stopped - asleep - 50_000_000 < waited < stopped - began + 50_000_000
