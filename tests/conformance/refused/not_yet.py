"""Descriptors that are not kept yet, all at once: each must be named, not just the first."""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait


def main() -> None:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    packets = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
    numbers = [netlink.fileno(), packets.fileno()]
    (HERE / "numbers").write_text(" ".join(map(str, numbers)))
    ready_and_wait()
    for number in numbers:
        expect(os.fstat(number), f"descriptor {number}")


judge(main)
