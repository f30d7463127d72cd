"""A service with Jupyter's own managers, real processes and a real store; only the HTTP server is not there."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.services.sessions.sessionmanager import SessionManager

from tests.unit.store.store_content import random_blocks, save
from torpor.store import Store
from torpor.store.collect import PINNED
from torpor_jupyter.data.records import CheckpointRecord, KernelRecord, SessionRecord
from torpor_jupyter.kernels import quiescing
from torpor_jupyter.kernels.process import KernelProcess
from torpor_jupyter.kernels.quiescing import PORTS
from torpor_jupyter.kernels.registry import PARKED, TAG
from torpor_jupyter.kernels.service import Service

CONNECTION = {
    "transport": "tcp", "ip": "127.0.0.1", "key": "secret", "signature_scheme": "hmac-sha256",
    "kernel_name": "python3",
}  # fmt: skip


class Server:
    """The parts of a Jupyter server that Torpor uses."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.root = folder / "notebooks"
        self.root.mkdir(exist_ok=True)
        self.manager = AsyncMappingKernelManager(root_dir=str(self.root), connection_dir=str(folder))
        KernelProvisionerFactory.instance(parent=self.manager).default_provisioner_name = "torpor"
        self.events: list[str] = []
        contents = AsyncLargeFileManager(root_dir=str(self.root))
        sessions = SessionManager(kernel_manager=self.manager, contents_manager=contents)
        self.service = Service(
            self.manager,
            sessions,
            contents,
            store,
            logging.getLogger("server"),
            lambda id, what: self.events.append(what),
        )
        self._next_port = 40_000

    def connection(self) -> dict[str, Any]:
        """Of a connection file; nobody listens at its ports."""
        ports = {name: self._next_port + number for number, name in enumerate(PORTS)}
        self._next_port += len(PORTS)
        return CONNECTION | ports

    def record(self, **known: Any) -> KernelRecord:
        """Of a kernel with a notebook."""
        session = SessionRecord(str(uuid4()), str(self.root / "work.ipynb"), "work.ipynb", "notebook")
        return KernelRecord(
            str(uuid4()), "python3", self.connection(), str(self.root), str(self.root), sessions=[session], **known
        )

    def checkpoint(self, kernel: KernelRecord, **known: Any) -> str:
        """Put a snapshot of a kernel into the store, and write down what is known of it; its id."""
        tags = {TAG: kernel.id} | ({PARKED: "yes"} if known.pop("parked", False) else {})
        info = save(self.service.registry.store, *random_blocks(1), **tags)
        self.service.registry.records.write(
            CheckpointRecord(info.id, kernel.id, kernel.kernel_name, kernel.connection, kernel.cwd, **known)
        )
        return info.id

    def pinned(self) -> set[str]:
        """The snapshots that `torpor prune` leaves."""
        store = self.service.registry.store
        return {info.id for info in store.snapshots() if Path(store.path, "snapshots", info.id, PINNED).exists()}

    async def sleeping(self, process: subprocess.Popen[bytes]) -> str:
        """Register a kernel whose process is a `sleep`; its id."""
        record = self.record()
        await self.service.registry.register(record, KernelProcess(process.pid, child=process))
        return record.id

    async def end(self) -> None:
        """Shut down the kernels."""
        await self.manager.shutdown_all(now=True)


def run(server: Server, work: Coroutine[Any, Any, None]) -> None:
    """Run a test, and shut down its kernels."""

    async def all_of_it() -> None:
        try:
            await work
        finally:
            await server.end()

    asyncio.run(all_of_it())


@pytest.fixture(autouse=True)
def one_factory() -> Iterator[None]:
    """Each server has a factory of its own."""
    KernelProvisionerFactory.clear_instance()
    yield
    KernelProvisionerFactory.clear_instance()


@pytest.fixture
def server(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server without kernels. It does not wait long for clients: those of a `sleep` do not come back."""
    monkeypatch.setattr(quiescing, "RECONNECT_PATIENCE", 0.1)
    made = Server(tmp_path, store)
    yield made
    made.service.close()
    made.service.registry.sessions.close()
    # Jupyter's manager does so when it is collected; but then it may wait for ever for sockets of the same garbage.
    made.manager.context.destroy(linger=0)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Something that can be saved in no time, in a session of its own, and like a kernel survives an interrupt."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a child inherits
    try:
        started = subprocess.Popen(
            ["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/",
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    with started as child:
        yield child
        child.kill()
