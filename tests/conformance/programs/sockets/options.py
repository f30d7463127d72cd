"""Every option of sockets that the kernel lets one read and change: each comes back as it was."""

import socket
import struct
from contextlib import suppress

from ready import judge, ready_and_wait, same

LEVELS = {socket.AF_UNIX: (1,), socket.AF_INET: (1, 0, 6, 17), socket.AF_INET6: (1, 0, 41, 6, 17)}
NAMES = range(111)
TCP_FASTOPEN_KEY = 33
BEFORE_CONNECT = (23, 34)
"""TCP_FASTOPEN and TCP_FASTOPEN_NO_COOKIE: nobody can set them later."""
OF_THE_KERNEL = {
    (1, 8),  # SO_RCVBUF: the kernel sizes them where the program did not
    (1, 7),
    (1, 17),  # SO_PEERCRED: the restorer
    (1, 31),  # SO_PEERSEC
    (1, 49),  # SO_INCOMING_CPU
    (1, 55),  # SO_MEMINFO
    (1, 56),  # SO_INCOMING_NAPI_ID
    (1, 57),  # SO_COOKIE
    (1, 59),  # SO_PEERGROUPS
    (1, 77),  # SO_PEERPIDFD
    (1, 71),  # SO_NETNS_COOKIE
    (6, 2),  # TCP_MAXSEG: of a connection, what came of it
    (6, 10),  # TCP_WINDOW_CLAMP
    (6, 11),  # TCP_INFO
    (6, 12),  # TCP_QUICKACK
    (6, 24),  # TCP_TIMESTAMP
    (6, 26),  # TCP_CC_INFO
    (6, 28),  # TCP_SAVED_SYN
    (6, 35),  # TCP_ZEROCOPY_RECEIVE
    (0, 9),  # IP_PKTOPTIONS
    (41, 6),  # IPV6_2292PKTOPTIONS
    (41, 17),  # IPV6_MULTICAST_IF: the number of a device of this host
    (41, 26),  # IPV6_V6ONLY, which bind() sets
}
OF_THE_ROUTE = {
    (0, 14),  # IP_MTU
    (41, 18),  # IPV6_MULTICAST_HOPS, where nobody has set it
    (41, 24),  # IPV6_MTU
    (41, 61),  # IPV6_PATHMTU
}
"""What a connection says of its route, or of none: it looks for one whenever it sends something, as a timer has it."""
UNTOUCHED = OF_THE_KERNEL | {
    (1, 42),  # SO_PEEK_OFF is refused
    (1, 36),  # SO_MARK, as this takes a privilege
    (1, 44),  # SO_LOCK_FILTER cannot be taken back
    (1, 61),  # SO_TXTIME
    (1, 62),  # SO_BINDTOIFINDEX: no packet would come any more
    (1, 65),  # SO_TIMESTAMPING_NEW
    (1, 16),  # SO_PASSCRED makes messages
    (1, 76),
    (0, 4),  # IP_OPTIONS
    (0, 19),  # IP_TRANSPARENT, as this takes a privilege
    (0, 21),  # IP_MINTTL, IPV6_MINHOPCOUNT: packets would not come
    (41, 73),
    (0, 50),  # IP_UNICAST_IF
    (6, 19),  # TCP_REPAIR
    (6, 30),  # TCP_FASTOPEN_CONNECT
    (6, 31),  # TCP_ULP
    (6, 37),  # TCP_TX_DELAY
    (6, 18),  # TCP_USER_TIMEOUT of a millisecond ends a connection
    (6, 9),  # TCP_DEFER_ACCEPT: connections are not accepted at once
    (17, 1),  # UDP_CORK
    (17, 100),  # UDP_ENCAP is refused
    (17, 103),  # UDP_SEGMENT
    (41, 75),  # IPV6_TRANSPARENT, as this takes a privilege
    (41, 76),  # IPV6_UNICAST_IF
}


def change(sock: socket.socket) -> None:
    """Give every option a value that it has not by itself."""
    for level in LEVELS[sock.family]:
        for name in NAMES:
            before = value(sock, level, name)
            if before is None or not 0 < len(before) <= 8 or (level, name) in UNTOUCHED:
                continue
            for number in (1, 2, 0, 1000):
                try:
                    sock.setsockopt(level, name, struct.pack("<q", number)[: len(before)])
                except OSError:
                    continue
                if value(sock, level, name) != before:
                    break


def value(sock: socket.socket, level: int, name: int) -> bytes | None:
    try:
        return sock.getsockopt(level, name, 64)
    except OSError:
        return None


def values(sock: socket.socket) -> dict[tuple[int, int], bytes | None]:
    keys = [(level, name) for level in LEVELS[sock.family] for name in NAMES]
    if sock.type == socket.SOCK_STREAM:
        keys = [key for key in keys if key not in OF_THE_ROUTE]
    return {key: value(sock, *key) for key in keys if key not in OF_THE_KERNEL}


def main() -> None:
    kept: list[socket.socket] = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.bind((host, 0))
        except OSError:
            continue
        plain, listener = socket.socket(family), socket.socket(family)
        for sock in (plain, listener):
            with suppress(OSError):  # a kernel without
                sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_KEY, bytes(range(16)))
        change(plain)
        listener.bind((host, 0))
        listener.listen()
        change(listener)
        client = socket.socket(family)
        for name in BEFORE_CONNECT:
            with suppress(OSError):  # a kernel without
                client.setsockopt(socket.IPPROTO_TCP, name, 1)
        client.connect(listener.getsockname()[:2])
        server = listener.accept()[0]
        for lingers in (1, 0):  # of one that lingers no more the time is still told
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("2i", lingers, 7))
        change(client)
        datagrams, connected = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        datagrams.bind((host, 0))
        change(datagrams)
        connected.connect(datagrams.getsockname())
        change(connected)
        kept += [plain, listener, client, server, datagrams, connected]
    unix = socket.socket(socket.AF_UNIX)
    change(unix)
    pair = socket.socketpair()
    change(pair[0])
    kept += [unix, *pair]
    before = [values(sock) for sock in kept]
    ready_and_wait()

    for sock, were in zip(kept, before, strict=True):
        now = values(sock)
        changed = {key: (were[key], now[key]) for key in were if now[key] != were[key]}
        same(changed, {}, f"options of {sock}")


judge(main)
