"""The segment by which a peer's end is delivered to a connection in repair mode."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import closing
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.errors import RestoreFailed
from torpor.objects.sockets import tcp_close
from torpor.objects.sockets.addresses import Address

HERE4, THERE4 = Address(ip_address("192.0.2.1"), 5000, 0), Address(ip_address("198.51.100.7"), 80, 0)
HERE6, THERE6 = Address(ip_address("2001:db8::1"), 5000, 0), Address(ip_address("2001:db8::2"), 80, 0)


def total(content: bytes) -> int:
    """The sum that a correct checksum makes all ones (RFC 1071)."""
    found: int = sum(struct.unpack(f">{len(content) // 2}H", content))
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return found


@given(st.integers(-1, 1 << 33), st.integers(0, 1 << 32), st.integers(0, 0xFFFF), st.booleans())
def test_the_segment_has_what_it_is_to_say_and_a_checksum(sequence: int, acked: int, window: int, six: bool) -> None:
    here, there = (HERE6, THERE6) if six else (HERE4, THERE4)
    segment = tcp_close._segment(here, there, sequence, acked, window)
    source, target, number, acknowledged, offset, flags, announced, _, urgent = struct.unpack(">HHIIBBHHH", segment)
    assert (source, target) == (there.port, here.port)
    assert (number, acknowledged) == (sequence % (1 << 32), acked % (1 << 32))
    assert (offset >> 4, flags, announced, urgent) == (5, 0x11, window, 0)
    pseudo = there.host.packed + here.host.packed + struct.pack(">II", len(segment), socket.IPPROTO_TCP)
    assert total(pseudo + segment) == 0xFFFF


def test_the_packet_is_of_the_addresses_family() -> None:
    four = tcp_close._packet(HERE4, THERE4, b"segment!")
    assert four[0] == 0x45 and struct.unpack_from(">H", four, 2) == (28,) and four[9] == socket.IPPROTO_TCP
    assert (four[12:16], four[16:20], four[20:]) == (THERE4.host.packed, HERE4.host.packed, b"segment!")
    six = tcp_close._packet(HERE6, THERE6, b"segment!")
    assert six[0] >> 4 == 6 and struct.unpack_from(">HB", six, 4) == (8, socket.IPPROTO_TCP)
    assert (six[8:24], six[24:40], six[40:]) == (THERE6.host.packed, HERE6.host.packed, b"segment!")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes raw sockets")
def test_an_end_that_the_kernel_does_not_take_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection with other sequence numbers: the segment is dropped, and nothing is believed to have ended."""
    monkeypatch.setattr(tcp_close, "PATIENCE", 0.02)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        with near, far:
            here, there = (Address(ip_address(one[0]), one[1], 0) for one in (near.getsockname(), near.getpeername()))
            with pytest.raises(RestoreFailed, match="did not accept the peer's FIN on the TCP connection to 127"):
                tcp_close.tell(near, here, there, 1, 1, 1000)
            far.send(b"still")
            assert near.recv(10) == b"still"
