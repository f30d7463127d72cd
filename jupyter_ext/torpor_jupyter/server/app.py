"""The server extension: makes Torpor start the kernels, and offers what it can do to them at ``/api/torpor``."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.ioloop import PeriodicCallback
from traitlets import Bool, Enum, Float, Int, TraitError, Unicode

from torpor.errors import SettingError
from torpor.store import Store, default_path
from torpor_jupyter.kernels.service import Service
from torpor_jupyter.server import metrics, slurm
from torpor_jupyter.server.channels import TorporWebsocketConnection
from torpor_jupyter.server.culling import park_when_culling
from torpor_jupyter.server.handlers import HANDLERS, Off
from torpor_jupyter.server.interrupts import interrupt_parked
from torpor_jupyter.server.policies import Policies, Policy
from torpor_slurm.allocation import Allocation

NOTE_SECONDS = 5.0
"""How often it is noted which notebooks kernels have and what their cells have said: a crash loses what is younger."""
JUPYTERS_OWN = "local-provisioner"
"""What starts kernels where nobody has chosen another one."""
EVENT = "https://events.torpor.invalid/kernel/v1"
"""The schema of what is told on the server's event bus when something becomes of a kernel."""


class TorporApp(ExtensionApp):
    """Torpor's server extension. Every setting can stand in jupyter_server_config.py as ``c.TorporApp.NAME``."""

    name = "torpor"
    extension_url = "/lab"
    load_other_extensions = True

    store = Unicode("", config=True, help="Directory of the snapshots; by default the one that `torpor config` shows.")
    start_kernels = Bool(
        True, config=True, help="Start all kernels by Torpor, unless their kernelspec names a provisioner."
    )
    when_stopping = Enum(
        ["park", "shutdown"], "park", config=True, help="What happens to running kernels when the server stops."
    )
    when_unsaved = Enum(
        ["live", "shutdown"], "live", config=True,
        help="What happens to a kernel that cannot be parked when the server stops: it lives on, and the next server"
        " finds it, or it ends with the server.",
    )  # fmt: skip
    when_culling = Enum(
        ["park", "shutdown"], "park", config=True, help="What happens to a kernel that is idle for cull_idle_timeout."
    )

    checkpoint_every = Float(
        0, min=0, config=True, help="Save a kernel after so many minutes if it has run something; 0: never."
    )
    checkpoint_after = Float(
        0, min=0, config=True, help="Save a kernel after a cell that took so many seconds or longer; 0: never."
    )
    keep_last = Int(30, min=0, config=True, help="How many automatic checkpoints of a kernel to keep; 0: all of them.")
    quota = Int(
        0, min=0, config=True,
        help="Disk space for the store's packs, in bytes; above it the oldest automatic checkpoints go; 0: no limit.",
    )  # fmt: skip
    park_below = Float(
        0, min=0, max=100, config=True,
        help="Percent of memory left, of the host or the cgroup, below which the largest idle kernels are parked.",
    )  # fmt: skip

    service: Service | None = None
    why_off = ""
    """Why Torpor does nothing in this server."""
    _policies: Policies | None = None
    _leaving: asyncio.Future[None] | None = None
    _notes: PeriodicCallback | None = None
    _slurm: asyncio.Task[None] | None = None
    _adopting: asyncio.Task[None] | None = None

    def _link_jupyter_server_extension(self, serverapp: Any) -> None:
        """Take the settings; as with an invalid one of Jupyter itself, the server does not start with one.

        jupyter_server would go on without all of them: kernels parked where they were to end, in the default store.
        """
        try:
            super()._link_jupyter_server_extension(serverapp)
            default_path()
        except (TraitError, SettingError) as error:
            self.log.critical("Invalid setting of Torpor: %s", error)
            raise SystemExit(1) from error

    def initialize_settings(self) -> None:
        """Take over the kernels of the server, and bring back those that earlier servers left."""
        server: Any = self.serverapp
        manager = server.kernel_manager
        self.why_off = _why_off(server)
        if self.why_off:
            self.log.warning("Torpor is off: %s", self.why_off)
            self.settings["torpor_why_off"] = self.why_off
            return
        server.event_logger.register_event_schema(Path(__file__).parent / "events" / "kernel.yaml")
        self.service = Service(
            manager, server.session_manager, server.contents_manager, Store(self.store or None), self.log, self._emit
        )
        self.service.registry.parks_at_stop = self.when_stopping == "park"
        self.service.registry.leaves_unsaved = self.when_unsaved == "live"
        self.settings["torpor_service"] = self.service
        rules = ("quota", "checkpoint_every", "checkpoint_after", "keep_last")
        self.settings["torpor_rules"] = {name: getattr(self, name) for name in rules}
        self.settings["kernel_websocket_connection_class"] = TorporWebsocketConnection
        factory = KernelProvisionerFactory.instance(parent=manager)
        if self.start_kernels and factory.default_provisioner_name == JUPYTERS_OWN:
            factory.default_provisioner_name = "torpor"
        elif factory.default_provisioner_name not in ("torpor", JUPYTERS_OWN):
            self.log.warning("Torpor saves no kernel that is started by %s", factory.default_provisioner_name)
        interrupt_parked(manager, self.service)
        if self.when_culling == "park":
            park_when_culling(manager, self.service)
        # A kernel that goes back says once more, to the letter, what was on its way then. Jupyter takes a message that
        # comes twice for a forged one, and its stream is deaf after that.
        if "digest_history_size" not in server.config.Session:
            server.config.Session.digest_history_size = 0
        loop = server.io_loop.asyncio_loop
        if loop.is_running():  # a program's own, in which it starts the server
            self._adopting = loop.create_task(self.service.adopt())
        else:
            server.io_loop.run_sync(self.service.adopt)  # before the first request can ask for a session
        policy = Policy(self.checkpoint_every, self.checkpoint_after, self.keep_last)
        self._policies = Policies(self.service, loop, policy, quota=self.quota, park_below=self.park_below)
        metrics.show()
        self._notes = PeriodicCallback(self.service.notes.write, NOTE_SECONDS * 1000)
        self._notes.start()
        if allocation := Allocation.around(os.environ):
            ends = partial(os.kill, os.getpid(), signal.SIGTERM)
            watching = slurm.watch(allocation, partial(self.service.park_all, "preempted"), ends, self.log)
            self._slurm = loop.create_task(watching)
        # Without a terminal jupyter_server ends at SIGINT, which JupyterHub sends first, as Python does: at once.
        # Kernels would be left to live on, or to end with their container.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, server._signal_stop)

    def initialize_handlers(self) -> None:
        """Offer the REST API."""
        if self.service:
            self.handlers.extend(HANDLERS)
        elif self.why_off:
            self.handlers.append((r"/api/torpor/.*", Off))

    async def stop_extension(self) -> None:
        """Before the server shuts kernels down: keep them. A second signal meanwhile asks for it again."""
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._leave())
        await self._leaving

    async def _leave(self) -> None:
        if not self.service:
            return
        if self._notes and self._policies:
            self._notes.stop()
            self._policies.stop()
        if self._slurm:
            self._slurm.cancel()
        await self.service.leave()
        if self._policies:
            await self._policies.ended()
        self.service.close()

    def _emit(self, kernel_id: str, what: str) -> None:
        data: dict[str, Any] = {"kernel_id": kernel_id, "what": what}
        server: Any = self.serverapp
        server.event_logger.emit(schema_id=EVENT, data=data)


def _why_off(server: Any) -> str:
    """Why Torpor cannot look after the kernels of a server: it replaces nothing of others; empty if it can."""
    if server.gateway_config.gateway_enabled:
        return f"the kernels are those of the gateway at {server.gateway_config.url}"
    if not isinstance(server.kernel_manager, AsyncMappingKernelManager):
        return f"the kernels are managed by {type(server.kernel_manager).__name__}"
    if server.kernel_websocket_connection_class is not ZMQChannelsWebsocketConnection:
        return f"the connections to kernels are those of {server.kernel_websocket_connection_class.__name__}"
    return ""
