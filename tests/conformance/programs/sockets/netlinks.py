"""Netlink sockets that listen, unbound ones, and such with a packet filter; and a filter of a UDP socket."""

import ctypes
import socket
import struct

from ready import expect, judge, ready_and_wait, same

SOL_NETLINK = 270
ADD_MEMBERSHIP, LIST_MEMBERSHIPS, EXT_ACK, STRICT = 1, 9, 11, 12
ATTACH_FILTER, LOCK_FILTER = 26, 44
ROUTE, EVENTS = 0, 15
ALL_BUT_SHORT = ((0x80, 0, 0, 0), (0x25, 0, 1, 14), (0x6, 0, 0, 0xFFFF), (0x6, 0, 0, 0))
"""Load the length; above 14 bytes, of which 8 are the header: take all of it; else nothing."""
NOTHING = ((0x6, 0, 0, 0),)
"""Devices that others add and remove are not to be heard of."""
GET_LINKS = struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0)


def attach(sock: socket.socket, program: tuple[tuple[int, int, int, int], ...]) -> None:
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    room = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HxxxxxxN", len(program), ctypes.addressof(room)))


def seen(sock: socket.socket) -> tuple[object, ...]:
    options = [sock.getsockopt(SOL_NETLINK, option) for option in (EXT_ACK, STRICT)]
    groups = sock.getsockopt(SOL_NETLINK, LIST_MEMBERSHIPS, 128)
    return sock.getsockname(), options, groups, sock.getsockopt(socket.SOL_SOCKET, LOCK_FILTER)


def main() -> None:
    listening, unbound, events = (
        socket.socket(socket.AF_NETLINK, kind, protocol)
        for kind, protocol in ((socket.SOCK_RAW, ROUTE), (socket.SOCK_DGRAM, ROUTE), (socket.SOCK_RAW, EVENTS))
    )
    listening.bind((0, 1 | 0x10))
    listening.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, 33)
    unbound.setsockopt(SOL_NETLINK, EXT_ACK, 1)
    unbound.setsockopt(SOL_NETLINK, STRICT, 1)
    attach(events, NOTHING)
    events.bind((0, 1))
    events.setsockopt(socket.SOL_SOCKET, LOCK_FILTER, 1)
    datagrams, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    datagrams.bind(("127.0.0.1", 0))
    attach(datagrams, ALL_BUT_SHORT)
    before = [seen(sock) for sock in (listening, unbound, events)]
    ready_and_wait()

    same([seen(sock) for sock in (listening, unbound, events)], before, "netlink sockets")
    for sock in (unbound, listening):
        sock.send(GET_LINKS)
        expect(len(sock.recv(65536)) > 16, "no link was told")
    for text in (b"short", b"long enough for the filter"):
        sender.sendto(text, datagrams.getsockname())
    same(datagrams.recv(100), b"long enough for the filter", "what the filter let pass")
    same(events.getsockopt(socket.SOL_SOCKET, LOCK_FILTER), 1, "the lock of a filter")


judge(main)
