"""Urgent bytes that wait in TCP connections: alone, before others, and read before what was sent behind them."""

import select
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from ready import HERE, expect, judge, ready_and_wait, same


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


def main() -> None:
    pairs = [connection() for _ in range(4)]
    (_, alone), (_, before), (_, behind), (_, read) = pairs
    for number, (near, far) in enumerate(pairs):
        if far in (before, behind):
            near.send(b"12")
        near.send(b"!", socket.MSG_OOB)
        if far is not alone:
            near.send(b"34")
            expect(select.select([], [], [far], 100)[2], f"urgent byte {number}")
    for far in (behind, read):
        select.select([], [], [far], 100)
        same(far.recv(1, socket.MSG_OOB), b"!", "an urgent byte, before")
    same(behind.recv(2), b"12", "what was sent before it, before")
    for far in (read, behind):
        select.select([far], [], [], 100)
    select.select([], [], [alone], 100)
    (HERE / "numbers").write_text(" ".join(str(far.fileno()) for _, far in pairs))
    ready_and_wait()
    for far in (alone, before):
        same(far.recv(1, socket.MSG_OOB), b"!", "an urgent byte")
    same(before.recv(2), b"12", "what was sent before it")
    for far in (before, behind, read):
        same(far.recv(2), b"34", "what was sent behind it")


judge(main)
