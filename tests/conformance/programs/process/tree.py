"""A tree of processes: sessions, groups whose leader is a child or gone, an orphan, threads that fork, names.

Each process tells its own ids again after the restore, and each parent gets each child's exit status.
"""

import ctypes
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ready import HERE, expect, judge, ready_and_wait, same

PR_SET_CHILD_SUBREAPER = 36
WAKE = signal.SIGUSR1
ROOT = os.getpid()


def ids() -> tuple[int, ...]:
    return os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), threading.get_native_id()


def spawn(name: str, *steps: Callable[[], object]) -> int:
    """Fork a child that takes the steps, then waits to be woken and exits 40 + number of steps if content."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        return pid
    try:
        os.close(reading)
        signal.pthread_sigmask(signal.SIG_BLOCK, {WAKE})
        Path("/proc/self/comm").write_text(name)
        inner = [result for step in steps if isinstance(result := step(), list)]
        before = ids()
        if name == "orphan":  # its parent is about to end
            before = (before[0], ROOT, *before[2:])
        os.write(writing, b"!")
        os.close(writing)
        signal.sigwait({WAKE})
        content = ids() == before and Path("/proc/self/comm").read_text() == f"{name}\n"
        for pid in itertools.chain.from_iterable(inner):
            os.kill(pid, WAKE)
            content &= os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) >= 40
        if not content:
            (HERE / f"fault-{name}").write_text(f"{before} became {ids()}")
        os._exit(40 + len(steps) if content else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(2)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {WAKE})
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    children = {
        spawn("plain"): 40,
        spawn("session", os.setsid): 41,
        spawn("group", lambda: os.setpgid(0, 0)): 41,
        spawn("deep", lambda: [spawn("deeper", lambda: [spawn("deepest", lambda: [spawn("last")])])]): 41,
        spawn("nest", os.setsid, lambda: [spawn("own-group", lambda: os.setpgid(0, 0)), spawn("with-leader")]): 42,
        spawn("session-nest", lambda: [spawn("inner-session", os.setsid, lambda: [spawn("its-child")])]): 41,
    }
    # A group that is led by a sibling.
    leader = spawn("leader", lambda: os.setpgid(0, 0))
    children[leader] = 41
    children[spawn("follower", lambda: os.setpgid(0, leader))] = 41
    # A group whose leader is gone.
    gone = spawn("gone", lambda: os.setpgid(0, 0))
    children[spawn("left", lambda: os.setpgid(0, gone))] = 41
    os.kill(gone, WAKE)
    os.waitpid(gone, 0)
    # An orphan: its parent ended, and we are the reaper.
    reading, writing = os.pipe()
    between = os.fork()
    if not between:
        os.write(writing, str(spawn("orphan")).encode())
        os._exit(0)
    os.waitpid(between, 0)
    children[int(os.read(reading, 20))] = 40
    os.close(reading)
    os.close(writing)
    # A child of another thread than the first.
    made: list[int] = []
    maker = threading.Thread(target=lambda: made.append(spawn("of-a-thread")))
    maker.start()
    maker.join()
    children[made[0]] = 40
    before = ids()
    ready_and_wait()

    same(ids(), before, "the root's ids")
    expect(os.waitpid(-1, os.WNOHANG) == (0, 0), "a child has ended by itself")
    for pid, want in children.items():
        os.kill(pid, WAKE)
        got, status = os.waitpid(pid, 0)
        same((got, os.waitstatus_to_exitcode(status)), (pid, want), "child and its exit status")
    for fault in HERE.glob("fault-*"):
        expect(False, f"{fault.name}: {fault.read_text()}")


judge(main)
