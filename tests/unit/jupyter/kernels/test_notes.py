"""What is noted of living kernels is enough for the next server, and is nobody else's."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

import pytest

from tests.unit.jupyter.conftest import Server, run
from torpor_jupyter.data.records import KernelRecord
from torpor_jupyter.kernels import ipython, notes
from torpor_jupyter.kernels.registry import kernel_info_of, tell_kernel_info

REQUEST = {"msg_id": "one", "session": "page", "msg_type": "execute_request"}


def message(kind: str, **content: Any) -> dict[str, Any]:
    header = {"msg_type": kind, "msg_id": kind}
    return {"header": header, "parent_header": REQUEST, "metadata": {}, "content": content}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """What the kernel answers when it is asked for its count, once; None: it does not answer in time."""
    found: list[int | None] = []

    async def count_of_cells(connection: object, *, seconds: float) -> int | None:
        if (count := found.pop(0)) is None:
            raise ipython.NoAnswer("busy")
        return count

    monkeypatch.setattr(ipython, "count_of_cells", count_of_cells)
    monkeypatch.setattr(notes, "HEARD_SECONDS", 0.0)
    return found


async def crash(server: Server, kernel: str) -> None:
    """Forget a kernel, as if the server had been killed, and let the next one find it."""
    registry = server.service.registry
    process = registry.suitable(kernel).kernel
    server.service.notes.close()
    registry.release(kernel, lives=True)
    record = registry.records.read(KernelRecord, kernel)
    await registry.register(record, process)
    await server.service.notes.take_up(kernel)


async def caught_up(server: Server) -> None:
    await asyncio.gather(*server.service.notes._catching_up)


def begun(server: Server, kernel: str) -> None:
    state = server.service.registry.state(kernel)
    state.gate.cell, state.gate.execution_count = "print(1)", 4
    state.transcript.begin(REQUEST, "cell-1", "print(1)")
    state.transcript.add_message("iopub", message("stream", name="stdout", text="1"), 1)


def test_a_cell_goes_on_after_a_crash(
    server: Server, process: subprocess.Popen[bytes], answers: list[int | None]
) -> None:
    registry, listener = server.service.registry, server.service.listener
    answers.append(None)

    async def busy() -> None:
        kernel = await server.sleeping(process)
        begun(server, kernel)
        info = {"implementation": "ipython"}
        tell_kernel_info(registry.kernel_manager(kernel), info)
        await server.service.notes.write()
        await crash(server, kernel)
        await caught_up(server)
        manager = registry.kernel_manager(kernel)
        assert (kernel_info_of(manager), manager.execution_state) == (info, "busy"), "a page need not wait for it"
        gate = registry.gate(kernel)
        assert (gate.cell, gate.execution_count, list(gate.unanswered)) == ("print(1)", 4, ["one"])
        (told,) = listener.take(kernel, "new page")
        assert (told["cell"], told["code"], told["done"]) == ("cell-1", "print(1)", False)
        texts = [part["content"]["text"] for part in told["messages"]]
        assert texts[0] == "1" and texts[1].endswith("is lost.\n")
        assert "ended" not in server.events

    run(server, busy())


def test_a_cell_that_has_ended_without_a_server_is_done(
    server: Server, process: subprocess.Popen[bytes], answers: list[int | None]
) -> None:
    registry, listener = server.service.registry, server.service.listener
    answers.append(5)

    async def idle() -> None:
        kernel = await server.sleeping(process)
        begun(server, kernel)
        await server.service.notes.write()
        await crash(server, kernel)
        (told,) = listener.take(kernel, "new page")
        assert not told["done"]
        await caught_up(server)
        assert server.events[-1] == "ended", "the page asks again"
        (told,) = listener.take(kernel, "new page")
        assert told["done"] and told["messages"][-1]["content"] == {"execution_state": "idle"}
        assert registry.gate(kernel).unanswered == {} and registry.gate(kernel).execution_count == 5

    run(server, idle())


def test_notes_on_another_process_are_not_read(
    server: Server, process: subprocess.Popen[bytes], answers: list[int | None]
) -> None:
    registry = server.service.registry
    answers += [3, None]

    async def another() -> None:
        kernel = await server.sleeping(process)
        begun(server, kernel)
        await server.service.notes.write()
        path = registry.note_path(kernel)
        note = json.loads(path.read_text())
        note["process"]["started"] += 1
        path.write_text(json.dumps(note))
        await crash(server, kernel)
        await caught_up(server)
        assert registry.state(kernel).transcript.cells == {}
        assert registry.gate(kernel).execution_count == 3, "the kernel knows better than its last checkpoint"
        path.write_text("[]")
        await crash(server, kernel)
        assert registry.state(kernel).transcript.cells == {}
        await registry.forget(kernel)
        assert not path.exists()

    run(server, another())


def test_what_has_not_changed_is_not_written_again(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(notes, "write_private", lambda path, text: written.append(json.loads(text)["execution_count"]))

    async def written_down() -> None:
        kernel = await server.sleeping(process)
        await server.service.notes.write()
        assert written == [], "nothing has run"
        begun(server, kernel)
        for _ in range(2):
            await server.service.notes.write()
        server.service.registry.gate(kernel).execution_count = 5
        await server.service.notes.write()
        assert written == [4, 5]

    run(server, written_down())
