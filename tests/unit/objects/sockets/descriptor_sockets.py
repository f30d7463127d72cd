"""Sockets for tests of descriptors."""

from __future__ import annotations

import os
import select
import socket

from tests.unit.objects.fds.descriptor_tree import Woken

FAMILIES = {"4": ("AF_INET", "127.0.0.1", 0), "6": ("AF_INET6", "::1", 0), "mptcp": ("AF_INET", "127.0.0.1", 262)}
SERVER = """
l = socket.socket(socket.{family}, socket.SOCK_STREAM, {protocol}); l.bind(({host!r}, 0)); l.listen(7)
def pair(listener=None):
    at = listener or l
    c = socket.socket(socket.{family}, socket.SOCK_STREAM, {protocol}); c.connect(at.getsockname()[:2])
    return c, at.accept()[0]
"""


def sock(woken: Woken, fd: int) -> socket.socket:
    """A socket of our own for a slot."""
    return socket.socket(fileno=os.dup(woken(fd)))


def states(fd: int) -> int:
    """What poll() says."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    return sum(events for _, events in poll.poll(0))
