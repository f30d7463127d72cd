"""What unix, TCP and UDP sockets have in common: options, queues, names, and connections.

Copies of a target's sockets are read with raw system calls. If ``socket.setdefaulttimeout()`` was called, Python's
``socket`` class would make a copy non-blocking, and with it the target's own descriptor.

Options are kept if they differ from those of a new socket, and are restored only if they are in OPTIONS: an image is
not trusted to set others. An option that this kernel does not have (ENOPROTOOPT) was never set.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from torpor import procfs
from torpor._native import ffi, lib
from torpor.arch.x86_64 import NR
from torpor.errors import Reason
from torpor.image.image_pb2 import SockOpt
from torpor.objects.kind import Family, Unsupported
from torpor.objects.sockets import buffers
from torpor.objects.sockets.addresses import SOCKADDR_IN
from torpor.objects.sockets.peeking import OFF, SO_PEEK_OFF
from torpor.remote.sys import Words, syscall

# include/uapi/asm-generic/socket.h, where Python's socket module has no name for it
SO_GET_FILTER = 26
SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING = 29, 35, 37
SO_MEMINFO = 55
SO_ZEROCOPY = 60
SO_PASSPIDFD = 76
TCP_ULP = 31
_INSTRUCTION = 8
"""sizeof(struct sock_filter)."""

Key = tuple[int, int]
"""The level and the name of an option."""

_SOL = socket.SOL_SOCKET
GENERAL: dict[Key, int] = {
    (_SOL, socket.SO_REUSEADDR): 4,
    (_SOL, socket.SO_REUSEPORT): 4,
    (_SOL, socket.SO_DONTROUTE): 4,
    (_SOL, socket.SO_BROADCAST): 4,
    (_SOL, socket.SO_KEEPALIVE): 4,
    (_SOL, socket.SO_OOBINLINE): 4,
    (_SOL, socket.SO_PRIORITY): 4,
    (_SOL, socket.SO_LINGER): 8,
    (_SOL, socket.SO_RCVLOWAT): 4,
    (_SOL, socket.SO_RCVTIMEO): 16,
    (_SOL, socket.SO_SNDTIMEO): 16,
    (_SOL, SO_TIMESTAMP): 4,
    (_SOL, SO_TIMESTAMPNS): 4,
    (_SOL, SO_TIMESTAMPING): 4,
    (_SOL, SO_ZEROCOPY): 4,
    (_SOL, socket.SO_BINDTODEVICE): 16,
    (_SOL, socket.SO_MARK): 4,
    (_SOL, 1): 4,  # SO_DEBUG
    (_SOL, 11): 4,  # SO_NO_CHECK
    (_SOL, 40): 4,  # SO_RXQ_OVFL
    (_SOL, 41): 4,  # SO_WIFI_STATUS
    (_SOL, 43): 4,  # SO_NOFCS
    (_SOL, 45): 4,  # SO_SELECT_ERR_QUEUE
    (_SOL, 46): 4,  # SO_BUSY_POLL
    (_SOL, 47): 8,  # SO_MAX_PACING_RATE
    (_SOL, 63): 4,  # SO_TIMESTAMP_NEW
    (_SOL, 64): 4,  # SO_TIMESTAMPNS_NEW
    (_SOL, 69): 4,  # SO_PREFER_BUSY_POLL
    (_SOL, 74): 4,  # SO_TXREHASH
    (_SOL, 75): 4,  # SO_RCVMARK
    (_SOL, 82): 4,  # SO_RCVPRIORITY
}
UNIX: dict[Key, int] = {
    (_SOL, socket.SO_PASSCRED): 4,
    (_SOL, socket.SO_PASSSEC): 4,
    (_SOL, SO_PASSPIDFD): 4,
    (_SOL, 83): 4,  # SO_PASSRIGHTS
}
RECEIVED: dict[Key, int] = {
    (socket.IPPROTO_IP, 6): 4,  # IP_RECVOPTS
    (socket.IPPROTO_IP, 7): 4,  # IP_RETOPTS
    (socket.IPPROTO_IP, 8): 4,  # IP_PKTINFO
    (socket.IPPROTO_IP, 12): 4,  # IP_RECVTTL
    (socket.IPPROTO_IP, 13): 4,  # IP_RECVTOS
    (socket.IPPROTO_IP, 18): 4,  # IP_PASSSEC
    (socket.IPPROTO_IP, 20): 4,  # IP_RECVORIGDSTADDR
    (socket.IPPROTO_IP, 21): 4,  # IP_MINTTL
    (socket.IPPROTO_IP, 23): 4,  # IP_CHECKSUM
    (socket.IPPROTO_IP, 26): 4,  # IP_RECVERR_RFC4884
}
"""Options for what comes with a packet, and which packets come."""
RECEIVED6: dict[Key, int] = {
    (socket.IPPROTO_IPV6, name): 4
    # IPV6_2292PKTINFO to 2292RTHDR, 2292HOPLIMIT, FLOWINFO, MTU_DISCOVER, RECVERR_RFC4884, FLOWINFO_SEND,
    # RECVHOPLIMIT, RECVHOPOPTS, RECVRTHDR, RECVDSTOPTS, RECVPATHMTU, DONTFRAG, RECVTCLASS, AUTOFLOWLABEL,
    # MINHOPCOUNT, RECVORIGDSTADDR, RECVFRAGSIZE
    for name in (2, 3, 4, 5, 8, 11, 23, 31, 33, 51, 53, 56, 58, 60, 62, 66, 70, 73, 74, 77)
}
TCP: dict[Key, int] = {
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 4,
    (socket.IPPROTO_TCP, socket.TCP_CORK): 4,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 4,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 4,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT): 4,
    (socket.IPPROTO_TCP, socket.TCP_LINGER2): 4,
    (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT): 4,
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION): 16,
    (socket.IPPROTO_TCP, 18): 4,  # TCP_USER_TIMEOUT
    (socket.IPPROTO_TCP, 23): 4,  # TCP_FASTOPEN
    (socket.IPPROTO_TCP, 25): 4,  # TCP_NOTSENT_LOWAT
    (socket.IPPROTO_IP, socket.IP_TOS): 4,
    (socket.IPPROTO_IP, socket.IP_TTL): 4,
    (socket.IPPROTO_IP, 10): 4,  # IP_MTU_DISCOVER
    (socket.IPPROTO_IP, 11): 4,  # IP_RECVERR
    (socket.IPPROTO_IP, 15): 4,  # IP_FREEBIND
    (socket.IPPROTO_IP, socket.IP_TRANSPARENT): 4,
    (socket.IPPROTO_IP, 24): 4,  # IP_BIND_ADDRESS_NO_PORT
    (socket.IPPROTO_IP, 51): 4,  # IP_LOCAL_PORT_RANGE
    (socket.IPPROTO_TCP, 16): 4,  # TCP_THIN_LINEAR_TIMEOUTS
    (socket.IPPROTO_TCP, 27): 4,  # TCP_SAVE_SYN
    (socket.IPPROTO_TCP, 33): 32,  # TCP_FASTOPEN_KEY: one key, or two
    (socket.IPPROTO_TCP, 36): 4,  # TCP_INQ
    (socket.IPPROTO_TCP, 34): 4,  # TCP_FASTOPEN_NO_COOKIE
    (socket.IPPROTO_TCP, 44): 4,  # TCP_RTO_MAX_MS
    (socket.IPPROTO_TCP, 45): 4,  # TCP_RTO_MIN_US
    (socket.IPPROTO_TCP, 46): 4,  # TCP_DELACK_MAX_US
    (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP): 4,
    (socket.IPPROTO_IP, 49): 4,  # IP_MULTICAST_ALL
    **RECEIVED,
}
TCP6: dict[Key, int] = {
    **RECEIVED6,
    (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP): 4,
    (socket.IPPROTO_IPV6, 29): 4,  # IPV6_MULTICAST_ALL
    (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO): 4,
    (socket.IPPROTO_IPV6, 25): 4,  # IPV6_RECVERR
    (socket.IPPROTO_IPV6, 30): 4,  # IPV6_ROUTER_ALERT_ISOLATE
    (socket.IPPROTO_IPV6, 72): 4,  # IPV6_ADDR_PREFERENCES
    (socket.IPPROTO_IPV6, 78): 4,  # IPV6_FREEBIND
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY): 4,
    (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS): 4,
    (socket.IPPROTO_IPV6, socket.IPV6_TCLASS): 4,
}
UDP: dict[Key, int] = {
    (socket.IPPROTO_UDP, 1): 4,  # UDP_CORK
    (socket.IPPROTO_UDP, 101): 4,  # UDP_NO_CHECK6_TX
    (socket.IPPROTO_UDP, 102): 4,  # UDP_NO_CHECK6_RX
    (socket.IPPROTO_UDP, 103): 4,  # UDP_SEGMENT
    (socket.IPPROTO_UDP, 104): 4,  # UDP_GRO
    (socket.IPPROTO_IP, socket.IP_TOS): 4,
    (socket.IPPROTO_IP, socket.IP_TTL): 4,
    **RECEIVED,
    (socket.IPPROTO_IP, 10): 4,  # IP_MTU_DISCOVER
    (socket.IPPROTO_IP, 11): 4,  # IP_RECVERR
    (socket.IPPROTO_IP, 24): 4,  # IP_BIND_ADDRESS_NO_PORT
    (socket.IPPROTO_IP, 25): 4,  # IP_RECVFRAGSIZE
    (socket.IPPROTO_IP, 51): 4,  # IP_LOCAL_PORT_RANGE
    (socket.IPPROTO_IP, 15): 4,  # IP_FREEBIND
    (socket.IPPROTO_IP, socket.IP_TRANSPARENT): 4,
    (socket.IPPROTO_IP, socket.IP_MULTICAST_TTL): 4,
    (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP): 4,
    (socket.IPPROTO_IP, socket.IP_MULTICAST_IF): 4,
    (socket.IPPROTO_IP, 49): 4,  # IP_MULTICAST_ALL
}
UDP6: dict[Key, int] = {
    (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO): 4,
    (socket.IPPROTO_IPV6, 25): 4,  # IPV6_RECVERR
    (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS): 4,
    (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP): 4,
    (socket.IPPROTO_IPV6, 29): 4,  # IPV6_MULTICAST_ALL
}
NETLINK: dict[Key, int] = {
    # PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK, GET_STRICT_CHK
    (270, name): 4
    for name in (3, 4, 5, 8, 10, 11, 12)
}
_FAMILY: tuple[tuple[Key, int], ...] = tuple(
    ((_SOL, name), 4) for name in (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_PROTOCOL)
)
_LINGER: Key = (_SOL, socket.SO_LINGER)
_LINGERS = struct.Struct("=2i")
"""struct linger."""
FILTER: Key = (_SOL, SO_GET_FILTER)
FILTERS: dict[Key, int] = {FILTER: 4096 * 8, (_SOL, 44): 4}
"""Options of sockets that may have a packet filter (SO_ATTACH_FILTER): the struct sock_filters, and SO_LOCK_FILTER."""
BUFFERS: dict[Key, int] = {(_SOL, name): 4 for name in buffers.LOCKS}

PRIVILEGED: dict[Key, str] = {
    (_SOL, 1): "SO_DEBUG",
    (_SOL, socket.SO_MARK): "SO_MARK",
    (_SOL, 69): "SO_PREFER_BUSY_POLL",
    (socket.IPPROTO_IP, socket.IP_TRANSPARENT): "IP_TRANSPARENT",
}
"""Options that need CAP_NET_ADMIN: kept for root."""

OPTIONS: dict[Key, int] = {
    **GENERAL, **UNIX, **TCP, **TCP6, **UDP, **UDP6, **NETLINK, **FILTERS, **BUFFERS
}  # fmt: skip
"""Every option that is kept, and the size of its value in bytes."""


def getsockopt(fd: int, level: int, name: int, size: int = 4) -> bytes:
    """The value of an option. Raises OSError."""
    value, length = bytearray(size), array("I", (size,))
    syscall(NR.getsockopt, fd, level, name, value, length)
    return bytes(value[: length[0]])


def number(fd: int, level: int, name: int) -> int:
    """The value of an int option. Raises OSError."""
    return int(struct.unpack("i", getsockopt(fd, level, name))[0])


def family_of(fd: int) -> Family:
    """The family, type and protocol of a socket."""
    return Family(*(int.from_bytes(value, "little") for value in _values(fd, _FAMILY).values()))


def queued(fd: int, request: int = termios.FIONREAD) -> int:
    """The bytes in the receive queue, or the count of another ioctl."""
    return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])


def used_memory(fd: int) -> int:
    """The memory that a socket's receive queue takes, overhead included, in bytes (SK_MEMINFO_RMEM_ALLOC)."""
    return int(struct.unpack_from("=I", getsockopt(fd, _SOL, SO_MEMINFO, 36))[0])


def disconnect(fd: int) -> None:
    """Disconnect a datagram socket from its peer (connect(2), AF_UNSPEC)."""
    syscall(NR.connect, fd, bytes(SOCKADDR_IN), SOCKADDR_IN)


def events(fd: int) -> int:
    """The poll() events of a socket."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP)
    return next((found for _, found in poll.poll(0)), 0)


def options(fd: int, wanted: dict[Key, int]) -> dict[Key, bytes]:
    """The values of those options that the kernel has for this socket; buffer sizes only if the program chose them."""
    sized = {key: size for key, size in wanted.items() if key != FILTER}
    found = _values(fd, tuple(sized.items()))
    if FILTER in wanted and (program := _filter(fd)) is not None:
        found = {FILTER: program, **found}  # to be set before SO_LOCK_FILTER
    lock = if_known(fd, _SOL, buffers.SO_BUF_LOCK, 4)
    # A kernel before 5.14 does not say who chose the size: then the size is not restored.
    locked = struct.unpack("i", lock)[0] if lock else 0
    for name, bit in buffers.LOCKS.items():
        if locked & bit:
            found[_SOL, name] = getsockopt(fd, _SOL, name)
    return found


def _values(fd: int, wanted: tuple[tuple[Key, int], ...]) -> dict[Key, bytes]:
    """The values of those options that the kernel has for this socket. `wanted` has the size of each."""
    asked, rooms = bytearray(_request(wanted)), bytearray(sum(room for _, room in wanted))
    with ffi.from_buffer("struct tp_option[]", asked) as request, ffi.from_buffer("uint8_t[]", rooms) as values:
        lib.tp_getsockopts(fd, request, len(wanted), values)
    found: dict[Key, bytes] = {}
    at = 0
    for (key, room), (length,) in zip(wanted, struct.iter_unpack("=12xi", asked), strict=True):
        if length >= 0:
            found[key] = bytes(rooms[at : at + length])
        elif -length not in buffers.NOT_HERE:
            raise OSError(-length, os.strerror(-length), NR.getsockopt.name)
        at += room
    return found


@cache
def _request(wanted: tuple[tuple[Key, int], ...]) -> bytes:
    """An array of struct tp_option (native/torpor.h)."""
    return b"".join(struct.pack("=2iIi", *key, room, 0) for key, room in wanted)


def if_known(fd: int, level: int, name: int, size: int) -> bytes | None:
    """The value of an option; None if the kernel does not have it for this socket."""
    try:
        return getsockopt(fd, level, name, size)
    except OSError as error:
        if error.errno in buffers.NOT_HERE:
            return None
        raise


@cache
def defaults(family: Family, wanted: tuple[Key, ...]) -> dict[Key, bytes]:
    """The options of a new socket."""
    fd = syscall(NR.socket, family.family, family.type | socket.SOCK_CLOEXEC, family.protocol)
    try:
        return options(fd, {key: OPTIONS[key] for key in wanted})
    finally:
        os.close(fd)


def non_default_options(family: Family, found: dict[Key, bytes], wanted: dict[Key, int]) -> Iterator[SockOpt]:
    """The options that differ from those of a new socket."""
    fresh = defaults(family, tuple(wanted))
    for (level, name), value in found.items():
        if fresh.get((level, name)) != value:
            yield SockOpt(level=level, name=name, value=value)


@dataclass(kw_only=True)
class SocketState:
    """The state of any socket."""

    family: Family
    options: dict[Key, bytes]
    filter: bool
    """Whether it has a packet filter."""
    peek_offset: int
    """SO_PEEK_OFF. If it is not negative, it is on: then peeking at its queue would change it."""
    events: int
    """The poll() events."""
    queued: int
    """Bytes in the receive queue."""

    @property
    def may_hold_messages(self) -> bool:
        """Whether messages may wait in it, or did at an earlier look that has left a note."""
        return bool(self.events & select.POLLIN) or self.peek_offset != OFF


def look(fd: int, wanted: dict[Key, int], *, listening: bool) -> SocketState:
    """Read the state of any socket."""
    peek_offset = if_known(fd, _SOL, SO_PEEK_OFF, 4)
    return SocketState(
        family=family_of(fd),
        options=options(fd, wanted),
        filter=_has_filter(fd),
        peek_offset=OFF if peek_offset is None else struct.unpack("i", peek_offset)[0],
        events=events(fd),
        queued=0 if listening else queued(fd),
    )


def unsupported(state: SocketState, pid: int) -> Iterator[Unsupported]:
    """Say what cannot be kept of any socket; `pid` is a process that has it."""
    with suppress(FileNotFoundError):  # thawed, and ended since: the check before the freeze holds
        if not os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/self/ns/net")):
            yield Unsupported(
                "its process has a network of its own", "checkpoint it from within that network namespace"
            )
    if state.filter and FILTER not in state.options:
        yield Unsupported("it has a packet filter (SO_ATTACH_FILTER), which is not kept", "detach the filter")
    if state.peek_offset >= 0:
        yield Unsupported("it is read with an offset (SO_PEEK_OFF), which is not kept", "set the offset to -1")
    for key, words in PRIVILEGED.items() if not procfs.is_root() else ():
        if any(state.options.get(key, b"")):
            yield Unsupported(f"its option {words} needs a privilege to be set again", "clear the option")


def _filter(fd: int) -> bytes | None:
    """A socket's packet filter, empty if it has none; None if it cannot be read, or is an extended BPF program."""
    value, length = bytearray(FILTERS[FILTER]), array("I", (FILTERS[FILTER] // _INSTRUCTION,))
    try:
        syscall(NR.getsockopt, fd, _SOL, SO_GET_FILTER, value, length)  # the length counts instructions
    except OSError:
        return None
    return bytes(value[: length[0] * _INSTRUCTION])


def _has_filter(fd: int) -> bool:
    value, length = bytearray(4), array("I", (0,))
    try:
        syscall(NR.getsockopt, fd, _SOL, SO_GET_FILTER, value, length)
    except OSError as error:
        # MPTCP has no filters; EACCES: it has one that may not be read (net/core/filter.c, sk_get_filter)
        return error.errno not in buffers.NOT_HERE
    return length[0] > 0


def validate_options(found: Iterable[SockOpt], subject: str) -> Iterator[Reason]:
    """Say which options in an image a checkpoint never writes."""
    for option in found:
        size = OPTIONS.get((option.level, option.name))
        odd = (option.level, option.name) == FILTER and (not option.value or len(option.value) % _INSTRUCTION)
        odd |= (option.level, option.name) in BUFFERS and len(option.value) != size
        if size is None or len(option.value) > size or odd:
            yield Reason("the image", f"{subject} has option {option.level}/{option.name}, which is never kept")
        elif not procfs.is_root() and any(option.value) and (option.level, option.name) in PRIVILEGED:
            why = f"its option {PRIVILEGED[option.level, option.name]} needs a privilege to be set again"
            yield Reason(subject, why, "restore it as root")


def set_options(
    sock: socket.socket, found: Iterable[SockOpt], wanted: dict[Key, int], fixed: frozenset[Key] = frozenset()
) -> None:
    """Set a socket's options to those in `found`, and the others to those of a new socket.

    An accepted socket has inherited some from its listener.

    Args:
        sock: the socket.
        found: from the image.
        wanted: the options of such a socket.
        fixed: options that cannot be changed any more.

    Raises:
        OSError: its text names the option.
    """
    family = family_of(sock.fileno())
    target = defaults(family, tuple(wanted)) | {(option.level, option.name): option.value for option in found}
    for _ in range(2):  # one may change another: IP_TOS sets SO_PRIORITY (net/ipv4/ip_sockglue.c, __ip_sock_set_tos)
        now = options(sock.fileno(), wanted)
        changed = [key for key, value in target.items() if now.get(key) != value and key not in fixed]
        for key in changed:
            set_option(sock, key, target[key])
        if not changed:
            break


def set_option(sock: socket.socket, key: Key, value: bytes) -> None:
    """Set an option to the value that `options` returned. Raises OSError that names the option."""
    try:
        if key in BUFFERS:
            buffers.set_size(sock, key[1], struct.unpack("i", value)[0])
        elif key == FILTER:
            program = Words(len(value) // _INSTRUCTION, value)  # struct sock_fprog
            syscall(NR.setsockopt, sock.fileno(), *key, program, 2 * 8)
        else:
            if key == _LINGER and not _LINGERS.unpack(value)[0]:
                # The time is set only while lingering is on, but is also returned later (net/core/sock.c,
                # sk_setsockopt).
                sock.setsockopt(*key, _LINGERS.pack(1, _LINGERS.unpack(value)[1]))
            sock.setsockopt(*key, value)
    except OSError as error:
        text = f"option {key[0]}/{key[1]} cannot be set: {error.strerror}"
        raise OSError(error.errno, text) from error
