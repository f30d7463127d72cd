"""Make the open file descriptions of an image again: what all kinds of them use at a restore."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torpor.errors import RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.paths.opener import Opener, Openers

# include/uapi/asm-generic/fcntl.h, where Python's os module has no name for it
O_LARGEFILE = 0o100000
"""The kernel adds it to every open(2) of a 64-bit process (include/linux/fcntl.h, force_o_largefile)."""

KEPT_AT_OPEN = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_PATH
"""Status flags that only ``open()`` can set."""
KEPT_BY_LINK = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC
"""Flags of KEPT_AT_OPEN that a second open, through the link in /proc/self/fd, can set."""
KEPT_BY_FCNTL = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME
"""Status flags that F_SETFL can set (fs/fcntl.c: SETFL_MASK, without O_ASYNC)."""
O_ASYNC = 0o20000
"""F_SETFL sets it too: see `torpor.objects.fds.signal_owners`."""
KNOWN_FLAGS = KEPT_AT_OPEN | KEPT_BY_FCNTL | O_LARGEFILE | O_ASYNC


@dataclass
class Opening:
    """The descriptions of a restore while they are being made."""

    image: Tree
    stdio: Sequence[int]
    """The restorer's descriptors that replace 0, 1 and 2."""
    shared: Callable[[int], int]
    """Returns a descriptor of shared memory by its index in the image. The callee keeps it."""
    base: int
    """Above all descriptor numbers of the image."""
    openers: Openers
    """Opens the paths of each description."""
    slots: dict[int, int] = field(default_factory=dict)
    """The descriptor of each description of the image."""
    terminals: dict[int, int] = field(default_factory=dict)
    """Descriptors of the sessions' controlling terminals, by their index in the image."""
    making: int = 0
    """The index of the description that is being made."""
    warnings: list[str] = field(default_factory=list)
    """Warnings for the user: what is not as before."""
    later: list[Callable[[], None]] = field(default_factory=list)
    """To call when all descriptions are made."""
    stack: ExitStack = field(default_factory=ExitStack)
    """Resources that are needed until then."""
    bound: dict[bytes, bytes] = field(default_factory=dict)
    """Where the files of the tree's sockets are until all are made, by their paths."""
    to_watch: list[Callable[[], None]] = field(default_factory=list)
    """To call when all file names are as they should be."""
    when_built: list[Callable[[], None]] = field(default_factory=list)
    """To call when the tree is built; may be called more than once."""
    at_last: list[Callable[[], None]] = field(default_factory=list)
    """To call when the tree is released."""

    @property
    def opener(self) -> Opener:
        """Opens paths for the description that is being made."""
        return self.openers.description(self.making)

    def keep_terminal(self, index: int, fd: int) -> None:
        """Keep a copy of `fd` for the sessions whose controlling terminal is `index`."""
        self.terminals[index] = fcntl.fcntl(fd, fcntl.F_DUPFD, self.base)

    def place(self, index: int, fd: int) -> None:
        """Store `fd` as description `index`, set its flags, and close `fd`.

        Raises:
            RestoreFailed: the kernel did not accept the flags.
        """
        try:
            self.slots[index] = fcntl.fcntl(fd, fcntl.F_DUPFD, self.base)
        finally:
            os.close(fd)
        self._set_flags(self.image.descriptions[index], self.slots[index])

    def socket(self, index: int) -> socket.socket:
        """Another descriptor of a socket that was placed; the caller closes it."""
        copy = os.dup(self.slots[index])
        blocking = os.get_blocking(copy)
        sock = socket.socket(fileno=copy)
        os.set_blocking(copy, blocking)  # which Python has changed for both if the program has a default timeout
        return sock

    def _set_flags(self, description: Description, slot: int) -> None:
        # For a description from the restorer, its owner chooses the other flags.
        mask = os.O_NONBLOCK if description.HasField("outside") else KEPT_BY_FCNTL | KEPT_BY_LINK
        if description.flags & os.O_PATH:
            return
        now = fcntl.fcntl(slot, fcntl.F_GETFL)
        wanted = now & ~mask | description.flags & mask
        if wanted != now:
            fcntl.fcntl(slot, fcntl.F_SETFL, wanted)
        if fcntl.fcntl(slot, fcntl.F_GETFL) & mask != wanted & mask:
            raise RestoreFailed(
                f"{words(description)} cannot get its status flags {wanted & mask:#o} again: the kernel set"
                f" {now & mask:#o} instead"
            )


@contextmanager
def naming(description: Description) -> Iterator[None]:
    """Turn an error of the kernel into one that names the description."""
    try:
        yield
    except OSError as error:
        raise RestoreFailed(f"{words(description)} cannot be made again: {error.strerror}") from error
    except (ValueError, OverflowError) as error:  # a number or a name that no system call accepts
        raise RestoreFailed(f"{words(description)} cannot be made again: {error}") from error


def reopened(fd: int, flags: int) -> int:
    """Open a new description of an open file and close `fd`. No path is resolved, so the file cannot be swapped."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)
    finally:
        os.close(fd)


def words(description: Description) -> str:
    """A description of an image for messages: ``the file /home/me/log``."""
    kind = description.WhichOneof("kind")
    path = getattr(getattr(description, kind or "", None), "path", None)
    names = {"device": "device", "outside": "descriptor", "unix": "unix socket", "tcp": "TCP socket"}
    name = "the " + names.get(kind or "", kind or "unknown description")
    return f"{name} {os.fsdecode(path)}" if path else name
