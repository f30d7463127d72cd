"""What a program is to get from its parent, in a parent that Python and Torpor have changed.

A program is started as if this process had executed it: with the signals ignored, the limit and the environment that
this process was given, and not with those that the interpreter or Torpor has set since.

Documented in: execve(2), signal(7), nohup(1), PEP 538.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_PYTHONS_OWN = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores these for itself, before any code of a program runs (signal_install_handlers in CPython)."""
_HAND_ON = frozenset({"sh", "bash", "busybox", "dash", "ksh", "mksh", "systemd", "zsh"})
"""Programs that start others with the dispositions that they have themselves."""
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
_C_LOCALE = (None, "", "C", "POSIX")

_raising = threading.Lock()
_raised: list[int] = []
"""The soft limit of descriptors before it was raised; then one entry for each block in which it is."""


class Signals(NamedTuple):
    """What a program has by its start."""

    ignored: frozenset[int]
    blocked: frozenset[int]


def signals() -> Signals:
    """What a program started from here, by the calling thread, is to have."""
    return Signals(ignored(), frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def ignored() -> frozenset[int]:
    """The signals that this process is to ignore, and a program started from here: those that its caller had ignored.

    Which Python ignores for itself, only the parent can tell; where it is no shell, they are taken to have their
    default action, as `subprocess` has it.
    """
    found = _ignored_by("self")
    parent = os.getppid()
    if parent and _name(parent) in _HAND_ON:
        return (found - set(_PYTHONS_OWN)) | (_ignored_by(str(parent)) & set(_PYTHONS_OWN))
    return found - set(_PYTHONS_OWN)


def _ignored_by(pid: str) -> frozenset[int]:
    for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n"):  # a name may hold other ends of lines
        if line.startswith(b"SigIgn:"):
            mask = int(line.split()[1], 16)
            return frozenset(number for number in range(1, 65) if mask >> (number - 1) & 1)
    return frozenset()


def _name(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:  # another user's, as the system's pid 1 is
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:  # it has ended
            return ""


def environment() -> dict[str, str]:
    """`os.environ`, without what Python sets itself: LC_CTYPE, where the locale is C (PEP 538)."""
    given = dict(os.environ)
    if given.get("LC_CTYPE") in _COERCED:
        words = Path("/proc/self/environ").read_bytes().split(b"\0")
        before = next((os.fsdecode(word[9:]) for word in words if word.startswith(b"LC_CTYPE=")), None)
        if before in _C_LOCALE:
            del given["LC_CTYPE"]
            given |= {} if before is None else {"LC_CTYPE": before}
    return given


@contextmanager
def raised_descriptor_limit() -> Iterator[None]:
    """Let this process have as many descriptors as it may in a block: all of a tree's are open in it at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with _raising:
        if not _raised:
            _raised.append(soft)
        _raised.append(soft)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        with _raising:
            _raised.pop()
            if len(_raised) == 1:  # the last of those that several threads are in
                resource.setrlimit(resource.RLIMIT_NOFILE, (_raised.pop(), hard))


def descriptor_limit() -> int:
    """The soft limit that a program started from here is to have."""
    with _raising:
        return _raised[0] if _raised else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
