"""Descriptors that are not kept, all at once: each must be named, not just the first."""

import os
import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait, same

GET_LINKS = struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0)


def main() -> None:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
    packets = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
    packets.send(GET_LINKS)  # whose answer waits
    listener = socket.create_server(("127.0.0.1", 0))
    early = socket.create_connection(listener.getsockname())
    early.sendall(b"nobody has accepted this")
    numbers = [netlink.fileno(), packets.fileno(), early.fileno()]
    (HERE / "numbers").write_text(" ".join(map(str, numbers)))
    ready_and_wait()
    for number in numbers:
        expect(os.fstat(number), f"descriptor {number}")
    same(listener.accept()[0].recv(100), b"nobody has accepted this", "what was sent on a connection before")


judge(main)
