"""Kernels are found again by the next server, whatever the last one had time to write down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.jupyter.conftest import Server
from torpor.errors import NotFound, StoreError
from torpor_jupyter.data.records import KernelRecord, ProcessId
from torpor_jupyter.kernels.quiescing import PORTS
from torpor_jupyter.kernels.transcript import Transcript

LISTENS = """
import json, socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
print(json.dumps([one.getsockname()[1] for one in held]), flush=True)
sys.stdin.read()
"""


def gone() -> ProcessId:
    """A process of this host that has ended."""
    with subprocess.Popen(["true"], stdin=subprocess.DEVNULL) as child:
        return ProcessId.of(child.pid)


@contextmanager
def listening() -> Iterator[tuple[int, list[int]]]:
    """A process that listens at five ports."""
    with subprocess.Popen([sys.executable, "-c", LISTENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        try:
            yield child.pid, json.loads(child.stdout.readline())
        finally:
            child.kill()


def test_a_parked_kernel_comes_back_parked(server: Server) -> None:
    registry = server.service.registry
    record = server.record(
        execution_state="busy", kernel_info={"implementation": "ipython"}, parked_ns=7, server=gone()
    )
    record.snapshot = server.checkpoint(record)
    registry.records.write(record)

    async def comes_back() -> None:
        await registry.adopt_all()
        found = registry.describe(record.id)
        assert (found["state"], found["snapshot"], found["parked_ns"]) == ("parked", record.snapshot, 7)
        assert (found["execution_state"], found["pid"], found["operation"]) == ("busy", None, None)
        assert [session["path"] for session in found["sessions"]] == ["work.ipynb"]
        assert registry.gate(record.id).shut == 1
        assert (
            server.manager.get_kernel(record.id).get_connection_info()["shell_port"] == record.connection["shell_port"]
        )
        assert registry.records.read(KernelRecord, record.id).snapshot == record.snapshot
        await server.end()
        with pytest.raises(NotFound):
            registry.records.read(KernelRecord, record.id)

    asyncio.run(comes_back())


def test_what_another_server_has_is_left_to_it(server: Server) -> None:
    registry = server.service.registry
    with listening() as (pid, _):
        other = server.record(server=ProcessId.of(pid), snapshot="20260101-000000000-aaaaaa")
        registry.records.write(other)
        asyncio.run(registry.adopt_all())
        assert server.manager.list_kernel_ids() == []
        assert registry.records.read(KernelRecord, other.id) == other


def test_notebooks_of_another_folder_are_left_to_its_server(server: Server) -> None:
    registry = server.service.registry
    other = server.record(server=gone(), snapshot="20260101-000000000-aaaaaa")
    other.sessions[0].path = "/elsewhere/work.ipynb"
    registry.records.write(other)
    asyncio.run(registry.adopt_all())
    assert server.manager.list_kernel_ids() == []
    assert registry.records.read(KernelRecord, other.id) == other


def test_a_kernel_that_has_ended_is_forgotten(server: Server) -> None:
    registry = server.service.registry
    ended = server.record(server=gone(), process=gone())
    registry.records.write(ended)
    asyncio.run(registry.adopt_all())
    assert server.manager.list_kernel_ids() == []
    with pytest.raises(NotFound):
        registry.records.read(KernelRecord, ended.id)


def test_a_server_died_after_it_had_parked_a_kernel_and_before_it_wrote_that_down(server: Server) -> None:
    registry = server.service.registry
    record = server.record(server=gone(), process=gone(), written_ns=1)
    registry.records.write(record)
    server.checkpoint(record)  # while it lived
    snapshot = server.checkpoint(record, parked=True)

    async def comes_back() -> None:
        await registry.adopt_all()
        assert registry.describe(record.id)["snapshot"] == snapshot
        assert snapshot in server.pinned()
        await server.end()

    asyncio.run(comes_back())


def test_a_server_died_after_it_had_woken_a_kernel_and_before_it_wrote_that_down(server: Server) -> None:
    registry = server.service.registry
    with listening() as (pid, ports):
        record = server.record(server=gone())
        record.connection |= dict(zip(PORTS, ports, strict=True))
        record.snapshot = server.checkpoint(record)
        registry.pin(record.snapshot, True)
        registry.records.write(record)

        async def comes_back() -> None:
            await registry.adopt_all()
            found = registry.describe(record.id)
            assert (found["state"], found["pid"], found["head"]) == ("living", pid, record.snapshot)
            assert server.pinned() == set()
            registry.release(record.id, lives=True)

        asyncio.run(comes_back())
        assert registry.records.read(KernelRecord, record.id).process == ProcessId.of(pid)


def test_a_record_that_cannot_be_read_costs_no_other_kernel(server: Server) -> None:
    registry = server.service.registry
    bad, good = server.record(), server.record(server=gone())
    good.snapshot = server.checkpoint(good)
    for record in (bad, good):
        registry.records.write(record)
    Path(registry.records.folder, "kernels", f"{bad.id}.json").write_text("{")

    async def comes_back() -> None:
        await registry.adopt_all()
        assert server.manager.list_kernel_ids() == [good.id]
        await server.end()

    asyncio.run(comes_back())
    with pytest.raises(StoreError):
        registry.records.read(KernelRecord, bad.id)


def test_one_server_at_a_time_wakes_a_parked_kernel(server: Server) -> None:
    registry = server.service.registry
    record = server.record()
    record.snapshot = server.checkpoint(record)
    registry.records.write(record)
    with registry.claimed(record.id) as snapshot:
        assert snapshot == record.snapshot
        with pytest.raises(NotFound, match="being woken by another server"), registry.claimed(record.id):
            pass
    record.snapshot = ""
    registry.records.write(record)


def test_a_renamed_notebook_is_written_down(server: Server) -> None:
    registry = server.service.registry
    record = server.record(server=gone())
    record.snapshot = server.checkpoint(record)
    registry.records.write(record)

    async def renamed() -> None:
        await registry.adopt_all()
        await registry.sessions.update_session(record.sessions[0].id, path="new.ipynb", name="new.ipynb")
        await server.service.notes.write()
        found = registry.records.read(KernelRecord, record.id)
        assert [session.path for session in found.sessions] == [str(server.root / "new.ipynb")]
        await server.end()

    asyncio.run(renamed())


def test_a_kernel_that_another_server_woke_is_let_go(server: Server) -> None:
    registry = server.service.registry
    record = server.record(server=gone())
    record.snapshot = server.checkpoint(record)
    registry.records.write(record)

    async def woken_elsewhere() -> None:
        await registry.adopt_all()
        other = registry.records.read(KernelRecord, record.id)
        other.snapshot, other.server = "", gone()
        registry.records.write(other)
        await server.service.notes.write()
        assert record.id not in server.manager
        assert registry.records.read(KernelRecord, record.id) == other

    asyncio.run(woken_elsewhere())


def test_the_log_of_a_kernel_stays_while_a_checkpoint_has_it_open(server: Server) -> None:
    registry, checkpoints = server.service.registry, server.service.checkpoints
    record = server.record()
    log = registry.log_path(record.id)
    os.close(registry.log_file(record.id))
    assert log.stat().st_mode & 0o777 == 0o600
    id = server.checkpoint(record)
    asyncio.run(registry.forget(record.id))
    assert log.exists()
    asyncio.run(checkpoints.delete(record.id, id))
    assert not log.exists()


def test_paths_below_the_servers_folder_are_those_of_the_contents_api(server: Server) -> None:
    registry = server.service.registry
    assert registry.contents_path(str(server.root / "a" / "b.ipynb")) == "a/b.ipynb"
    assert registry.contents_path(f"{server.root}-other/b.ipynb") is None
    assert registry.contents_path("") is None


def test_a_store_that_cannot_be_written_keeps_no_kernel_from_starting(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = server.service.registry
    file = server.root / "file"
    file.touch()
    monkeypatch.setattr(registry.records, "folder", file / "below")  # below a file nothing can be made
    fd = registry.log_file("a-b-c-d-e")
    assert os.readlink(f"/proc/self/fd/{fd}") == os.devnull
    os.close(fd)
    asyncio.run(registry.adopt_all())
    asyncio.run(registry.forget("a-b-c-d-e"))
    assert "Torpor's store cannot be written" in caplog.text


def test_the_count_of_cells_is_that_of_the_last_checkpoint(server: Server) -> None:
    registry = server.service.registry
    record = server.record(server=gone())
    record.snapshot = server.checkpoint(record, cell="x = 1", execution_count=4)
    registry.records.write(record)

    async def comes_back() -> None:
        await registry.adopt_all()
        assert registry.describe(record.id)["execution_count"] == 4
        assert registry.gate(record.id).cell == "x = 1"
        await server.end()

    asyncio.run(comes_back())


def test_what_nobody_has_seen_comes_back_with_a_parked_kernel(server: Server) -> None:
    registry, listener = server.service.registry, server.service.listener
    record = server.record(server=gone())
    record.snapshot = server.checkpoint(record, outstanding=["runs"])
    registry.records.write(record)
    said = Transcript()
    for id in ("ended", "runs", "undone"):
        said.begin({"msg_id": id, "session": "page"}, f"cell-{id}", "")
    said.cells["ended"].end()
    registry.cells.keep(record.snapshot, said.as_text())

    async def comes_back() -> None:
        await server.service.adopt()
        assert [told["cell"] for told in listener.take(record.id, "new page")] == ["cell-ended", "cell-runs"]
        assert [told["cell"] for told in listener.take(record.id, "new page")] == ["cell-ended", "cell-runs"]
        await server.end()

    asyncio.run(comes_back())
