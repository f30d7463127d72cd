"""A websocket behind a gate: what is noted of requests and replies, and what becomes of those whose page has gone."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler

from tests.unit.jupyter.conftest import Server
from torpor_jupyter.kernels.gate import Gate
from torpor_jupyter.kernels.ipython import SESSION
from torpor_jupyter.kernels.process import KernelProcess
from torpor_jupyter.server.channels import V1, TorporWebsocketConnection

PARTS = ("header", "parent_header", "metadata", "content")


class Page(KernelWebsocketHandler):
    """A browser's end of the websocket, which writes down what it is told."""

    def __init__(self, protocol: str | None) -> None:  # without an application around it
        self.protocol = protocol
        self.told: list[Any] = []

    @property
    def selected_subprotocol(self) -> str | None:
        return self.protocol

    def write_message(self, message: Any, binary: bool = False) -> Any:
        if binary:
            channel, parts = deserialize_msg_from_ws_v1(message)
            header, parent, _, content = map(json.loads, parts[:4])
            self.told.append((channel, header["msg_type"], parent and parent["msg_id"], content))
        else:
            one = json.loads(message)
            parent = one["parent_header"]
            self.told.append((one["channel"], one["header"]["msg_type"], parent and parent["msg_id"], one["content"]))


class Rig:
    """A kernel whose shell channel is read by the test, and a browser's websocket to it."""

    def __init__(self, server: Server, kernel: str, shell: Any, protocol: str | None) -> None:
        self.server, self.kernel, self.shell = server, kernel, shell
        self.session = Session(key=b"secret")
        self.page = Page(protocol)
        manager = server.service.registry.kernel_manager(kernel)
        self.socket = TorporWebsocketConnection(parent=manager, websocket_handler=self.page, session=self.session)
        self.socket.session_key = f"{kernel}:a"
        self.socket.create_stream()
        TorporWebsocketConnection._open_sockets.add(self.socket)

    @property
    def gate(self) -> Gate:
        return self.server.service.registry.gate(self.kernel)

    def send(self, kind: str = "execute_request", channel: str = "shell", **content: Any) -> str:
        """Send a request as the page does; its id."""
        message = self.session.msg(kind, content)
        parts = self.session.serialize(message)[2:]  # without the delimiter and the signature
        text = json.dumps(message | {"channel": channel}, default=str)
        packed = serialize_msg_to_ws_v1(parts, channel) if self.page.protocol == V1 else text
        self.socket.handle_incoming_message(packed)
        return str(message["header"]["msg_id"])

    async def heard(self) -> str:
        """The id of the next request that the kernel gets."""
        parts = await asyncio.wait_for(self.shell.recv_multipart(), 30)
        return str(json.loads(parts[parts.index(b"<IDS|MSG>") + 2])["msg_id"])

    async def settled(self) -> None:
        """Wait until the kernel knows this connection."""
        sent = self.send("kernel_info_request")
        assert await self.heard() == sent
        self.gate.unanswered.clear()

    def hear(self, kind: str, to: str | None, channel: str = "shell", session: str = "a", **content: Any) -> None:
        """Let the websocket hear a message of the kernel."""
        message: Any = self.session.msg(kind, content)
        message["parent_header"] = {"msg_id": to, "session": session} if to else None
        if self.page.protocol == V1:
            parts = [json.dumps(message[part], default=str).encode() for part in PARTS]
            self.socket._on_zmq_reply(self.socket.channels[channel], parts)
        else:
            self.socket._on_zmq_reply(self.socket.channels[channel], message | {"buffers": []})


@asynccontextmanager
async def rig(server: Server, process: subprocess.Popen[bytes], protocol: str | None = None) -> AsyncIterator[Rig]:
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as shell:
        record = server.record()
        record.connection["shell_port"] = shell.bind_to_random_port("tcp://127.0.0.1")
        await server.service.registry.register(record, KernelProcess(process.pid, child=process))
        made = Rig(server, record.id, shell, protocol)
        try:
            yield made
        finally:
            TorporWebsocketConnection._open_sockets.discard(made.socket)
            for stream in made.socket.channels.values():
                stream.close(linger=0)
            await server.end()


@pytest.mark.parametrize("protocol", [None, V1])
def test_requests_wait_at_a_shut_gate_and_reach_the_kernel_in_their_order(
    server: Server, process: subprocess.Popen[bytes], protocol: str | None
) -> None:
    async def waits() -> None:
        async with rig(server, process, protocol) as made:
            with made.gate.hold():
                sent = [made.send(code=str(number)) for number in range(3)]
                assert made.gate.cells_sent == 0 and len(made.gate.waiting) == 3
            assert [await made.heard() for _ in sent] == sent
            assert list(made.gate.unanswered) == sent and made.gate.cells_sent == 3

    asyncio.run(waits())


def test_what_is_noted_of_a_cell(server: Server, process: subprocess.Popen[bytes]) -> None:
    took: list[float] = []
    server.service.when_cell_ended = lambda _, seconds: took.append(seconds)

    async def noted() -> None:
        async with rig(server, process, V1) as made:
            silent = made.send(code="a = 1", silent=True)
            assert (made.gate.cell, made.gate.cells_sent, list(made.gate.started)) == ("", 0, [])
            cell = made.send(code="\nx = input()\ny = 2\n")
            assert (made.gate.cell, made.gate.cells_sent) == ("x = input()", 1)
            assert list(made.gate.unanswered) == [silent, cell]
            made.send("comm_msg")
            assert len(made.gate.unanswered) == 2, "nobody waits for an answer to it"

    asyncio.run(noted())
    assert took == []


def test_what_is_noted_of_a_reply(server: Server, process: subprocess.Popen[bytes]) -> None:
    took: list[float] = []
    server.service.when_cell_ended = lambda _, seconds: took.append(seconds)

    async def noted() -> None:
        async with rig(server, process) as made:
            cell = made.send(code="x = input()")
            made.hear("input_request", cell, "stdin", prompt="")
            assert made.gate.awaits_input
            made.send("input_reply", "stdin", value="7")
            assert not made.gate.awaits_input
            made.gate.uncertain = {cell: {"status": "ok"}}
            made.hear("execute_reply", cell, execution_count=5)
            assert (made.gate.execution_count, made.gate.unanswered, made.gate.uncertain) == (5, {}, {})
            assert made.page.told[-1] == ("shell", "execute_reply", cell, {"execution_count": 5})

    asyncio.run(noted())
    assert len(took) == 1 and took[0] >= 0


def test_a_browser_is_told_of_what_is_aborted(server: Server, process: subprocess.Popen[bytes]) -> None:
    async def told() -> None:
        async with rig(server, process, V1) as made:
            cell = made.send(code="1")
            made.gate.abort_unanswered(set())
            assert made.page.told == [
                ("shell", "execute_reply", cell, {"status": "aborted"}),
                ("iopub", "status", cell, {"execution_state": "idle"}),
            ]
            with made.gate.hold():
                cell, info = made.send(code="2"), made.send("kernel_info_request")
                made.gate.begin_anew()
                assert made.page.told[-2][2] == cell
                assert len(made.gate.waiting) == 1, "what is no cell is for the new kernel"
            while await made.heard() != info:
                pass

    asyncio.run(told())


def test_the_request_of_a_browser_that_has_gone_is_sent_on(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Also to a kernel that does not hand over, and has not seen that the browser's own connection has ended."""

    async def goes() -> None:
        async with rig(server, process) as made:
            await made.settled()
            left = dict(made.socket.channels)
            with made.gate.hold():
                cell = made.send(code="1")
                TorporWebsocketConnection._open_sockets.discard(made.socket)
                made.socket.channels = {}
            assert made.socket.has_gone
            assert await made.heard() == cell
            for stream in left.values():
                stream.close(linger=0)
            kept: dict[str, Any] = {"session_key": made.socket.session_key, "channels": {}, "buffer": []}
            server.manager._kernel_buffers[made.kernel] = kept
            made.gate.abort_unanswered(set())
            assert [channel for channel, _ in kept["buffer"]] == ["shell", "iopub"], "it is told when it comes back"
            assert made.page.told == []
            del server.manager._kernel_buffers[made.kernel]

    asyncio.run(goes())


def test_a_kernel_that_was_woken_in_a_cell_is_watched_to_its_end(
    server: Server, process: subprocess.Popen[bytes]
) -> None:
    async def watched() -> None:
        async with rig(server, process) as made:
            made.gate.uncertain = {"one": {"status": "ok"}}
            made.hear("error", "one", "iopub", ename="ValueError")
            assert made.gate.uncertain == {"one": {"status": "error", "ename": "ValueError"}}
            made.hear("status", "another", "iopub", execution_state="idle")
            assert not server.service.connections._waiting
            made.hear("status", "one", "iopub", execution_state="idle")
            (late,) = server.service.connections._waiting
            late.cancel()
            later = made.send(code="2")
            made.hear("status", later, "iopub", execution_state="busy")
            assert made.gate.uncertain == {}, "the kernel has heard what was asked since"

    asyncio.run(watched())


@pytest.mark.parametrize("protocol", [None, V1])
def test_nothing_is_told_that_an_undisturbed_kernel_would_not_have_said(
    server: Server, process: subprocess.Popen[bytes], protocol: str | None
) -> None:
    """Torpor's own requests, and the welcome of those who subscribe once more after a wake."""

    async def told() -> None:
        async with rig(server, process, protocol) as made:
            made.hear("status", "mine", "iopub", f"{SESSION}1", execution_state="busy")
            for _ in range(2):
                made.hear("iopub_welcome", None, "iopub", subscription="")
            made.hear("status", "theirs", "iopub", execution_state="busy")
            assert [message[1:3] for message in made.page.told] == [("iopub_welcome", None), ("status", "theirs")]

    asyncio.run(told())
