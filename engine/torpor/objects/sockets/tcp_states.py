"""The states of a TCP socket, as TCP_INFO, sock_diag(7) and /proc/net/tcp have them."""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """States of a connection (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
