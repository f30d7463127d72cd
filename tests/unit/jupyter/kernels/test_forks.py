"""What cannot be forked is refused before anything is woken, and a fork that does not answer is no kernel."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.jupyter.conftest import Server
from torpor import Series
from torpor.errors import RestoreRefused
from torpor.image import Tree
from torpor.store import SnapshotInfo
from torpor_jupyter.data.records import CheckpointRecord
from torpor_jupyter.kernels import forks
from torpor_jupyter.kernels.forks import WokenProcess
from torpor_jupyter.kernels.process import KernelProcess
from torpor_jupyter.kernels.quiescing import PORTS
from torpor_jupyter.kernels.state import Operation, Unsuitable


def checkpoint(server: Server, **known: Any) -> CheckpointRecord:
    return CheckpointRecord("20260101-000000000-aaaaaa", "k", "python3", server.connection(), "/", **known)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"kernel_info": {"implementation": "xpython"}}, "kernel of xpython"),
        ({"execution_state": "busy"}, "a cell was running"),
        ({"outstanding": ["a request"]}, "a cell was running"),
    ],
)
def test_what_cannot_be_forked_is_told_by_its_record(server: Server, known: dict[str, Any], why: str) -> None:
    forks.check(checkpoint(server, kernel_info={"implementation": "ipython"}))
    forks.check(checkpoint(server))
    with pytest.raises(Unsuitable, match=why):
        forks.check(checkpoint(server, **known))


def test_a_kernel_without_tcp_is_not_forked(server: Server) -> None:
    record = checkpoint(server)
    with pytest.raises(Unsuitable, match="over TCP"):
        forks.check(replace(record, connection=record.connection | {"transport": "ipc"}))


def listening(server: Server, *ports: int) -> SnapshotInfo:
    """A snapshot of a process that listens at these ports."""
    image = Tree()
    image.processes.add(pid=1)
    for port in ports:
        tcp = image.descriptions.add().tcp
        tcp.state = tcp.LISTEN
        tcp.local = socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + bytes(12)
    with server.service.registry.store.writer("tree", {}) as saver:
        return saver.publish(image.SerializeToString(), "a test")


def test_a_kernel_whose_programs_listen_elsewhere_is_not_forked(server: Server) -> None:
    """One port more is what ipykernel's own forks print to."""
    record = checkpoint(server)
    info = listening(server, *(record.connection[name] for name in PORTS), 8050, 8051)
    with pytest.raises(RestoreRefused) as caught:
        forks.wake(info, server.service.registry.store, record, Operation("forking"), Series(), "as-they-were")
    assert [reason.subject for reason in caught.value.reasons] == ["port 8050", "port 8051"]


def test_new_ports_are_free_and_none_comes_twice() -> None:
    ports = forks._free_ports(50)
    assert len(set(ports)) == 50
    with socket.create_server(("127.0.0.1", ports[0])) as taken:
        assert taken.getsockname()[1] == ports[0]


def test_a_fork_that_does_not_answer_is_no_kernel(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "ANSWER_SECONDS", 0.05)
    record = checkpoint(server)
    ports = dict(zip((record.connection[name] for name in PORTS), forks._free_ports(len(PORTS)), strict=True))
    woken = WokenProcess(KernelProcess(os.getpid()), ports, ())
    with pytest.raises(Unsuitable, match="cannot be forked"):
        asyncio.run(forks.give_identity(woken, record, "key", file="f", notebook="n", logs=[], log="l"))
