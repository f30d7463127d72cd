"""Labels of security modules (SELinux, AppArmor, Smack), which restrict a process beyond its ids.

The host's policy assigns them when programs are executed. A woken job has the label of the user's process that wakes
it. If that differs from its old label, a notice says so at the checkpoint and at the restore. Refused is a process or
thread with another label than the root of its tree: after a wake it would be free of its confinement.

Documented in: Documentation/admin-guide/LSM, apparmor(7), aa-enabled(1), selinux(8), proc_pid_attr(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from torpor import procfs
from torpor.errors import NO_ROOM, Reason
from torpor.image import image_pb2 as pb

_FREE = b"unconfined"
"""AppArmor's name for no profile, also added in brackets to a profile that allows everything."""
_ADVICE = "have all of it run under one label, or checkpoint what is below it by itself"


def of(pid: int | str, tid: int | None = None) -> str:
    """The label of a process or of one of its threads; empty if it has none, or none that restricts it.

    Raises:
        FileNotFoundError, ProcessLookupError: it has ended.
    """
    folder = f"/proc/{pid}/attr" if tid is None else f"/proc/{pid}/task/{tid}/attr"
    try:
        return shown(procfs.read(f"{folder}/current"))
    except FileNotFoundError:
        if not os.path.exists(os.path.dirname(folder)):
            raise
        return ""  # a kernel without security modules
    except OSError as error:  # EINVAL: no module has labels. EACCES: it is hidden
        if error.errno in NO_ROOM:
            raise
        return ""


def shown(text: bytes) -> str:
    """The content of /proc/PID/attr/current, for messages and comparisons."""
    label = text.rstrip(b"\0\n")
    if label == _FREE or label.endswith(b"(" + _FREE + b")"):
        return ""
    return label.decode(errors="backslashreplace")


def unsupported(name: str, label: str, home: str) -> Iterator[Reason]:
    """Refuse a process or thread whose label differs from that of the tree's root."""
    if label != home:
        labels = f"its security label is {_quoted(label)}, that of the tree's root {_quoted(home)}"
        why = f"{labels}: after a wake both have the label of the process that wakes them"
        yield Reason(name, why, _ADVICE)


def notices(label: str) -> Iterator[str]:
    """Notice that a restore by the user who saves would change the label of the tree's root."""
    here = of("self")
    if label != here:
        yield f"its security label is {_quoted(label)}; a wake from here gives it {_quoted(here)}"


def warnings(image: pb.Tree) -> Iterator[str]:
    """How the label differs from before, for the user."""
    here = of("self")
    if image.host.label != here:
        what = "it may do what was denied before" if not here else "what it does may be denied now"
        yield f"its security label was {_quoted(image.host.label)}, and is {_quoted(here)} here: {what}"


def _quoted(label: str) -> str:
    return repr(label) if label else "none"
