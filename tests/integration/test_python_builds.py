"""Torpor in a Python that was built against old headers, as conda and uv bring them."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

from tests.conformance.harness import wait_until
from tests.lean import LEAN
from tests.users import BIN, User

TORPOR = f"{LEAN}from torpor.cli import main; main()"
JOB = f"""
import mmap, os, signal, socket, tempfile
memory, shared, gone = os.memfd_create("x"), mmap.mmap(-1, 4096), tempfile.TemporaryFile()
os.write(memory, b"memory"); gone.write(b"gone"); gone.flush(); shared[:6] = b"shared"
pidfd, (one, other) = os.pidfd_open(os.getpid()), socket.socketpair()
one.send(b"sent")
signal.pthread_sigmask(signal.SIG_BLOCK, {{{signal.SIGUSR1:d}}})
open("ready", "x").close()
signal.sigwait({{{signal.SIGUSR1:d}}})
os.lseek(memory, 0, 0); gone.seek(0)
told = [os.read(memory, 9), gone.read(), shared[:6], other.recv(9)]
signal.pidfd_send_signal(pidfd, 0)
with open("told.new", "w") as file:
    print(told, file=file)
os.rename("told.new", "told")
"""


def test_it_saves_and_wakes(as_user: User) -> None:
    def torpor(*words: str) -> str:
        return as_user.run([BIN / "python", "-c", TORPOR, *words], check=True).stdout.strip()

    assert "checkpoint" in torpor("doctor", "--json")
    nothing: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = as_user.popen([BIN / "python", "-c", JOB], **nothing)
    try:
        wait_until((as_user.tmp / "ready").exists, "it holds all of that")
        torpor("checkpoint", str(job.pid), "--then", "kill")
    finally:
        job.kill()
        job.wait()
    woken = int(torpor("restore", "latest", "--detach"))
    as_user.run(["kill", "-USR1", str(woken)], check=True)
    wait_until((as_user.tmp / "told").exists, "it tells what it holds")
    assert (as_user.tmp / "told").read_text() == "[b'memory', b'gone', b'shared', b'sent']\n"
