"""Mailboxes, by which a process passes a description that only it can open to other processes that share it.

A mailbox is a socket connected to itself, which the restorer makes and all inherit. The description is in it as a
message (SCM_RIGHTS, unix(7)) that each of the others peeks at and none takes (MSG_PEEK): their number and order do not
matter.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterable

from torpor.arch.x86_64 import NR
from torpor.image.image_pb2 import Tree
from torpor.objects.opening import Opening
from torpor.remote.batch import Call, Struct

_MSG_CMSG_CLOEXEC = 0x40000000
_MESSAGE = struct.Struct("<Qi4xQQQQi4x QQ Qiii4x 8s")
"""struct msghdr, struct iovec, struct cmsghdr with a descriptor, content."""
_PART, _CONTROL, _CONTENT = 56, 72, 96
"""The offsets of the last three in _MESSAGE."""
_POINTERS = (16, 32, _PART)
_CONTROL_ROOM, _CONTROL_LENGTH = 24, 20


def holders(image: Tree, descriptions: Iterable[int]) -> dict[int, list[int]]:
    """The PIDs of the processes that have each description, by its index, each once, in the image's order."""
    found: dict[int, list[int]] = {index: [] for index in descriptions}
    for process in image.processes:
        for index in dict.fromkeys(entry.description for entry in process.fds):
            if index in found:
                found[index].append(process.pid)
    return found


def make(mine: Iterable[int], opening: Opening) -> None:
    """Put a mailbox at the slot of each description that several processes have."""
    for index, pids in holders(opening.image, mine).items():
        if len(pids) > 1:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mailbox:
                mailbox.bind("")  # the kernel chooses a name (unix(7), autobind)
                mailbox.connect(mailbox.getsockname())
                opening.slots[index] = fcntl.fcntl(mailbox, fcntl.F_DUPFD, opening.base)


def leave(mailbox: int, fd: int) -> Call:
    """The call that puts a descriptor into a mailbox."""
    return Call(NR.sendmsg, (mailbox, _message(fd), 0), 1, f"passing descriptor {fd} to other processes that share it")


def take(mailbox: int, words: str) -> Call:
    """The call that copies a descriptor from a mailbox to the lowest free number, close-on-exec."""
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | _MSG_CMSG_CLOEXEC
    return Call(NR.recvmsg, (mailbox, _message(-1), flags), 1, words)


def _message(fd: int) -> Struct:
    rights = _CONTROL_LENGTH, socket.SOL_SOCKET, socket.SCM_RIGHTS, fd
    content = _MESSAGE.pack(0, 0, _PART, 1, _CONTROL, _CONTROL_ROOM, 0, _CONTENT, 1, *rights, b"")
    return Struct(content, _POINTERS)
