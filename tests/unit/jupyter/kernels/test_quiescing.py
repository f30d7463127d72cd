"""Whom a kernel is connected to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from torpor_jupyter.kernels import quiescing
from torpor_jupyter.kernels.quiescing import KernelSockets, debugger_outside

LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    link, _ = listener.accept()
    print("connected", flush=True)
    sys.stdin.read()
"""
CONNECT = "import socket, sys; link = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"


@pytest.mark.parametrize("adapter", [True, False])
def test_a_debugger_is_found_by_its_connection(adapter: bool) -> None:
    words = ["/lib/debugpy/adapter", "--for-server"] if adapter else ["anything"]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", LISTEN], stdin=pipe, stdout=pipe) as kernel:
        assert kernel.stdout
        port = kernel.stdout.readline().strip()
        with subprocess.Popen([sys.executable, "-c", CONNECT, port, *words], stdin=pipe) as debugger:
            assert kernel.stdout.readline() == b"connected\n"
            assert debugger_outside(kernel.pid) == (debugger.pid if adapter else None)
            assert debugger_outside(os.getpid()) is None, "it is a descendant"
            for child in (debugger, kernel):
                child.communicate()


def test_clients_are_waited_for_at_ports_that_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was saved while it started has opened none, or some."""
    monkeypatch.setattr(quiescing, "RECONNECT_PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as shell, socket.socket() as unopened:
        unopened.bind(("127.0.0.1", 0))
        ports = {"shell_port": shell.getsockname()[1], "iopub_port": unopened.getsockname()[1]}
        sockets, expected = KernelSockets(ports), dict.fromkeys(ports.values(), 1)
        assert not sockets.wait_connected(expected), "nobody is connected to the one that is open"
        with socket.create_connection(shell.getsockname()), shell.accept()[0]:
            assert sockets.wait_connected(expected)
