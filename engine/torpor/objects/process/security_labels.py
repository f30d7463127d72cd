"""Labels of security modules (SELinux, AppArmor, Smack): what a process may do beyond what its ids say.

The policy of a host gives them, as programs are executed. A woken job has that of who wakes it: told where it differs
from what it had, at the save and at the wake. Refused is a process, or a thread, that is labelled otherwise than the
root of its tree: woken it would be free of what it was confined by.

Documented in: Documentation/admin-guide/LSM, apparmor(7), aa-enabled(1), selinux(8), proc_pid_attr(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from torpor import procfs
from torpor.errors import Reason
from torpor.image import image_pb2 as pb

_FREE = b"unconfined"
"""How AppArmor calls no profile, or says in brackets of one that it allows all."""
_ADVICE = "have all of it run under one label, or checkpoint what is below it by itself"


def of(pid: int | str, tid: int | None = None) -> str:
    """The label of a process or of one of its threads; empty where there is none, or none that confines.

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
    except OSError:  # EINVAL: none of them has labels. EACCES: it may not be known, as ids are not
        return ""


def shown(text: bytes) -> str:
    """What /proc tells, for people and for comparing."""
    label = text.rstrip(b"\0\n")
    if label == _FREE or label.endswith(b"(" + _FREE + b")"):
        return ""
    return label.decode(errors="backslashreplace")


def refuse(name: str, label: str, home: str) -> Iterator[Reason]:
    """Say why a process or thread cannot be kept that has another label than the root of the tree."""
    if label != home:
        why = f"its security label is {_quoted(label)}, that of the tree's root {_quoted(home)}: woken they have one"
        yield Reason(name, why, _ADVICE)


def notices(label: str) -> Iterator[str]:
    """What a restore by who saves it would not bring back, of a tree whose root has a label."""
    here = of("self")
    if label != here:
        yield f"its security label is {_quoted(label)}; woken from here it has {_quoted(here)}"


def warnings(image: pb.Tree) -> Iterator[str]:
    """What of it is not as before."""
    here = of("self")
    if image.host.label != here:
        what = "it may do what it might not" if not here else "what it does may be denied now"
        yield f"its security label was {_quoted(image.host.label)}, and is {_quoted(here)} here: {what}"


def _quoted(label: str) -> str:
    return repr(label) if label else "none"
