"""At a limit of processes (ulimit -u) a job is saved and woken all the same, or the error says so."""

from __future__ import annotations

import subprocess
import sys

from tests.users import BIN, User

JOB = """
import resource, sys
def limit():
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
if sys.argv[1] == "limited":
    limit()
memory = bytearray(b"m" * (1 << 20))
print("ready", flush=True)
for _ in sys.stdin:
    print(memory.count(b"m"), flush=True)
"""
SAVE = """
import resource, sys, torpor
if sys.argv[2] == "limited":
    resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
with torpor.Series() as series:
    for _ in range(2):
        info = torpor.checkpoint(int(sys.argv[1]), store="store", series=series)
        print("; ".join(info.notices))
resource.setrlimit(resource.RLIMIT_NPROC, (resource.getrlimit(resource.RLIMIT_NPROC)[1],) * 2)
assert not torpor.Store("store").verify()
"""


def saved(user: User, *, job: bool, saver: bool) -> list[str]:
    """What two checkpoints told of a job, which runs on; it or who saves it may not have another process or thread."""
    limited = ["limited" if one else "free" for one in (job, saver)]
    process = user.popen(
        [sys.executable, "-c", JOB, limited[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        done = user.run([BIN / "python", "-c", SAVE, str(process.pid), limited[1]])
        assert done.returncode == 0, done.stderr
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{1 << 20}\n"
    finally:
        process.kill()
        process.communicate()
    return done.stdout.splitlines()


def test_a_job_that_may_not_fork_stands_still(ordinary_account: User) -> None:
    for told in saved(ordinary_account, job=True, saver=False):
        assert told.startswith("it stayed frozen until its snapshot was written: the kernel refused to fork it")


def test_who_saves_needs_no_threads(ordinary_account: User) -> None:
    assert saved(ordinary_account, job=False, saver=True) == ["", ""]
