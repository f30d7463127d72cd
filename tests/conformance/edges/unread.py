"""Connections to the outside in which megabytes wait to be read; what it read is told to the peer."""

import fcntl
import hashlib
import json
import os
import socket
import struct
import sys
import termios
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import judge, ready_and_wait, same

SO_RCVBUFFORCE = 33


def waiting(connection: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))[0])


def main() -> None:
    host, port = json.loads(os.environ["OUTSIDE"])
    size, count = int(os.environ["UNREAD"]), int(os.environ["CONNECTIONS"])
    read_before = int(os.environ["READ_BEFORE"])  # fast, so that the kernel gives it larger buffers
    connections = [socket.socket() for _ in range(count)]
    for one in connections:
        if not read_before:
            one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 * size)
        one.connect((host, port))
    for one in connections:
        one.sendall(b"go")
        left = read_before
        while left:
            left -= len(one.recv(min(left, size)))
        while waiting(one) < size:
            time.sleep(0.001)
    ready_and_wait()
    for one in connections:
        one.settimeout(100)
        received = bytearray()
        while len(received) < size:
            received += one.recv(size)
        same(len(received), size, "what waited")
        one.sendall(hashlib.sha256(received).digest())
        same(one.recv(10), b"right", "what the peer says")


judge(main)
