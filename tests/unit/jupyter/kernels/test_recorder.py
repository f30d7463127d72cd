"""What a kernel says while no server runs is in its note when the next one comes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client.session import Session

from tests.jupyter import wait_until
from torpor_jupyter.data.records import KernelRecord, ProcessId, Records, write_private
from torpor_jupyter.kernels.quiescing import PORTS
from torpor_jupyter.kernels.recorder import Watch, is_recorded, note_path, read_note
from torpor_jupyter.kernels.transcript import Transcript

KERNEL = "0b7e-4a-4b-4c-00"
REQUEST = {"msg_id": "one", "session": "page", "msg_type": "execute_request"}


class Kernel:
    """What a kernel shows to its clients, and what its last server has left of it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], context: zmq.Context[Any]) -> None:
        self.iopub, self.stdin = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
        self.stdin.setsockopt(zmq.ROUTER_MANDATORY, 1)
        ports = dict.fromkeys(PORTS, 1)
        for socket, port in ((self.iopub, "iopub_port"), (self.stdin, "stdin_port")):
            socket.linger, socket.rcvtimeo = 0, 20_000
            ports[port] = socket.bind_to_random_port("tcp://127.0.0.1")
        known = {"transport": "tcp", "ip": "127.0.0.1", "key": "secret", "signature_scheme": "hmac-sha256"}
        self.process = ProcessId.of(process.pid)
        self.server = replace(self.process, started=1)
        self.record = KernelRecord(KERNEL, "python3", known | ports, "/", "/", server=self.server, process=self.process)
        self.session, self.folder, self.records = Session(key=b"secret"), folder, Records(folder)
        self.records.write(self.record)
        said = Transcript()
        said.begin(REQUEST, "cell-1", "1")
        note = {
            "process": asdict(self.process), "execution_count": 4, "cell": "1", "cells": said.as_text(),
            "recorded": "", "kernel_info": {},
        }  # fmt: skip
        write_private(note_path(folder, KERNEL), json.dumps(note))

    def say(self, kind: str, **content: Any) -> None:
        self.session.send(self.iopub, kind, content, parent={"header": REQUEST}, ident=b"topic")

    def asks(self) -> bool:
        """Ask for a line; whether anybody is there to hear it."""
        try:
            self.session.send(self.stdin, "input_request", {"prompt": "?"}, parent={"header": REQUEST}, ident=b"page")
        except zmq.ZMQError:
            return False
        return True

    def noted(self) -> list[tuple[str, Any]]:
        """What the note says."""
        (cell,) = Transcript.of(read_note(self.folder, KERNEL)["cells"]).cells.values()
        return [(message["header"]["msg_type"], message["content"]) for message in cell.messages]


@pytest.fixture
def kernel(tmp_path: Path, process: subprocess.Popen[bytes]) -> Iterator[Kernel]:
    context: zmq.Context[Any] = zmq.Context()
    made = Kernel(tmp_path, process, context)
    yield made
    context.destroy(linger=0)


def test_what_it_says_until_the_next_server_comes(kernel: Kernel) -> None:
    watch = Watch(kernel.folder, kernel.server)
    watch.end(lives=True)
    kernel.iopub.recv()  # it has subscribed
    kernel.say("execute_input", execution_count=5, code="1")
    wait_until(kernel.asks, "somebody stands in for the page")
    kernel.say("stream", name="stdout", text="1")
    wait_until(lambda: len(kernel.noted()) == 3, "it is noted")
    kernel.say("status", execution_state="idle")
    wait_until(lambda: len(kernel.noted()) == 4, "its end is noted")
    assert is_recorded(kernel.folder, KERNEL)
    kernel.records.write(replace(kernel.record, server=kernel.process))
    assert watch.wait() == 0
    assert not is_recorded(kernel.folder, KERNEL)
    assert sorted(kind for kind, _ in kernel.noted()) == ["execute_input", "input_request", "status", "stream"]
    note = read_note(kernel.folder, KERNEL)
    assert note["execution_count"] == 5 and note["recorded"]


def test_it_ends_with_the_kernel(kernel: Kernel, process: subprocess.Popen[bytes]) -> None:
    watch = Watch(kernel.folder, kernel.server)
    watch.end(lives=True)
    kernel.iopub.recv()
    kernel.say("stream", name="stdout", text="the last")
    wait_until(kernel.noted, "it is noted")
    process.kill()
    assert watch.wait() == 0
    assert not is_recorded(kernel.folder, KERNEL)


def test_where_nothing_lives_on_there_is_none(kernel: Kernel) -> None:
    watch = Watch(kernel.folder, kernel.server)
    watch.end(lives=False)
    watch.end(lives=True)
    assert watch.wait() == 0 and not is_recorded(kernel.folder, KERNEL)
    other = Watch(kernel.folder, replace(kernel.server, started=2))
    other.end(lives=True)
    assert other.wait() == 0 and other.is_over()
    assert read_note(kernel.folder, KERNEL)["recorded"] == ""
