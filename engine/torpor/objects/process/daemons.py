"""Daemons of a job: processes without an ancestor in the job, which were reparented to its torpor-init.

Kept: they belong to the job like the root's descendants, and are reparented to the restored job's torpor-init. They are
found by the torpor-init: without one above the root, nobody knows which daemons a process has left.

Lost: those that the user may not dump (from setuid and setgid programs, such as ssh-agent); the checkpoint names them.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from torpor import procfs
from torpor.objects.paths.file_names import DELETED
from torpor.remote.naming import describe_process

INIT = "torpor-init"
BEGAN = "TORPOR_BEGAN"
"""In the environment of a woken job's init: when the job began, in nanoseconds of the wall clock."""


def is_init(pid: int) -> bool:
    """Whether a process is a torpor-init: the init of a job, or a stand-in for a process that a job refers to."""
    try:
        # After an upgrade the link says "(deleted)". A script or another program may have the same comm, so that is no
        # proof.
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(DELETED)) == INIT
    except OSError:
        return False  # gone, or of another user: the preflight reports it


def began_ns(root: int) -> int:
    """When a job began, in nanoseconds of the wall clock: for one that was woken, before it was saved first.

    Raises:
        FileNotFoundError, ProcessLookupError: it has ended.
    """
    began = procfs.stat(root).began_ns
    if above := inits(root):
        noted = re.search(rb"(?:^|\0)%s=(\d{1,19})\0" % BEGAN.encode(), procfs.read(f"/proc/{above[-1]}/environ"))
        began = min(began, int(noted[1]) if noted else began)
    return began


def of(root: int) -> list[int]:
    """The daemons of the job with this root that can be kept, at this moment; without their descendants."""
    return [pid for pid in seen(root) if not procfs.is_ending(pid, pid)]


def seen(root: int) -> list[int]:
    """The same, and those that have ended: their children become daemons too, perhaps only after this look."""
    return [pid for pid in _fallen(root) if _is_open(pid)]


def notices(root: int) -> list[str]:
    """Notices for the daemons that cannot be kept."""
    return [
        f"{describe_process(pid)}, which the job has left in the background, is not kept: its user may not read it"
        " (a setuid or setgid program, or one that forbids it)"
        for pid in _fallen(root)
        if not (procfs.is_ending(pid, pid) or _is_open(pid))
    ]


def _fallen(root: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # the job has ended
        if not (above := inits(root)):
            return []
        below, init = [root, *above][-2:]
        words = _words(init)
        for pid in procfs.children(init, [init]):
            if pid != below and not (is_init(pid) and _words(pid) == words) and not _is_snapshot(pid):
                found.append(pid)
    return found


def inits(root: int) -> list[int]:
    """The torpor-inits above a job's root: stand-ins, which are clones of init with its arguments, and then init."""
    found: list[int] = []
    while is_init(above := procfs.stat(found[-1] if found else root).ppid):
        if found and _words(above) != _words(found[-1]):
            break
        found.append(above)
    return found


def _words(init: int) -> bytes:
    return procfs.read(f"/proc/{init}/cmdline")


def _is_snapshot(pid: int) -> bool:
    """Whether a process is a snapshot of another checkpoint: the job's init adopts those, and they have never run."""
    with suppress(FileNotFoundError, ProcessLookupError):
        stat = procfs.stat(pid)
        return stat.state == "t" and not stat.cpu_ticks
    return False


def _is_open(pid: int) -> bool:
    """Whether this user may read it (PTRACE_MODE_READ)."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        return False
    except (FileNotFoundError, ProcessLookupError):
        pass
    return True
