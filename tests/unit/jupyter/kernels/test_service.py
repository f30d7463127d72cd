"""What the service refuses before anything is done to a kernel."""

from __future__ import annotations

import subprocess

import pytest

from tests.unit.jupyter.conftest import Server, run
from torpor.errors import NotFound
from torpor_jupyter.data.notebooks import NotServed, empty
from torpor_jupyter.kernels.service import _files
from torpor_jupyter.kernels.state import Unsuitable


def test_what_lives_cannot_be_woken(server: Server, process: subprocess.Popen[bytes]) -> None:
    async def refused() -> None:
        kernel = await server.sleeping(process)
        with pytest.raises(Unsuitable, match="is not parked"):
            await server.service.resume(kernel)
        assert not server.service.interrupt_parked(kernel)
        assert process.poll() is None and server.events == []

    run(server, refused())


def test_a_kernel_or_a_checkpoint_that_there_is_not(server: Server, process: subprocess.Popen[bytes]) -> None:
    async def refused() -> None:
        kernel = await server.sleeping(process)
        for work in (
            server.service.save("nothing"),
            server.service.park("nothing"),
            server.service.resume("nothing"),
            server.service.restore(kernel, "nothing"),
            server.service.fork(kernel, "nothing"),
        ):
            with pytest.raises((NotFound, KeyError, Unsuitable)) as error:
                await work
            assert "nothing" in str(error.value)
        assert process.poll() is None

    run(server, refused())


def test_a_notebook_that_was_not_kept_stops_a_going_back(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Before the kernel is touched."""

    async def refused() -> None:
        kernel = await server.sleeping(process)
        saved = await server.service.save(kernel)
        with pytest.raises(Unsuitable, match="no notebook is kept"):
            await server.service.restore(kernel, saved["id"], notebook=True)
        assert process.poll() is None

    run(server, refused())


def test_a_notebook_that_cannot_be_written_does_not_hide_that_its_kernel_is_back(
    server: Server, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = server.service

    async def full(path: str, text: str) -> None:
        raise NotServed(f"{path} cannot be used: the disk is full")

    async def back() -> None:
        kernel = await server.sleeping(process)
        await service.notebooks.write("work.ipynb", empty("python3"))
        saved = await service.save(kernel)
        monkeypatch.setattr(service.notebooks, "write", full)
        told = await service.restore(kernel, saved["id"], notebook=True, discard=True)
        assert told["state"] == "living" and told["head"] == saved["id"]
        assert told["notebook"] is None and told["notebook_failed"].endswith("the disk is full")

    run(server, back())


def test_a_checkpoint_is_carried_to_another_store(server: Server, process: subprocess.Popen[bytes]) -> None:
    service = server.service

    async def carried() -> None:
        kernel = await server.sleeping(process)
        await service.notebooks.write("work.ipynb", empty("python3"))
        saved = await service.save(kernel, name="mine")
        for bad in ("../x.torpor", "x.ipynb", "no/x.torpor", "/x.torpor"):
            for work in (service.export(kernel, saved["id"], path=bad), service.import_(bad)):
                with pytest.raises(Unsuitable, match="cannot be used"):
                    await work
        assert await service.export(kernel, saved["id"]) == {"path": "work-kernel1.torpor"}
        await service.checkpoints.delete(kernel, saved["id"])
        told = await service.import_("work-kernel1.torpor")
        assert told == {"path": "work-imported1.ipynb", "kernel_id": kernel, "id": saved["id"]}
        (found,) = await service.checkpoints.list(kernel)
        assert (found["name"], found["path"], found["has_notebook"]) == ("mine", "work-imported1.ipynb", True)
        assert await service.notebooks.exists("work-imported1.ipynb")

    run(server, carried())


def test_a_parked_kernel_gives_up_its_cells_when_it_is_interrupted(
    server: Server, process: subprocess.Popen[bytes]
) -> None:
    async def interrupted() -> None:
        kernel = await server.sleeping(process)
        await server.service.park(kernel)
        server.events.clear()
        assert server.service.interrupt_parked(kernel)
        assert server.events == ["interrupted"]

    run(server, interrupted())


def test_how_files_are_taken() -> None:
    assert (_files(True), _files(False)) == ("as-they-are", "as-they-were")
