"""Data in flight between two ends of one TCP connection on this host: moving it into the receiver's queue.

Unsent data cannot be read from the send queue, and a frozen reader makes no room. So the receiver's buffer is enlarged
(SO_RCVBUF, or, where that has a lower limit than the kernel's own sizing, SO_RCVLOWAT), and the sender is told of the
room: the kernel does that whenever the queue is read, even by a read that takes nothing out (MSG_PEEK; tcp_cleanup_rbuf
in net/ipv4/tcp.c). Data held back by Nagle's algorithm or TCP_CORK is sent as soon as TCP_NODELAY is set. Sizes that a
program chose are restored; the kernel adapts others.

A caller that is killed between two calls leaves a larger buffer behind, or a packet sent earlier. SO_RCVLOWAT, where
needed, is restored after a few microseconds; if the caller is killed in these, reads wait for more data.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from torpor.objects.sockets import buffers, common

SOL_MPTCP, MPTCP_INFO = 284, 1
_FALLEN_BACK = 1
"""MPTCP_INFO_FLAG_FALLBACK: it is plain TCP, because the other end does not support MPTCP (include/uapi/linux/mptcp.h).
"""
_INFO = struct.Struct("=8xI4xQ8xQ")
"""The flags, mptcpi_write_seq and mptcpi_rcv_nxt of struct mptcp_info."""
SIOCOUTQNSD = 0x894B
"""An ioctl: the bytes that were written but not sent (include/uapi/linux/sockios.h)."""
_GROWING = 5.0
"""How long a buffer may take to grow, in seconds: usually tenths of one."""
_STANDSTILL = 0.01
"""How long to wait for at least one byte, in seconds: on the loopback it takes microseconds."""

_LONGEST = 1.0
"""The longest pause for it: seconds in which the tree stands still."""
_TIMEOUT = struct.Struct("=8xI")
"""tcpi_rto of struct tcp_info, in microseconds."""


def bring(sender: socket.socket, receiver: socket.socket, under_way: Callable[[], int]) -> None:
    """Let data in flight arrive, as far as the kernel has room for it.

    Args:
        sender: the end that has sent.
        receiver: the end that receives.
        under_way: returns the bytes that have not arrived.
    """
    _push(sender)
    if _all_arrives(receiver, under_way):
        return
    locks = common.if_known(receiver.fileno(), socket.SOL_SOCKET, buffers.SO_BUF_LOCK, 4)
    if locks and struct.unpack("i", locks)[0] & buffers.RECEIVE_LOCK:
        before = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if buffers.enlarge(receiver, socket.SO_RCVBUF):
            # What such a buffer had no room for was dropped, and comes again when the sender's timer says so.
            _all_arrives(receiver, under_way, lambda: _retransmission(sender))
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, before // 2)  # the kernel doubles it
        return
    if locks and _lock(receiver, locks):
        buffers.enlarge(receiver, socket.SO_RCVBUF)
        _lock(receiver, locks)
        if _all_arrives(receiver, under_way):
            return
    _enlarge_further(receiver)
    _all_arrives(receiver, under_way)


def make_room(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """Let a new connection's receive buffer grow to `size` bytes, as far as the kernel allows.

    It grows by request up to half of the largest buffer (net.ipv4.tcp_rmem); beyond that only as for a program that
    reads much at once (tcp_rcv_space_adjust() in net/ipv4/tcp_input.c). So that much is sent, and read again.
    """
    buffers.enlarge(sender, socket.SO_SNDBUF)
    _enlarge_further(receiver)
    until = time.monotonic() + _GROWING
    while receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < size and time.monotonic() < until:
        left = size - _send(sender, memoryview(bytes(size)))
        _all_arrives(receiver, lambda: common.queued(sender.fileno(), SIOCOUTQNSD))
        while left < size:
            left += len(receiver.recv(size))


def _send(sender: socket.socket, content: memoryview) -> int:
    """The bytes that a non-blocking socket accepts."""
    try:
        return sender.send(content)
    except BlockingIOError:
        return 0


def sequence(sock: int) -> tuple[int, int] | None:
    """How far an MPTCP socket has written and received, in sequence numbers that both ends share; None: not MPTCP."""
    raw = common.if_known(sock, SOL_MPTCP, MPTCP_INFO, _INFO.size)
    if raw is None or len(raw) < _INFO.size:
        return None
    flags, written, received = _INFO.unpack(raw)
    return None if flags & _FALLEN_BACK else (written, received)


def _push(sender: socket.socket) -> None:
    """Send data that is held back. TCP_NODELAY pushes it once, even under TCP_CORK (tcp(7))."""
    if not sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY):
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


def _retransmission(sender: socket.socket) -> float:
    """Seconds to wait for a sender to send again what was dropped: its timeout doubles each time, up to minutes."""
    info = common.if_known(sender.fileno(), socket.IPPROTO_TCP, socket.TCP_INFO, _TIMEOUT.size)
    timeout = _TIMEOUT.unpack(info)[0] / 1e6 if info and len(info) == _TIMEOUT.size else 0
    return min(_STANDSTILL + timeout, _LONGEST)


def _all_arrives(
    receiver: socket.socket, under_way: Callable[[], int], patience: Callable[[], float] = lambda: _STANDSTILL
) -> bool:
    """Announce the room to the sender again and again, as long as data arrives. Returns whether all has."""
    left = under_way()
    until = time.monotonic() + patience()
    while left and time.monotonic() < until:
        if common.queued(receiver.fileno()):  # else it could consume an error that the program must see
            receiver.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        now = under_way()
        if now < left:
            left, until = now, time.monotonic() + patience()
    return not left


def _lock(sock: socket.socket, locks: bytes) -> bool:
    """Set who chose the sizes of the buffers. Returns whether the kernel allows it (MPTCP does not)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, buffers.SO_BUF_LOCK, locks)
    except OSError as error:
        if error.errno not in buffers.NOT_HERE:
            raise
        return False
    return True


def _enlarge_further(receiver: socket.socket) -> None:
    """Make the buffer as large as the kernel would by itself (net.ipv4.tcp_rmem): see tcp_set_rcvlowat()."""
    before = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, buffers.LARGEST)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, before)
