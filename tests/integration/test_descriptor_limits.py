"""Jobs with about as many descriptors as their user may have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.harness import wait_until
from tests.users import BIN, User

PROGRAM = """
import os, select, signal, sys
count = int(sys.argv[1])
pipes = [os.pipe() for _ in range(8)]
poll = select.epoll()
for number, (reader, _) in enumerate(pipes):
    poll.register(reader, select.EPOLLIN)
files = []
while len(os.listdir("/proc/self/fd")) <= count:
    files.append(os.open(f"file", os.O_RDWR | os.O_CREAT | (os.O_CLOEXEC if len(files) % 2 else 0)))
    os.lseek(files[-1], len(files), os.SEEK_SET)
for fd in files[::3]:  # a few lead to the same
    os.dup2(files[1], fd, inheritable=False)
seen = [(fd, os.lseek(fd, 0, os.SEEK_CUR), os.get_inheritable(fd)) for fd in files]
child = os.fork()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
open("ready" if child else "ready too", "w").close()
signal.sigwait({signal.SIGUSR1})
now = [(fd, os.lseek(fd, 0, os.SEEK_CUR), os.get_inheritable(fd)) for fd in files]
fault = "".join(f"{one} became {other}, " for one, other in zip(seen, now) if one != other)[:300]
if fault:
    open("fault", "w").write(fault)
if child:
    for number, (reader, writer) in enumerate(pipes):
        os.write(writer, b"x")
        if poll.poll(5) != [(reader, select.EPOLLIN)]:
            fault = f"the pipe {number} wakes nobody"
        os.read(reader, 1)
    os.kill(child, signal.SIGUSR1)
    fault = fault or os.waitpid(child, 0)[1]
    with open("draft", "w") as draft:
        draft.write(str(fault or "ok"))
    os.rename("draft", "verdict")
sys.exit(1 if fault else 0)
"""


OFTEN = [pytest.param(count, limit, marks=pytest.mark.soak) for count, limit in ((600, 1024), (3000, 3200))]


@pytest.mark.parametrize(("count", "limit"), [(900, 1024), *OFTEN])
def test_a_job_with_nearly_all_that_its_user_may_have(as_user: User, count: int, limit: int) -> None:
    job: subprocess.Popen[Any] = as_user.popen(
        [sys.executable, "-c", f"import resource; resource.setrlimit(7, ({limit}, {limit}))\n{PROGRAM}", str(count)],
        cwd=as_user.tmp, stdin=-3, stdout=-3, stderr=-3,
    )  # fmt: skip
    for name in ("ready", "ready too"):
        wait_until((as_user.tmp / name).exists, name)

    def torpor(*words: str) -> str:
        shell = ["/bin/sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", str(BIN / "torpor"), *words]
        done = as_user.run(shell)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    torpor("checkpoint", str(job.pid), "--then", "kill")
    assert job.wait(100) == -signal.SIGKILL
    pid = int(torpor("restore", "--detach", "latest"))
    os.kill(pid, signal.SIGUSR1)
    wait_until((as_user.tmp / "verdict").exists, "the verdict")
    faults = as_user.tmp / "fault"
    assert (as_user.tmp / "verdict").read_text() == "ok", faults.read_text() if faults.exists() else ""
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), "its end")
