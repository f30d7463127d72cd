"""One connection of a star: messages that are authenticated by their direction, their number and a key of both ends."""

from __future__ import annotations

import hashlib
import hmac
import socket
import struct
import time
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from torpor.sets.sets_pb2 import Hello
from torpor.util.strict_protobuf import parse

M = TypeVar("M", bound=Message)

MAC = 32
"""Bytes of a proof."""
_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_TCP_USER_TIMEOUT = 18
_USER_TIMEOUT = 20_000
"""Milliseconds after which a connection ends that acknowledges nothing: the host is gone."""


class Line:
    """One connection."""

    def __init__(self, sock: socket.socket, *, middle: bool) -> None:
        """
        Args:
            sock: connected; the line owns it.
            middle: whether this end is the middle of the star.
        """
        self.sock = sock
        self.since = time.monotonic()
        self.hello: Hello | None = None
        self.nonces = b""
        self.key = b""
        self._sent = self._received = 0
        self._ways = (b"0", b"k") if middle else (b"k", b"0")
        self._buffer = bytearray()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, name, value)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, _USER_TIMEOUT)

    def close(self) -> None:
        """Close it."""
        self.sock.close()

    def fill(self) -> None:
        """Read what has arrived. Raises EOFError, OSError."""
        try:
            new = self.sock.recv(1 << 16)
        except BlockingIOError:
            return
        if not new:
            raise EOFError
        self._buffer += new

    def take(self, size: int) -> bytes | None:
        """Take so many bytes out of what was read; None if there are not so many."""
        if len(self._buffer) < size:
            return None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of it. Raises OSError."""
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            self.sock.sendall(data)
        finally:
            self.sock.setblocking(False)

    def say(self, message: Message, deadline: float) -> None:
        """Send a message. Raises OSError."""
        body = message.SerializeToString()
        mac = self._mac(self._ways[0], self._sent, body)
        self._sent += 1
        self.send(_LENGTH.pack(len(body)) + mac + body, deadline)

    def receive(self, kind: type[M], most: int) -> M | None:
        """A message, once all of it was read. Raises DecodeError if it is none."""
        if len(self._buffer) < _LENGTH.size:
            return None
        size = _LENGTH.unpack_from(self._buffer)[0]
        if size > most:
            raise DecodeError(f"a message of {size} bytes")
        if (frame := self.take(_LENGTH.size + MAC + size)) is None:
            return None
        body = frame[_LENGTH.size + MAC :]
        mac = self._mac(self._ways[1], self._received, body)
        self._received += 1
        if not hmac.compare_digest(mac, frame[_LENGTH.size : _LENGTH.size + MAC]):
            raise DecodeError("a message whose key is wrong")
        return parse(kind, body)

    def _mac(self, way: bytes, number: int, body: bytes) -> bytes:
        return proof_of(self.key, way + _NUMBER.pack(number) + body)


def proof_of(key: bytes, data: bytes) -> bytes:
    """Bytes that only who has the key can know (HMAC-SHA256)."""
    return hmac.new(key, data, hashlib.sha256).digest()
