"""The inherited attributes of a program that this process starts: ignored signals, limits, environment.

A program starts as if this process's caller had executed it: with the ignored signals, the limits and the environment
that this process was given, without the changes that Python and Torpor have made since.

Documented in: execve(2), signal(7), nohup(1), PEP 538.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores these at startup, before it runs any code of a program (signal_install_handlers in CPython)."""
_OPTION = "torpor-ignored"
"""Of Python's -X: which of these were ignored before Python started; a list of numbers (native/start.c)."""
_KEEP_DISPOSITIONS = frozenset({"sh", "bash", "busybox", "dash", "ksh", "mksh", "systemd", "zsh"})
"""Programs that start others with their own signal dispositions."""
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
_C_LOCALE = (None, "", "C", "POSIX")

_RAISED = (
    resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE,
    resource.RLIMIT_MEMLOCK,
)  # fmt: skip
"""All descriptors of a tree are open here at once. The others count for a user: a user namespace takes the soft limits
of its creator, which then bind all that live in it, whatever limits they set (create_user_ns())."""

_raising = threading.Lock()
_raised: list[dict[int, int]] = []
"""The soft limits before they were raised, once for each active `raised_limits`."""


class Signals(NamedTuple):
    """The signal dispositions and mask that a program inherits."""

    ignored: frozenset[int]
    blocked: frozenset[int]


def signals() -> Signals:
    """Return what a program that the calling thread starts must inherit."""
    return Signals(ignored(), frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def ignored() -> frozenset[int]:
    """Return the signals that this process's caller had ignored, which this process and its programs must ignore too.

    What Python itself ignores is known if this is the command `torpor`. Otherwise the dispositions of the parent tell,
    if it is a shell; else the default action is assumed, as in `subprocess`.
    """
    found = _ignored_by("self")
    if (noted := sys._xoptions.get(_OPTION)) is not None:
        return (found - set(_IGNORED_BY_PYTHON)) | {int(number) for number in str(noted).split(",") if number}
    parent = os.getppid()
    if parent and _name(parent) in _KEEP_DISPOSITIONS:
        return (found - set(_IGNORED_BY_PYTHON)) | (_ignored_by(str(parent)) & set(_IGNORED_BY_PYTHON))
    return found - set(_IGNORED_BY_PYTHON)


def restore_actions() -> None:
    """Let the signals that Python ignores have the action again that a program executed in its place must inherit."""
    for number in frozenset(_IGNORED_BY_PYTHON) - ignored():
        signal.signal(number, signal.SIG_DFL)


def _ignored_by(pid: str) -> frozenset[int]:
    # Not by torpor.procfs, which is on the floor above (tests/unit/house/test_floors.py).
    for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n"):  # a name may contain other line separators
        if line.startswith(b"SigIgn:"):
            mask = int(line.split()[1], 16)
            return frozenset(number for number in range(1, 65) if mask >> (number - 1) & 1)
    return frozenset()


def _name(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:  # another user's process, for example the system's PID 1
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:  # the process has ended
            return ""


def environment() -> dict[str, str]:
    """Return `os.environ` without the LC_CTYPE that Python sets itself if the locale is C (PEP 538).

    And without LISTEN_PIDFDID if this process is meant, which a program does not miss: sd_listen_fds(3) then goes by
    LISTEN_PID alone, which torpor-init corrects.
    """
    given = dict(os.environ)
    if given.get("LC_CTYPE") in _COERCED:
        words = Path("/proc/self/environ").read_bytes().split(b"\0")
        before = next((os.fsdecode(word[9:]) for word in words if word.startswith(b"LC_CTYPE=")), None)
        if before in _C_LOCALE:
            del given["LC_CTYPE"]
            given |= {} if before is None else {"LC_CTYPE": before}
    if given.get("LISTEN_PID") == str(os.getpid()):
        given.pop("LISTEN_PIDFDID", None)
    return given


@contextmanager
def raised_limits() -> Iterator[None]:
    """Raise some soft limits to the hard ones in a block, for what a tree needs while it is saved or built."""
    with _raising:  # the limits are read here: before, another thread might have raised them, and lower them meanwhile
        before = _raised[0] if _raised else _soft_limits()
        _raised.append(before)
        _set_soft({number: resource.getrlimit(number)[1] for number in _RAISED})
    try:
        yield
    finally:
        with _raising:
            _raised.pop()
            if not _raised:  # this was the last of the blocks that threads have entered
                _set_soft(before)


def soft_limits() -> dict[int, int]:
    """Return the soft limits that a program started from here must inherit, as far as `raised_limits` raises them."""
    with _raising:
        return dict(_raised[0]) if _raised else _soft_limits()


def _soft_limits() -> dict[int, int]:
    return {number: resource.getrlimit(number)[0] for number in _RAISED}


def _set_soft(limits: dict[int, int]) -> None:
    for number, soft in limits.items():
        resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))
