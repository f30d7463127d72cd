"""All errors that Torpor raises. Each says what happened to which object, why, and what to do next.

The exit codes are in ranges, so that a script can distinguish a refusal from a failure:

====  =======================================================================
0     done
2     the command line (click's own code), a configuration file or a variable is wrong
10    refused before anything was touched; the target or the image is as before
11    no such process, snapshot or store
12    not permitted
20    a checkpoint failed; the target runs on
21    a restore failed; nothing of it is left, and the image is untouched
22    another part of a set failed, or cannot be reached; this part is as after 20 or 21
30    the store cannot be read or written (full, busy, gone)
31    an image is damaged or not of a format this version reads
40    Slurm did not do what it was asked, or did not answer
70    a fault in Torpor itself
====  =======================================================================
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = [
    "CheckpointFailed",
    "ImageDamaged",
    "NotFound",
    "NotPermitted",
    "PartFailed",
    "Reason",
    "Refused",
    "RestoreFailed",
    "RestoreRefused",
    "SettingError",
    "StoreError",
    "TorporError",
]


@dataclass(frozen=True)
class Reason:
    """One cause of a refusal: the object by name, why it cannot be done, and what to do next."""

    subject: str
    """The object: ``process 4711 (python3), fd 7 (io_uring)``."""
    why: str
    """Why it cannot be kept or restored, without a full stop."""
    advice: str = ""
    """What the user can do next, without a full stop; empty if nothing can be done."""
    passing: bool = False
    """Whether the cause may pass by itself in a moment."""
    seconds: int = 0
    """In how many seconds the cause passes by itself; 0 if that is not known."""
    changed: str = ""
    """If the cause is only a file that has changed, which the user may accept as it is: its path."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.why}" + (f"; {self.advice}" if self.advice else "")


class TorporError(Exception):
    """The base of all errors that users see. ``str()`` gives one line; `details` has the rest."""

    exit_code = 70

    def __init__(self, message: str, *, advice: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.details = details

    def __str__(self) -> str:
        return self.message + (f"; {self.advice}" if self.advice else "")


class _ManyReasons(TorporError):
    """An error that lists all causes at once."""

    def __init__(self, heading: str, reasons: Iterable[Reason]) -> None:
        self.heading = heading
        self.reasons = tuple(dict.fromkeys(reasons))  # two descriptions of a file have the same
        super().__init__(
            f"{heading}: " + "; ".join(map(str, self.reasons)),
            details="\n".join(f"  {reason}" for reason in self.reasons),
        )


class Refused(_ManyReasons):
    """Something would be lost: an object cannot be kept, or a snapshot is still needed. Nothing was touched."""

    exit_code = 10


class RestoreRefused(_ManyReasons):
    """This host cannot restore the image as it is now. Nothing was started."""

    exit_code = 10

    @property
    def passes_in(self) -> int:
        """In how many seconds all causes pass by themselves; 0 if that is not known."""
        seconds = [reason.seconds for reason in self.reasons]
        return max(seconds, default=0) if all(seconds) else 0

    @property
    def only_files(self) -> bool:
        """Whether all causes are files that have changed, which the user may accept as they are."""
        return all(reason.changed for reason in self.reasons)


class SettingError(TorporError):
    """A configuration file or an environment variable of Torpor's is wrong. Nothing was done."""

    exit_code = 2


class NotFound(TorporError):
    """There is no such process, snapshot or store."""

    exit_code = 11


class NotPermitted(TorporError):
    """The kernel or its administrator does not let this user do it."""

    exit_code = 12


class CheckpointFailed(TorporError):
    """The checkpoint failed; the target runs on as before."""

    exit_code = 20


class RestoreFailed(TorporError):
    """A step of the restore failed; the half-built tree was killed and the image is untouched."""

    exit_code = 21


class PartFailed(TorporError):
    """Another part of a set failed or cannot be reached. A tree that was to be saved runs on, of one that was to be
    woken nothing is left."""

    exit_code = 22


class StoreError(TorporError):
    """The store cannot be read or written: full, busy, or gone."""

    exit_code = 30


class ImageDamaged(TorporError):
    """Data in the store is truncated, changed, or in a format that this version does not read."""

    exit_code = 31


_ADVICE = {
    errno.EMFILE: "it needs more descriptors: raise the limit (ulimit -n)",
    errno.ENFILE: "the host's limit of open files is reached: raise fs.file-max, or end a program",
    errno.ENOMEM: "no memory is left: end a program, or raise the limit (ulimit -v, memory.max)",
    errno.EROFS: "mount it so that it can be written; a sandbox needs a /proc of its own, as by `bwrap --proc /proc`",
    errno.EAGAIN: "the limit of processes may be reached (ulimit -u, pids.max)",
}


@contextmanager
def failing(kind: type[TorporError], what: str) -> Iterator[None]:
    """Turn OSError and MemoryError in the block into an error of the given kind.

    Args:
        kind: the class of the error.
        what: what could not be done; the message begins with it.
    """
    try:
        yield
    except MemoryError as error:
        raise kind(f"{what}: there is no memory left", advice=_ADVICE[errno.ENOMEM]) from error
    except ConnectionError:
        raise  # from a callback of the caller: Torpor itself makes no connections
    except OSError as error:
        raise kind(f"{what}: {in_words(error)}", advice=_ADVICE.get(error.errno or 0, "try again")) from error


NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing about the object asked for: this process or the host is out of descriptors or memory."""


@contextmanager
def about(file: str) -> Iterator[None]:
    """Add a file name to any OSError in the block, since a call on a descriptor, unlike one on a path, names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = file
        raise


def in_words(error: OSError) -> str:
    """Format an OSError: its reason, and the file or system call if the error names one."""
    why = error.strerror or str(error)
    return f"{error.filename}: {why}" if error.filename else why
