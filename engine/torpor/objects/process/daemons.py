"""Daemons of a job: processes below which nobody of the job is left, and that fell to its torpor-init.

Kept: they belong to the job as those below its root do, and fall to the woken job's torpor-init. They are found by it:
of a process that no torpor-init stands for, nobody knows whom it has left behind.

Lost: those whose image the user may not take (of setuid and setgid programs, as ssh-agent); the checkpoint names them.
"""

from __future__ import annotations

import os
from contextlib import suppress

from torpor import procfs
from torpor.objects.paths.file_names import DELETED
from torpor.remote.freeze import describe_process

INIT = "torpor-init"
_CPU_TIMES = slice(13, 15)  # utime and stime of proc_pid_stat(5)


def is_init(pid: int) -> bool:
    """Whether a process is a torpor-init: one that stands for a job, or for a process that a job refers to."""
    try:
        # An upgrade replaces the file, and the link says so; a script's or another program's comm is not enough.
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(DELETED)) == INIT
    except OSError:
        return False  # gone, or not ours to look at: the preflight says so


def of(root: int) -> list[int]:
    """The daemons of the job with that root which can be kept, as they are at this moment; without those below them."""
    return [pid for pid in _fallen(root) if _is_open(pid)]


def notices(root: int) -> list[str]:
    """What is said of those that cannot."""
    return [
        f"{describe_process(pid)}, which the job has left in the background, is not kept: its rights are not its user's"
        for pid in _fallen(root)
        if not _is_open(pid)
    ]


def _fallen(root: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # the job has ended
        below, init = root, procfs.stat(root).ppid
        if not is_init(init):
            return []
        # Stand-ins for those above the root are clones of the job's init, and show its arguments.
        words = _words(init)
        while is_init(above := procfs.stat(init).ppid) and _words(above) == words:
            below, init = init, above
        for pid in procfs.children(init, [init]):
            if pid != below and not (is_init(pid) and _words(pid) == words) and _lives(pid):
                found.append(pid)
    return found


def _words(init: int) -> bytes:
    return procfs.read(f"/proc/{init}/cmdline")


def _lives(pid: int) -> bool:
    """Whether it is a process that runs. The snapshots of another checkpoint fall to the job's init, too."""
    with suppress(FileNotFoundError, ProcessLookupError):
        stat = procfs.stat(pid)
        never_ran = not any(map(int, stat.fields[_CPU_TIMES]))
        return stat.state not in ("Z", "X") and not (stat.state == "t" and never_ran)
    return False


def _is_open(pid: int) -> bool:
    """Whether its user may look into it (PTRACE_MODE_READ)."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        return False
    except (FileNotFoundError, ProcessLookupError):
        pass
    return True
