"""TCP sockets that have released their port, though their address goes on naming it.

So it is when connect() fails or a listener is shut down, if the kernel had chosen the port (tcp_set_state() in
net/ipv4/tcp.c). Others may have the port by then: such a socket must not hold it after a restore.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress

from torpor.image.image_pb2 import TcpSocket
from torpor.objects.sockets import addresses, common, sock_diag, tcp_ports


def has_released(copy: int, local: bytes, *, v6only: bool) -> bool:
    """Whether a socket that is neither connected nor listens has released the port that its address names.

    False if the kernel does not tell: before 6.8, if another socket is at that port.

    Args:
        copy: a descriptor of the socket.
        local: its address: a struct sockaddr, with a port.
        v6only: its option IPV6_V6ONLY.
    """
    where = addresses.address(local)
    family = common.number(copy, socket.SOL_SOCKET, socket.SO_DOMAIN)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if family == socket.AF_INET6:
            probe.setsockopt(*tcp_ports.V6ONLY, v6only)
        try:
            probe.bind(addresses.for_python(where, family))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return False
        else:
            return True
        probe.bind(("", 0))
        bound = sock_diag.bound_tcp(family)
        return os.fstat(probe.fileno()).st_ino in bound and os.fstat(copy).st_ino not in bound


def make(tcp: TcpSocket) -> socket.socket:
    """Such a socket, without an address if the kernel does not give the port; the caller must restore its options."""
    try:
        return _refused(tcp)
    except OSError:
        sock = socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol)
        tcp_ports.set_early(sock, tcp)
        return sock


def _refused(tcp: TcpSocket, patience: int = 2) -> socket.socket:
    """A socket whose address names a port that it does not hold: its connection was refused.

    Args:
        tcp: what it was.
        patience: seconds until it must be refused.

    Raises:
        OSError: the port is in use, or the kernel does not choose it.
    """
    here = addresses.address(tcp.local)
    sock = socket.socket(tcp.family, socket.SOCK_STREAM, tcp.protocol)
    try:
        tcp_ports.choose(sock, tcp, here.port)
        if not here.host.is_unspecified:
            sock.bind(addresses.for_python(here._replace(port=0), tcp.family))
        with socket.socket(tcp.family, socket.SOCK_STREAM) as nobody:
            loopback = "127.0.0.1" if tcp.family == socket.AF_INET else "::1"
            nobody.bind((loopback, 0) if here.host.is_unspecified else sock.getsockname())
            # Blocking: only a connect() that waits for its refusal undoes what it did (__inet_stream_connect()).
            sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", int(patience), 0))
            with suppress(ConnectionRefusedError):
                sock.connect(nobody.getsockname())
        if addresses.address(addresses.local_name(sock.fileno())) != here:
            raise OSError(errno.EADDRNOTAVAIL, "the port is not one that programs get by themselves here")
    except BaseException:
        sock.close()
        raise
    return sock
