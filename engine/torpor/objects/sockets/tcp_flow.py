"""Bytes under way between two ends of one TCP connection, both here: brought into the queue of the end they go to.

Nobody may look into the queue of what was not sent yet, and a reader that is frozen makes no room. So the receiving
end's buffer grows (SO_RCVBUF, and where that has an end before the kernel's own sizing has it, SO_RCVLOWAT), and the
sending end is told of the room: the kernel does so whenever the queue is read, also by a look that takes nothing out
(MSG_PEEK; tcp_cleanup_rbuf in net/ipv4/tcp.c). What is held back to be sent with more (Nagle's algorithm, TCP_CORK)
goes as soon as TCP_NODELAY is set. The sizes that a program chose become what they were; others the kernel adapts.

A caller that is killed between two calls leaves a larger buffer behind, or a packet sent sooner. Where SO_RCVLOWAT is
needed it is what it was again after a few microseconds; a caller killed in these leaves reads that wait for more.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from torpor.objects.sockets import common

SOL_MPTCP, MPTCP_INFO = 284, 1
_FALLEN_BACK = 1
"""MPTCP_INFO_FLAG_FALLBACK: it is TCP, because the other end knows no MPTCP (include/uapi/linux/mptcp.h)."""
_INFO = struct.Struct("=8xI4xQ8xQ")
"""The flags, mptcpi_write_seq and mptcpi_rcv_nxt of struct mptcp_info."""
_RCVBUF_LOCK = 2
SIOCOUTQNSD = 0x894B
"""An ioctl that tells the bytes that were written and not sent (include/uapi/linux/sockios.h)."""
_GROWING = 5.0
"""Seconds in which a buffer must have grown: it takes tenths of one."""
_STANDSTILL = 0.01
"""Seconds in which at least a byte must arrive: on the loopback it takes microseconds."""


def bring(sender: socket.socket, receiver: socket.socket, under_way: Callable[[], int]) -> None:
    """Have what is under way arrive, as far as the kernel has room for it.

    Args:
        sender: the end that has sent.
        receiver: the end that receives.
        under_way: tells the bytes that have not arrived.
    """
    _push(sender)
    if _all_arrives(receiver, under_way):
        return
    locks = common.if_known(receiver.fileno(), socket.SOL_SOCKET, common.SO_BUF_LOCK, 4)
    if locks and struct.unpack("i", locks)[0] & _RCVBUF_LOCK:
        before = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        common.enlarge(receiver, socket.SO_RCVBUF)
        _all_arrives(receiver, under_way)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, before // 2)  # the kernel doubles it
        return
    if locks and _lock(receiver, locks):
        common.enlarge(receiver, socket.SO_RCVBUF)
        _lock(receiver, locks)
        if _all_arrives(receiver, under_way):
            return
    _enlarge_further(receiver)
    _all_arrives(receiver, under_way)


def make_room(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """Have a fresh connection's receive buffer grow to `size` bytes, as far as the kernel lets it.

    Up to half of the largest buffer (net.ipv4.tcp_rmem) it grows when it is told to; beyond, only as it does for a
    program that reads much at once (tcp_rcv_space_adjust() in net/ipv4/tcp_input.c). So much is sent, and read again.
    """
    common.enlarge(sender, socket.SO_SNDBUF)
    _enlarge_further(receiver)
    until = time.monotonic() + _GROWING
    while receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < size and time.monotonic() < until:
        left = size - _send(sender, memoryview(bytes(size)))
        _all_arrives(receiver, lambda: common.queued(sender.fileno(), SIOCOUTQNSD))
        while left < size:
            left += len(receiver.recv(size))


def _send(sender: socket.socket, content: memoryview) -> int:
    """How many bytes a socket takes that does not block."""
    try:
        return sender.send(content)
    except BlockingIOError:
        return 0


def sequence(sock: int) -> tuple[int, int] | None:
    """How far an MPTCP socket has written and received, in numbers that both ends count alike. None: it is none."""
    raw = common.if_known(sock, SOL_MPTCP, MPTCP_INFO, _INFO.size)
    if raw is None or len(raw) < _INFO.size:
        return None
    flags, written, received = _INFO.unpack(raw)
    return None if flags & _FALLEN_BACK else (written, received)


def _push(sender: socket.socket) -> None:
    """Send what is held back. TCP_NODELAY pushes it once, even under TCP_CORK (tcp(7))."""
    if not sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY):
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


def _all_arrives(receiver: socket.socket, under_way: Callable[[], int]) -> bool:
    """Tell the sending end again and again how much room there is, as long as that brings something."""
    left = under_way()
    until = time.monotonic() + _STANDSTILL
    while left and time.monotonic() < until:
        if common.queued(receiver.fileno()):  # else it could take an error that the program is to see
            receiver.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        now = under_way()
        if now < left:
            left, until = now, time.monotonic() + _STANDSTILL
    return not left


def _lock(sock: socket.socket, locks: bytes) -> bool:
    """Set who chose the sizes of the buffers; whether the kernel lets one (MPTCP does not)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, common.SO_BUF_LOCK, locks)
    except OSError as error:
        if error.errno not in common.NOT_HERE:
            raise
        return False
    return True


def _enlarge_further(receiver: socket.socket) -> None:
    """As large as the kernel would make the buffer by itself (net.ipv4.tcp_rmem): see tcp_set_rcvlowat()."""
    before = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, common.LARGEST_BUFFER)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, before)
