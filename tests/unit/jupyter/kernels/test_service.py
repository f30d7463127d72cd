"""What the service refuses before anything is done to a kernel."""

from __future__ import annotations

import subprocess

import pytest

from tests.unit.jupyter.conftest import Server, run
from torpor.errors import NotFound
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
