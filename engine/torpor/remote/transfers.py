"""Threads that were stopped in the middle of a read, write, send or receive go on with the rest.

See `torpor.arch.x86_64.transfers`. The code for it stands in the vDSO's mapping, before the stubs of code_stubs.py,
where there are zeros that nothing executes or reads. It stays there, since threads may need it for a long time.

A call is continued if it waits until it has moved all, unless it is stopped: a blocking write to a pipe, a stream
socket or a terminal, a receive with MSG_WAITALL, a read of random bytes or zeros. Not if the socket has a time limit,
and not the calls with a struct iovec (writev, sendmsg), whose callers know how to go on from its middle. These return
what they have moved.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from array import array

from torpor import procfs
from torpor.arch.x86_64 import NR, ORIG_RAX, R10, RDI, RIP, RSP, transfers
from torpor.arch.x86_64.transfers import CODE, FRAME_SIZE, Transfer
from torpor.procfs import PAGE
from torpor.remote import code_stubs, copies, memory
from torpor.remote.code_stubs import STUBS
from torpor.remote.sys import syscall

_FROM_END = len(STUBS) + len(CODE)
_ENDLESS = ("/dev/zero", "/dev/random", "/dev/urandom")
_STREAM = struct.pack("=i", socket.SOCK_STREAM)


def continued(pid: int, tid: int, registers: array[int]) -> array[int] | None:
    """The registers with which a stopped thread continues a call that the stop has ended in the middle.

    If the dumper dies before they are set, the program gets a short count, and also if the process has no vDSO, or one
    without room.

    Args:
        pid: its process.
        tid: the thread.
        registers: its own, which are `torpor.arch.x86_64.transfers.is_short`.

    Returns:
        None if the call would have returned anyway, or cannot be continued.
    """
    try:
        if (at := _code_around(tid, registers)) is not None:
            return transfers.advanced(registers, at)
        return in_code(tid, transfers.with_rest(registers)) if _waits_for_all(pid, registers) else None
    except OSError:
        return None  # it is ending, has closed the descriptor, lets nobody copy it, or has no stack


def in_code(tid: int, transfer: Transfer) -> array[int] | None:
    """The registers with which a stopped thread continues a call; None where it cannot.

    Writes the code and the frame for it, of which the thread does not know yet.

    Raises:
        OSError: the thread has ended, or has no stack.
    """
    code = code_stubs.vdso_code(procfs.mappings(tid))
    if code is None:
        return None
    at = code.end - _FROM_END
    if (there := memory.read(tid, at, len(CODE))) != CODE:
        if not code_stubs.is_written(there, CODE):
            return None
        code_stubs.write(tid, at, CODE)
    registers, address, frame = transfers.by_code(transfer, at)
    memory.write_stack(tid, address, frame)
    return registers


def taken_back(tid: int, registers: array[int]) -> Transfer:
    """What a stopped thread does: that of our code as if it were the program's own."""
    if (at := _code_around(tid, registers)) is None:
        return Transfer(registers)
    return transfers.taken_back(registers, at, memory.read(tid, registers[RSP], FRAME_SIZE))


def without_code(vdso: bytes) -> bytes:
    """The code of a vDSO without that of ours."""
    return code_stubs.without(vdso, CODE, len(vdso) - _FROM_END)


def _code_around(tid: int, registers: array[int]) -> int | None:
    """The address of our code, if the thread executes it."""
    at = (registers[RIP] | (PAGE - 1)) + 1 - _FROM_END
    if not transfers.is_in_code(registers, at):
        return None
    try:
        return at if memory.read(tid, at, len(CODE)) == CODE else None
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return None


def _waits_for_all(pid: int, registers: array[int]) -> bool:
    """Whether a call would not have returned before it had moved all.

    Raises:
        OSError: the process has closed the descriptor, or lets nobody copy it.
    """
    number = registers[RDI] & 0xFFFFFFFF
    call, flags = registers[ORIG_RAX], registers[R10]
    link = os.readlink(f"/proc/{pid}/fd/{number}")  # nothing else: a file may lie on a file system that hangs
    if call == NR.read:
        return link in _ENDLESS
    if call == NR.write:
        flags = 0
    elif flags & (socket.MSG_DONTWAIT | socket.MSG_PEEK):
        return False
    if call == NR.recvfrom and not flags & socket.MSG_WAITALL:
        return False
    is_socket = link.startswith("socket:")
    if not is_socket and not link.startswith(("pipe:", "/dev/")) and not stat.S_ISFIFO(os.stat(link).st_mode):
        return False
    copy = copies.descriptor_of(pid, number)
    try:
        if fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_NONBLOCK:
            return False
        if not is_socket:
            return stat.S_ISFIFO(os.fstat(copy).st_mode) or os.isatty(copy)
        limit = socket.SO_RCVTIMEO if call == NR.recvfrom else socket.SO_SNDTIMEO
        return _option(copy, socket.SO_TYPE, 4) == _STREAM and not any(_option(copy, limit, 16))
    finally:
        os.close(copy)


def _option(copy: int, name: int, size: int) -> bytes:
    value, length = bytearray(size), array("I", (size,))
    syscall(NR.getsockopt, copy, socket.SOL_SOCKET, name, value, length)
    return bytes(value[: length[0]])
