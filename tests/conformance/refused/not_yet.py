"""Descriptors that are not kept yet, all at once: each must be named, not just the first."""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait, same


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    inotify = libc.inotify_init1(0)
    same(libc.inotify_add_watch(inotify, bytes(HERE), 0x100) > 0, True, "a watch")
    timer = libc.timerfd_create(1, 0)
    mask = (ctypes.c_uint64 * 16)(1 << (signal.SIGHUP - 1))
    signals = libc.signalfd(-1, mask, 0)
    itself = os.pidfd_open(os.getpid())
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    named = socket.socket(socket.AF_UNIX)
    named.bind(str(HERE / "named"))
    named.listen()
    master, terminal = os.openpty()
    numbers = [inotify, timer, signals, itself, netlink.fileno(), datagrams.fileno(), named.fileno(), master, terminal]
    (HERE / "numbers").write_text(" ".join(map(str, numbers)))
    ready_and_wait()
    for number in numbers:
        expect(os.fstat(number), f"descriptor {number}")
    (HERE / "made").write_text("")
    expect(os.read(inotify, 1000), "inotify is silent")


judge(main)
