"""Processes in messages: what each is called, and why one cannot be traced or stopped."""

from __future__ import annotations

import os

from torpor import procfs
from torpor.errors import NotPermitted

UNINTERRUPTIBLE = "it is in an uninterruptible system call (state D), in which nothing can stop it"
WAIT_FOR_TRACER = "wait until it is done if that is another checkpoint; a debugger must detach first"
SEE_WHY = "see what it waits for in /proc/PID/stack or /proc/PID/wchan (a hung file system?), and try again"


def describe_process(pid: int) -> str:
    """A process for messages: ``process 4711 (python3)``."""
    try:
        comm = procfs.read(f"/proc/{pid}/comm").strip().decode(errors="replace")
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({comm})"


def not_permitted(pid: int) -> NotPermitted:
    """An error that says why the kernel does not let us trace `pid`."""
    name = describe_process(pid)
    try:
        fields = procfs.status(procfs.read(f"/proc/{pid}/status"))
    except OSError:
        return NotPermitted(f"{name} cannot be traced")
    tracer = int(fields[b"TracerPid"])
    if tracer and not os.path.exists(f"/proc/self/task/{tracer}"):  # the tracer may be one of our own threads
        return NotPermitted(f"{name} is already traced by {describe_process(tracer)}", advice=WAIT_FOR_TRACER)
    uid = int(fields[b"Uid"].split()[0])
    if os.geteuid() not in (0, uid):
        return NotPermitted(f"{name} belongs to user {uid}, not to you", advice="run torpor as that user")
    return NotPermitted(
        f"the kernel does not let {name} be traced: it protects itself (PR_SET_DUMPABLE), has rights that you lack, or "
        "was not started by you where only the launcher may trace (Yama's ptrace_scope)",
        advice="start it under `torpor run`, or see `torpor doctor`",
    )
