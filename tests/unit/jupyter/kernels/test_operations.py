"""One thing at a time is done to a kernel, and what fails or is cancelled leaves it as it was."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest

import torpor
from tests.unit.jupyter.conftest import Server, run
from torpor.errors import NotFound, Reason, Refused, RestoreFailed, StoreError, TorporError
from torpor_jupyter.data.records import CheckpointRecord, KernelRecord
from torpor_jupyter.kernels import ipython, operations, provisioner
from torpor_jupyter.kernels.process import KernelProcess
from torpor_jupyter.kernels.registry import kernel_info_of
from torpor_jupyter.kernels.state import Cancelled, Operation, Unsuitable


def test_a_kernel_is_saved_parked_and_woken(server: Server, process: subprocess.Popen[bytes]) -> None:
    service, registry = server.service, server.service.registry

    async def lives() -> None:
        kernel = await server.sleeping(process)
        made = await service.save(kernel, name="first", note="a note")
        assert (made["name"], made["note"], made["parent"], made["automatic"]) == ("first", "a note", None, False)
        assert process.poll() is None
        parked = await service.park(kernel, reason="idle")
        assert (parked["state"], parked["pid"], parked["operation"]) == ("parked", None, None)
        assert process.poll() is not None
        assert server.pinned() == {parked["snapshot"]}
        assert registry.records.read(KernelRecord, kernel).snapshot == parked["snapshot"]
        record = registry.records.read(CheckpointRecord, parked["snapshot"])
        assert (record.parent, record.reason, record.automatic) == (made["id"], "idle", True)
        with pytest.raises(Unsuitable, match="parked already"):
            await service.park(kernel)
        with pytest.raises(Unsuitable, match="is not running"):
            await service.save(kernel)
        manager = registry.kernel_manager(kernel)
        manager.last_activity = before = datetime.now(timezone.utc)
        woken = await service.resume(kernel)
        assert (woken["state"], woken["head"]) == ("living", parked["snapshot"])
        assert manager.last_activity > before, "or it would be culled once more"
        assert registry.gate(kernel).shut == 0
        assert server.pinned() == set()
        mine = registry.records.read(KernelRecord, kernel)
        assert not mine.parked and mine.process and mine.process.exists()
        with pytest.raises(Unsuitable, match="is not parked"):
            await service.resume(kernel)
        events = "saving saved parking parked parking failed saving failed waking woken"
        assert server.events == events.split()

    run(server, lives())


def test_that_a_kernel_is_idle_may_be_on_its_way(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cell is answered, as rules hear before they save it: its variables are listed all the same."""
    service = server.service
    info: Future[dict[str, Any]] = Future()
    info.set_result({"implementation": ipython.IMPLEMENTATION})

    async def heard() -> None:
        kernel = await server.sleeping(process)
        manager = service.registry.kernel_manager(kernel)
        manager._kernel_info_future, manager.execution_state = info, "busy"

        async def listed(connection: object) -> str:
            assert manager.execution_state == "idle"
            manager.last_activity = datetime.now(timezone.utc)
            return "[]"

        monkeypatch.setattr(ipython, "list_variables", listed)
        asyncio.get_running_loop().call_later(0.05, setattr, manager, "execution_state", "idle")
        made = await service.save(kernel)
        assert service.checkpoints.variables.kept(made["id"]) == "[]"

    run(server, heard())


def test_what_is_told_of_a_kernel_changes_when_the_operation_ends(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hears that it is parked can have it woken, and is not told that it is parking already."""
    service, workers = server.service, server.service.workers
    seen = []

    async def told() -> None:
        kernel = await server.sleeping(process)

        def watched(run_step: Callable[..., Any]) -> Callable[..., Any]:
            async def run(*step: Any) -> Any:
                done = await run_step(*step)
                known = service.registry.describe(kernel)
                seen.append((known["operation"]["doing"], known["state"], bool(known["snapshot"]), bool(known["pid"])))
                return done

            return run

        for name in ("run", "save", "wake"):
            monkeypatch.setattr(workers, name, watched(getattr(workers, name)))
        assert (await service.park(kernel))["state"] == "parked"
        assert (await service.resume(kernel))["state"] == "living"
        assert set(seen) == {("parking", "living", False, True), ("waking", "parked", True, False)}

    run(server, told())


def sleep_instead(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """A kernel that is started is a `sleep`, too."""
    command = torpor.below_init(["sleep", "1000"], os.environ)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/")


def test_a_parked_kernel_that_is_started_again_is_a_new_one(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JupyterLab's Restart does: the checkpoint stays, and nothing waits for it any more."""
    service, registry = server.service, server.service.registry
    monkeypatch.setattr(provisioner, "launch_kernel", sleep_instead)

    async def again() -> None:
        kernel = await server.sleeping(process)
        await service.park(kernel)
        await registry.kernel_manager(kernel).restart_kernel(now=True)
        now = registry.describe(kernel)
        assert (now["state"], now["snapshot"], now["head"]) == ("living", None, None)
        assert now["pid"] not in (None, process.pid)
        assert (registry.gate(kernel).shut, server.pinned()) == (0, set())
        mine = registry.records.read(KernelRecord, kernel)
        assert not mine.parked and mine.process and mine.process.pid == now["pid"]
        with pytest.raises(Unsuitable, match="is not parked"):
            await service.resume(kernel)
        assert (await service.park(kernel))["state"] == "parked"

    run(server, again())


def test_a_kernel_that_is_to_end_ends_when_nothing_is_being_done_to_it(
    server: Server, process: subprocess.Popen[bytes]
) -> None:
    service = server.service

    async def ended() -> None:
        kernel = await server.sleeping(process)
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def save() -> bool:
            async with service.operations.begin(kernel, "saving") as operation:
                begun.set_result(None)
                while not operation.cancelled:
                    await asyncio.sleep(0.001)
                return process.poll() is None

        saving = asyncio.ensure_future(save())
        await begun
        await server.manager.shutdown_kernel(kernel, now=True)
        assert await saving, "it lived until then"
        assert process.poll() is not None and kernel not in server.manager

    run(server, ended())


def test_trouble_with_one_kernel_costs_no_other_when_the_server_stops(
    server: Server,
    process: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service, registry, park = server.service, server.service.registry, server.service.operations.park

    async def stops() -> None:
        record = server.record()
        await registry.register(record, KernelProcess(process.pid))
        good = await server.sleeping(process)

        async def fails(kernel_id: str, *arguments: Any, **options: Any) -> Any:
            if kernel_id == record.id:
                raise PermissionError("of a zombie")
            return await park(kernel_id, *arguments, **options)

        monkeypatch.setattr(service.operations, "park", fails)
        with caplog.at_level(logging.ERROR):
            await service.park_all("stopping")
        assert registry.describe(good)["state"] == "parked"
        assert f"Kernel {record.id} cannot be saved" in caplog.text

    run(server, stops())


def test_a_store_without_room_for_two_may_have_room_for_one(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server stops, what failed for the store while others were saved is tried once more, alone."""
    service, registry = server.service, server.service.registry
    save, tried = torpor.checkpoint, []

    def full(*arguments: Any, **options: Any) -> Any:
        tried.append(1)
        if len(tried) == 1:
            raise StoreError("No space left on device")
        return save(*arguments, **options)

    async def stops() -> None:
        kernel = await server.sleeping(process)
        monkeypatch.setattr("torpor.checkpoint", full)
        await service.park_all("stopping")
        assert (registry.describe(kernel)["state"], len(tried)) == ("parked", 2)

    run(server, stops())


@pytest.mark.parametrize("what", ["lives", "wanted", "unwritten", "parked"])
def test_what_cannot_be_parked_when_the_server_stops_is_left_to_the_next_one(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """If that one can find it, and nobody wants its end; until then the reason is told with the kernel."""
    service, registry = server.service, server.service.registry

    def refuse(*arguments: object, **options: object) -> None:
        raise Refused("no", [Reason("fd 3", "cannot be kept", "close it")])

    async def stops() -> None:
        kernel = await server.sleeping(process)
        if what == "wanted":
            registry.leaves_unsaved = False
        if what != "parked":
            monkeypatch.setattr("torpor.checkpoint", refuse)
            with pytest.raises(Refused):
                await service.save(kernel)
            told = registry.describe(kernel)
            assert told["unsaved"]["details"] == ["fd 3: cannot be kept; close it"]
            assert told["unsaved"]["causes"] == [{"why": "cannot be kept", "advice": "close it"}]
            assert told["at_stop"] == ("ended" if what == "wanted" else "living")
        else:
            assert registry.describe(kernel)["at_stop"] == "parked"
        if what == "unwritten":
            monkeypatch.setattr(registry.records, "write", lambda record: None)
            registry.records.remove(KernelRecord, kernel)
        await service.leave()
        left = what in ("lives", "parked")
        assert (kernel not in server.manager) == left
        assert (process.poll() is None) == (what != "parked")
        if left:
            found = registry.records.read(KernelRecord, kernel)
            assert bool(found.process and found.process.pid == process.pid) == (what == "lives")

    run(server, stops())


def test_what_was_refused_once_is_forgotten_when_it_is_saved(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise Refused("no", [Reason("fd 3", "cannot be kept")])

    async def forgotten() -> None:
        kernel = await server.sleeping(process)
        with monkeypatch.context() as patched:
            patched.setattr("torpor.checkpoint", refuse)
            with pytest.raises(Refused):
                await server.service.park(kernel)
        assert server.service.registry.describe(kernel)["unsaved"]["at_ns"]
        await server.service.save(kernel)
        told = server.service.registry.describe(kernel)
        assert (told["unsaved"], told["at_stop"]) == (None, "parked")

    run(server, forgotten())


def test_a_kernel_that_has_told_nothing_of_itself_is_one_all_the_same() -> None:
    loop = asyncio.new_event_loop()
    cancelled, failed = loop.create_future(), loop.create_future()
    cancelled.cancel()
    failed.set_exception(TimeoutError())
    for known in (None, loop.create_future(), cancelled, failed):
        assert kernel_info_of(SimpleNamespace(_kernel_info_future=known)) == {}
    loop.close()


def test_what_a_save_was_refused_for_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "AGAIN_SECONDS", 0)

    def tried(*subjects: str) -> int:
        """How often a process is tried to be saved that is refused for these."""
        left = list(subjects)

        def save() -> Any:
            if left:
                raise Refused("no", [Reason(left.pop(0), "cannot be kept")])

        operations._when_possible(save)
        return len(subjects) + 1 - len(left)

    assert tried("fd 3") == 2
    assert tried("fd 3", "fd 4") == 3
    assert tried("x-journal", "x-journal") == 3
    for lasting in (["fd 3"] * 2, ["x-journal"] * 5):
        with pytest.raises(Refused):
            tried(*lasting)


def test_a_fork_into_a_folder_that_is_not_there_is_refused(server: Server) -> None:
    async def refused() -> None:
        record = server.record()
        made = server.checkpoint(record)
        with pytest.raises(Unsuitable, match="there is no folder for nowhere"):
            await server.service.fork(record.id, made, path="nowhere/new.ipynb")

    run(server, refused())


def test_one_thing_at_a_time(server: Server, process: subprocess.Popen[bytes]) -> None:
    service = server.service

    async def refused() -> None:
        kernel = await server.sleeping(process)
        with pytest.raises(Unsuitable, match="no operation"):
            service.operations.cancel(kernel)
        async with service.operations.begin(kernel, "waking"):
            assert service.registry.describe(kernel)["operation"]["doing"] == "waking"
            for act in (service.save, service.park):
                with pytest.raises(Unsuitable, match="in progress: waking"):
                    await act(kernel)
        await service.save(kernel)

    run(server, refused())


def test_who_cancels_a_park_has_a_kernel_that_lives(server: Server, process: subprocess.Popen[bytes]) -> None:
    service = server.service

    async def cancelled() -> None:
        kernel = await server.sleeping(process)
        with pytest.raises(Cancelled):
            async with service.operations.begin(kernel, "parking") as operation:
                assert service.operations.cancel(kernel)["operation"]["cancelled"]
                await service.operations.park(kernel, operation, name="", reason="parked")
        described = service.registry.describe(kernel)
        assert (described["state"], described["pid"], described["operation"]) == ("living", process.pid, None)
        assert process.poll() is None
        assert service.registry.gate(kernel).shut == 0
        assert server.events == ["parking", "failed"]
        assert service.registry.store.snapshots() == []

    run(server, cancelled())


def test_a_wake_that_fails_leaves_the_kernel_parked(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, registry = server.service, server.service.registry

    async def stays() -> None:
        kernel = await server.sleeping(process)
        snapshot = (await service.park(kernel))["snapshot"]

        def fails(*arguments: object, **options: object) -> None:
            raise RestoreFailed("no memory")

        with monkeypatch.context() as patched:
            patched.setattr("torpor.restore", fails)
            with pytest.raises(RestoreFailed):
                await service.resume(kernel)
        assert registry.describe(kernel)["snapshot"] == snapshot
        assert registry.records.read(KernelRecord, kernel).snapshot == snapshot
        assert (registry.gate(kernel).shut, server.pinned()) == (1, {snapshot})
        assert (await service.resume(kernel))["state"] == "living"

    run(server, stays())


def test_trouble_after_a_wake_lets_nobody_wait(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, registry = server.service, server.service.registry

    def fails(*arguments: object) -> None:
        raise OSError

    async def lives() -> None:
        kernel = await server.sleeping(process)
        await service.park(kernel)
        with monkeypatch.context() as patched, pytest.raises(OSError):
            patched.setattr(service.connections, "reconnect_clients", fails)
            await service.resume(kernel)
        assert (registry.describe(kernel)["state"], registry.gate(kernel).shut) == ("living", 0)

    run(server, lives())


def test_going_back_keeps_what_the_kernel_is_now(server: Server, process: subprocess.Popen[bytes]) -> None:
    service = server.service

    async def back() -> None:
        kernel = await server.sleeping(process)
        first = await service.save(kernel)
        there = await service.restore(kernel, first["id"])
        assert (there["state"], there["head"]) == ("living", first["id"])
        undo = service.registry.records.read(CheckpointRecord, there["undo"])
        assert (undo.reason, undo.about, undo.parent) == ("going-back", first["id"], first["id"])
        difference = await service.checkpoints.diff(kernel, undo.id)
        assert difference["with"] == first["id"] and difference["variables"] is None
        assert difference["memory"]["shared"] > 0
        assert [one["id"] for one in await service.checkpoints.list(kernel)] == [first["id"], undo.id]

    run(server, back())


def test_a_going_back_that_fails_brings_back_what_it_was(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = server.service

    restore, tried = torpor.restore, []

    def fails_once(*arguments: Any, **options: Any) -> Any:
        tried.append(arguments)
        if len(tried) == 1:
            raise RestoreFailed("no memory")
        return restore(*arguments, **options)

    async def back() -> None:
        kernel = await server.sleeping(process)
        first = await service.save(kernel)
        with monkeypatch.context() as patched:
            patched.setattr("torpor.restore", fails_once)
            with pytest.raises(RestoreFailed):
                await service.restore(kernel, first["id"])
        now = service.registry.describe(kernel)
        assert now["state"] == "living" and now["head"] != first["id"]
        assert service.registry.gate(kernel).shut == 0

    run(server, back())


def test_no_room_to_write_down_a_checkpoint_costs_no_kernel(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, records = server.service, server.service.registry.records

    async def full() -> None:
        kernel = await server.sleeping(process)
        folder = records.folder
        monkeypatch.setattr(
            records, "folder", folder / "kernels" / f"{kernel}.json"
        )  # below a file nothing can be made
        parked = await service.park(kernel, name="full")
        described = service.checkpoints.describe(service.registry.store.resolve(parked["snapshot"]))
        assert (described["name"], described["damage"]) == ("full", "")
        monkeypatch.setattr(records, "folder", folder)
        assert (await service.resume(kernel))["state"] == "living"

    run(server, full())


def test_checkpoints_that_are_needed_are_not_deleted(server: Server, process: subprocess.Popen[bytes]) -> None:
    service = server.service

    async def kept() -> None:
        kernel = await server.sleeping(process)
        ids = [(await service.save(kernel))["id"] for _ in range(3)]
        parked = (await service.park(kernel))["snapshot"]
        with pytest.raises(Unsuitable, match="parked in this checkpoint"):
            await service.checkpoints.delete(kernel, parked)
        await service.checkpoints.change(kernel, ids[0], pinned=True)
        with pytest.raises(Unsuitable, match="is pinned"):
            await service.checkpoints.delete(kernel, ids[0])
        await service.checkpoints.change(kernel, parked, pinned=False)
        assert server.pinned() == {ids[0], parked}, "it is parked in it still"
        await service.checkpoints.delete(kernel, ids[1])
        with pytest.raises(NotFound):
            await service.checkpoints.find(kernel, ids[1])
        assert (await service.checkpoints.find(kernel, ids[2]))[1].parent == ids[0], "the tree stays one"
        with pytest.raises(NotFound):
            await service.checkpoints.find("another", ids[2])

    run(server, kept())


def test_progress_is_told_until_somebody_cancels() -> None:
    operation = Operation("saving")
    operation.progress(1, 2)
    assert (operation.done, operation.total) == (1, 2)
    operation.cancelled = True
    with pytest.raises(Cancelled, match="saving was cancelled") as raised:
        operation.progress(2, 2)
    assert isinstance(raised.value, TorporError)
