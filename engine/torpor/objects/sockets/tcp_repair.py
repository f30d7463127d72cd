"""TCP connections to the outside that go on (`torpor checkpoint --then kill --tcp=keep`), by TCP_REPAIR.

In repair mode (CAP_NET_ADMIN) the kernel shows and sets sequence numbers, queues, window and options of a connection,
and closing it sends nothing to the peer. The program must never have a socket in that mode, whatever happens to us. So
nothing is touched while it lives: the snapshot is published first, with the connection as one that was reset. Then we
copy its descriptors, and the tree is killed. Only now, when we alone have the sockets, their state is written to a file
of root's in RUN, and they are closed silently. A socket filter drops what arrives meanwhile, without an answer. If this
process is killed after the tree, the connections end, and are restored as reset.

A restore makes the connection again in repair mode behind the same filter, and releases it together with the tree; then
it removes the file. If there is no file, or the address or the privilege is missing, the connection is reset, and the
restore says so. So a connection goes on at most once: two programs on one connection would mix their bytes. The file
lasts until the host reboots.

While nobody has the connection, the kernel answers its peer with a reset, as for every unknown connection: a peer that
sends data or a keepalive in that time ends it. No firewall rule is left behind to prevent that.

Kept: sequence numbers, both queues, window, time stamps, window scale, SACK, maximum segment size, options, and that
one side has closed (see `torpor.objects.sockets.tcp_close`). Not kept, and reset: connections that are not established
yet, that both sides have closed, that processes outside of the tree have too, MPTCP, and those with a protocol in the
kernel (TLS). Not kept at all: the state of congestion control, ECN, urgent data.

Documented in: net/ipv4/tcp.c (do_tcp_setsockopt, TCP_REPAIR), include/uapi/linux/tcp.h; socket(7), SO_ATTACH_FILTER.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import termios
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import CheckpointFailed, NotPermitted
from torpor.image.image_pb2 import KeptConnection, TcpSocket
from torpor.objects.kind import FdReference, copy_unless_ended
from torpor.objects.sockets import addresses, buffers, common, peeking, tcp_close
from torpor.objects.sockets.tcp_states import State
from torpor.remote.sys import Words, syscall
from torpor.util.strict_protobuf import parse

RUN = Path("/run/torpor/connections")
CAP_NET_ADMIN = 12
NAME_LENGTH = 32

# include/uapi/linux/tcp.h, asm-generic/socket.h, linux/filter.h
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OPTIONS = 19, 20, 21, 22
TCP_TIMESTAMP, TCP_REPAIR_WINDOW = 24, 29
REPAIR_ON, REPAIR_OFF = 1, 0
NO_QUEUE, RECV_QUEUE, SEND_QUEUE = 0, 1, 2
OPTION_MSS, OPTION_WINDOW, OPTION_SACK, OPTION_TIMESTAMP = 2, 3, 4, 8
INFO_TIMESTAMPS, INFO_SACK, INFO_WSCALE = 1, 2, 4
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
DROP = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""struct sock_filter: return 0 bytes of every packet."""
WINDOW = struct.Struct("=5I")
"""struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup."""
WE_ENDED = frozenset({State.FIN_WAIT1, State.FIN_WAIT2})
GO_ON = WE_ENDED | {State.ESTABLISHED, State.CLOSE_WAIT}
"""States in which a connection can be made again."""
SIOCOUTQNSD = 0x894B
"""The bytes that were written but not sent yet (include/uapi/linux/sockios.h)."""
SETTLING, PAUSE = 0.3, 0.005
"""In seconds. A peer may delay an acknowledgement by 0.2 s (TCP_DELACK_MAX)."""
PIECE = 32 << 10
"""Bytes that are put into a queue at once."""

_TCP = socket.IPPROTO_TCP


def can_keep() -> bool:
    """Whether this process may put connections into repair mode."""
    status = procfs.status(procfs.read("/proc/self/status"))
    return procfs.is_root() and bool(int(status[b"CapEff"], 16) >> CAP_NET_ADMIN & 1)


def require() -> None:
    """Raise NotPermitted if connections cannot be kept."""
    if not can_keep():
        raise NotPermitted(
            "TCP connections to the outside can be kept by root only, with CAP_NET_ADMIN",
            advice="do without --tcp=keep: the program then sees them reset",
        )


def new_name() -> str:
    """A new name for a connection's file."""
    return os.urandom(NAME_LENGTH // 2).hex()


def is_name(text: str) -> bool:
    """Whether an image's name for a file is valid."""
    return len(text) == NAME_LENGTH and all(c in "0123456789abcdef" for c in text)


@dataclass
class Hold:
    """Copies of connections that will go on. A context manager: its exit closes them."""

    _copies: dict[str, int] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, name: str, holder: FdReference) -> None:
        """Copy a descriptor of a frozen process; nothing else is done to it.

        Args:
            name: of the connection's file.
            holder: the process and its descriptor.
        """
        if (copy := copy_unless_ended(holder)) is not None:
            self._copies[name] = copy
            self._stack.callback(os.close, copy)

    def save(self, snapshot: str) -> None:
        """Write the state of all connections, and close them silently. Their processes have ended.

        Raises:
            CheckpointFailed: some cannot be kept, and end; the others are.
        """
        if not self._copies:
            return
        failure: OSError | None = None
        try:
            RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
            _settle(self._copies.values())
            shared = _held_by_others()
            for name, copy in self._copies.items():
                if os.fstat(copy).st_ino in shared:
                    continue
                try:
                    if state := _read(copy):
                        _write(name, state)
                except OSError as error:
                    failure = error
        except OSError as error:
            failure = error
        if failure:
            raise CheckpointFailed(
                f"snapshot {snapshot} is saved and its processes have ended, but not all of their TCP connections could"
                f" be kept: {failure.strerror}",
                advice="restore it: the program sees those that were not kept as reset",
            ) from failure


def _write(name: str, state: KeptConnection) -> None:
    draft = RUN / f"{name}.draft"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(state.SerializeToString())
    draft.rename(RUN / name)


def _settle(copies: Collection[int]) -> None:
    """Let both sides acknowledge what they have: later, an acknowledgement would be answered by a reset."""
    for copy in copies:
        _set(copy, socket.TCP_QUICKACK, 1)  # sends a due acknowledgement
    deadline = time.monotonic() + SETTLING
    while any(common.queued(copy, termios.TIOCOUTQ) != common.queued(copy, SIOCOUTQNSD) for copy in copies):
        if time.monotonic() > deadline:
            return
        time.sleep(PAUSE)


def _held_by_others() -> set[int]:
    """The inodes of the sockets that other processes have."""
    links = (link for _, _, link in procfs.open_descriptors({os.getpid()}))
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def _read(copy: int) -> KeptConnection | None:
    """The state of a connection, which stays in repair mode; None if it is too far closed to go on. Raises OSError."""
    _filter(copy)
    info = common.getsockopt(copy, _TCP, socket.TCP_INFO, 192)
    if info[0] not in GO_ON:
        syscall(NR.setsockopt, copy, socket.SOL_SOCKET, SO_DETACH_FILTER, bytes(4), 4)  # the value does not matter
        return None
    _set(copy, TCP_REPAIR, REPAIR_ON)
    state = KeptConnection(
        local=addresses.local_name(copy),
        remote=addresses.peer_name(copy),
        we_ended=info[0] in WE_ENDED,
        peer_ended=info[0] == State.CLOSE_WAIT,
        mss=common.number(copy, _TCP, socket.TCP_MAXSEG),
        options=info[5],
        scales=info[6],
        timestamp=common.number(copy, _TCP, TCP_TIMESTAMP) & 0xFFFFFFFF,
        window=common.getsockopt(copy, _TCP, TCP_REPAIR_WINDOW, WINDOW.size),
    )
    _set(copy, TCP_REPAIR_QUEUE, RECV_QUEUE)
    state.received_until = common.number(copy, _TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF
    if size := common.queued(copy):
        state.received = peeking.peek(copy, size).content
    _set(copy, TCP_REPAIR_QUEUE, SEND_QUEUE)
    state.sent_until = common.number(copy, _TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF
    if size := common.queued(copy, termios.TIOCOUTQ):
        state.sent = peeking.peek(copy, size).content
    return state


# Restore


def find(tcp: TcpSocket) -> KeptConnection | None:
    """The state of an image's connection, if it exists and may go on here."""
    if not can_keep():
        return None
    try:
        fd = os.open(RUN / tcp.kept, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid or not stat.S_ISREG(status.st_mode):
            return None
        try:
            state = parse(KeptConnection, file.read())
        except DecodeError:
            return None
    fits = (state.local, state.remote) == (tcp.local, tcp.remote) and len(state.window) == WINDOW.size
    return state if fits else None


def make(tcp: TcpSocket, state: KeptConnection) -> socket.socket:
    """Make a connection as it was, in repair mode and behind a filter. Raises OSError."""
    sock = socket.socket(tcp.family, socket.SOCK_STREAM, _TCP)
    try:
        _make(sock, tcp, state)
    except BaseException:
        sock.close()
        raise
    return sock


def _make(sock: socket.socket, tcp: TcpSocket, state: KeptConnection) -> None:
    fd = sock.fileno()
    if not state.peer_ended:
        _filter(fd)
    _set(fd, TCP_REPAIR, REPAIR_ON)
    for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        buffers.enlarge(sock, name)
    sock.bind(addresses.for_python(addresses.address(state.local), tcp.family))
    # The program's FIN counts as a byte: it is sent again.
    begin = (state.sent_until - len(state.sent) - state.we_ended) & 0xFFFFFFFF
    received_until = state.received_until - state.peer_ended
    for queue, number in ((SEND_QUEUE, begin), (RECV_QUEUE, received_until - len(state.received))):
        _set(fd, TCP_REPAIR_QUEUE, queue)
        _set(fd, TCP_QUEUE_SEQ, number)
    _set(fd, TCP_REPAIR_QUEUE, NO_QUEUE)
    sock.connect(addresses.for_python(addresses.address(state.remote), tcp.family))
    options = [(OPTION_MSS, state.mss)]
    if state.options & INFO_SACK:
        options.append((OPTION_SACK, 0))
    if state.options & INFO_WSCALE:
        options.append((OPTION_WINDOW, state.scales & 0xF | state.scales >> 4 << 16))
    if state.options & INFO_TIMESTAMPS:
        options.append((OPTION_TIMESTAMP, 0))
    sock.setsockopt(_TCP, TCP_REPAIR_OPTIONS, b"".join(struct.pack("=II", *option) for option in options))
    if state.options & INFO_TIMESTAMPS:
        _set(fd, TCP_TIMESTAMP, state.timestamp)
    for queue, content in ((RECV_QUEUE, state.received), (SEND_QUEUE, state.sent)):
        _set(fd, TCP_REPAIR_QUEUE, queue)
        left = memoryview(content)
        while left:
            left = left[sock.send(left[:PIECE], socket.MSG_DONTWAIT) :]
    _set(fd, TCP_REPAIR_QUEUE, NO_QUEUE)
    last, window, largest, ours, announced = WINDOW.unpack(state.window)
    if announced == state.received_until:  # the peer's FIN is delivered later
        announced = received_until & 0xFFFFFFFF
    sock.setsockopt(_TCP, TCP_REPAIR_WINDOW, WINDOW.pack(last, window, largest, ours, announced))
    if state.peer_ended:
        scale = state.scales & 0xF if state.options & INFO_WSCALE else 0
        here, there = addresses.address(state.local), addresses.address(state.remote)
        tcp_close.tell(sock, here, there, received_until, begin, min(window >> scale, 0xFFFF))
        _filter(fd)
    buffers.let_go_of_size(sock)


def let_go(sock: socket.socket, tcp: TcpSocket, state: KeptConnection) -> None:
    """Let a connection go on. This can be done once. Raises OSError."""
    reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    (RUN / tcp.kept).unlink()
    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    sock.setsockopt(_TCP, TCP_REPAIR, REPAIR_OFF)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)  # the end of repair mode clears it
    if state.we_ended:
        sock.shutdown(socket.SHUT_WR)
    if tcp.shut_read:
        sock.shutdown(socket.SHUT_RD)


def _set(fd: int, name: int, value: int) -> None:
    content = struct.pack("=I", value & 0xFFFFFFFF)
    syscall(NR.setsockopt, fd, _TCP, name, content, len(content))


def _filter(fd: int) -> None:
    """Drop everything that arrives, without an answer."""
    program = Words(1, DROP)  # struct sock_fprog
    syscall(NR.setsockopt, fd, socket.SOL_SOCKET, SO_ATTACH_FILTER, program, 16)
