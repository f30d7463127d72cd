"""A woken job has nothing of who wakes it but what cannot be taken back, which is said."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from typing import Any

import pytest

from tests.conformance.harness import PATIENCE, wait_until
from tests.users import BIN, User

TORPOR = str(BIN / "torpor")

# Tells twice what a process inherits: at once, and when it is woken.
JOB = """
import ctypes, os, resource, signal, time
libc = ctypes.CDLL(None)
for name in ("NPROC", "SIGPENDING", "MSGQUEUE", "MEMLOCK"):  # may have more than who wakes it usually has
    number = getattr(resource, f"RLIMIT_{name}")
    resource.setrlimit(number, resource.getrlimit(number)[1:] * 2)
def number(call, *args):
    return call(*map(ctypes.c_long, (*args, 0, 0, 0, 0)[:6]))
def inherited():
    # Timer slack, huge pages, memory failures; I/O priority; policy of memory.
    yield [number(libc.prctl, option) for option in (30, 42, 34)], number(libc.syscall, 252, 1), os.nice(0)
    policy = ctypes.c_int(-1)
    libc.syscall(239, ctypes.byref(policy), None, 0, 0, 0)
    slice = (ctypes.c_uint64 * 7)()  # struct sched_attr, with the time slice in the middle
    number(libc.syscall, 315, 0, ctypes.addressof(slice), 56)
    yield policy.value, slice[3], os.sched_getscheduler(0), open("/proc/self/personality").read(), os.getcwd()
    yield open("/proc/self/coredump_filter").read(), open("/proc/self/oom_score_adj").read()
    yield [line for line in open("/proc/self/status") if line.startswith(("SigB", "SigI", "SigC", "Umask"))]
    yield open("/proc/self/limits").read(), sorted(os.environ), open("/proc/sys/kernel/pid_max").read()
    yield "children, queued signals:", *uses()
def uses():
    children = []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            signal.pause()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    yield len(children)
    queued = {signal.SIGRTMIN + 2}
    signal.pthread_sigmask(signal.SIG_BLOCK, queued)
    yield sum(number(libc.sigqueue, os.getpid(), signal.SIGRTMIN + 2, 0) == 0 for _ in range(20))
    while signal.sigtimedwait(queued, 0):
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, queued)
def tell(name):
    with open(f"{name}.new", "w") as file:
        print(*inherited(), sep="\\n", file=file)
    os.rename(f"{name}.new", name)
tell("before")
while not os.path.exists("go"):
    time.sleep(0.01)
tell("after")
"""
# Changes all of that, and becomes its arguments.
LENDS = """
import ctypes, os, resource, signal, sys
libc = ctypes.CDLL(None)
for call in ((29, 999999), (41, 1), (33, 1, 1)):
    libc.prctl(*map(ctypes.c_long, (*call, 0, 0, 0)[:5]))
libc.syscall(251, 1, 0, 3 << 13)
libc.syscall(238, 1, ctypes.byref(ctypes.c_long(1)), ctypes.c_long(64))
slice = (ctypes.c_uint64 * 7)(56, 0, 0, 7_000_000)  # SCHED_OTHER, for 7 ms at a time
libc.syscall(314, 0, slice, 0)
libc.personality(ctypes.c_ulong(0x0040000))
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.umask(0o77)
few = {"NPROC": 1, "SIGPENDING": 8, "MSGQUEUE": 0, "MEMLOCK": 0}
for name, value in {"STACK": 1 << 20, "NOFILE": 99, "CPU": 1000, **few}.items():
    number = getattr(resource, f"RLIMIT_{name}")
    resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
open("/proc/self/coredump_filter", "w").write("0")
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
for number in (32, 33):  # the C library's own, which posix_spawn() ignores in what it starts
    assert libc.syscall(13, number, (ctypes.c_ulong * 4)(1, 0, 0, 0), None, ctypes.c_long(8)) == 0
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGALRM])
os.environ["LENT"] = "1"
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Denies itself and what it becomes memory that is writable and executable (PR_SET_MDWE).
DENIES = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


def _asleep(user: User) -> None:
    """A job that was saved and killed."""
    command = [TORPOR, "run", "--", str(BIN / "python"), "-c", JOB]
    nothing: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = user.popen(command, env={"PYTHONPATH": "/nonexistent"}, **nothing)
    try:
        wait_until((user.tmp / "before").exists, "it runs")
        launcher = str(process.pid)
        # Who saves a job may be as odd as who wakes it.
        user.run([BIN / "python", "-c", LENDS, TORPOR, "checkpoint", launcher, "--then", "kill"], check=True)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    (user.tmp / "go").touch()


def test_nothing_is_inherited_from_who_wakes_a_job(as_user: User) -> None:
    _asleep(as_user)
    restore = [TORPOR, "restore", "latest", "--as", "native" if as_user.is_root else "capsule"]
    done = as_user.run([BIN / "python", "-c", LENDS, *restore], cwd="/", check=True)
    assert (as_user.tmp / "after").read_text() == (as_user.tmp / "before").read_text()
    assert done.stderr == ""


@pytest.mark.parametrize("way", ["native", "capsule"])
def test_that_setuid_programs_give_no_rights_any_more_is_said(root_account: User, way: str) -> None:
    _asleep(root_account)
    restore = [TORPOR, "restore", "latest", "--as", way]
    done = root_account.run(["setpriv", "--no-new-privs", *restore], check=True)
    assert "setuid programs give it no rights: the process that wakes it has no_new_privs" in done.stderr


@pytest.mark.skipif(ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0, reason="no PR_SET_MDWE before Linux 6.3")
def test_who_may_have_no_code_of_its_own_wakes_nothing(as_user: User) -> None:
    _asleep(as_user)
    done = as_user.run([BIN / "python", "-c", DENIES, TORPOR, "restore", "latest"])
    assert done.returncode == 10
    assert "this process: it may not have memory that is writable and executable (prctl PR_SET_MDWE)" in done.stderr


def test_a_limit_that_is_enough_for_the_command_alone(as_user: User) -> None:
    """Of Torpor's own processes it must not be; the command has it."""
    command = [TORPOR, "run", "--", "sh", "-c", "exec grep processes /proc/self/limits"]
    told = as_user.run(["prlimit", "--nproc=1:99", *command], check=True).stdout
    assert told.split()[2:4] == ["1", "99"]
