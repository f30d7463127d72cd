"""The kernel provisioner ``torpor``: starts kernels so that they can be frozen, and adopts those that come back.

jupyter_client's seam is KernelProvisionerBase: a kernel manager asks it to start, poll, signal and end its kernel, and
takes the ports and the key that it returns as the truth. Without Torpor's server extension (in nbclient, say) it does
what LocalProvisioner does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jupyter_client.connect import KernelConnectionInfo, LocalPortCache, port_names
from jupyter_client.launcher import launch_kernel
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

import torpor
from torpor_jupyter.kernels.process import KernelProcess

SERVICE = "torpor_service"
"""The attribute by which a server's kernel manager leads to Torpor's service."""


@dataclass(frozen=True)
class Returning:
    """A kernel that comes back: this server registers it without starting it."""

    connection: dict[str, Any]
    process: KernelProcess | None
    """Its process; None if it is parked."""


class Registry(Protocol):
    """What a provisioner needs of the server extension, if there is one: see `torpor_jupyter.kernels.registry`."""

    def returning(self, kernel_id: str) -> Returning | None:
        """How a kernel comes back that Jupyter is about to start; None if it really has to be started."""

    def log_file(self, kernel_id: str) -> int:
        """Open the file for a kernel's standard output and error; return a new descriptor."""

    def remember(self, provisioner: TorporProvisioner) -> None:
        """Record a living kernel in the store."""

    async def settled(self, kernel_id: str) -> None:
        """Before a kernel is ended: cancel the operation on it, wait until that is over, and hold its gate shut."""

    def begin_anew(self, kernel_id: str) -> None:
        """Handle a restart: the kernel has a new process, with nothing of the old one in it."""

    async def forget(self, kernel_id: str) -> None:
        """Forget a kernel that has ended for good."""


class TorporProvisioner(LocalProvisioner):
    """Manages the process of a kernel. While the kernel is parked, it has none."""

    kernel: KernelProcess | None = None
    """Its process; None before the start, after the end, and while it is parked."""
    parked = False
    """Whether it is parked in a snapshot. Then its manager still takes it for alive."""
    returned = False
    """Whether it was not started by this server, or has been woken since."""
    lives_on = True
    """Whether its process can outlive the server."""
    _returning: Returning | None = None

    @classmethod
    def instead_of(cls, local: LocalProvisioner) -> TorporProvisioner:
        """Take over a kernel that Jupyter has started without Torpor. It ends with its server, unless it is parked."""
        manager: Any = local.parent
        child: Any = local.process
        found = cls(kernel_id=local.kernel_id, kernel_spec=local.kernel_spec, parent=manager)
        found.connection_info, found.ports_cached = local.connection_info, local.ports_cached
        found.cwd = local.cwd or Path(os.readlink(f"/proc/{child.pid}/cwd"))
        found.lives_on = False  # it looks after its parent (JPY_PARENT_PID)
        found._take(KernelProcess(child.pid, child=child))
        manager.provisioner = found
        return found

    @property
    def registry(self) -> Registry | None:
        """The server extension's registry of kernels, if there is one."""
        service = getattr(getattr(self.parent, "parent", None), SERVICE, None)
        return service.registry if service else None

    @property
    def has_process(self) -> bool:
        """Whether the kernel has a process or is parked."""
        return self.kernel is not None or self.parked

    # ------------------------------------------------------------------------------------------ coming and going

    def park(self) -> None:
        """Note that a checkpoint has ended its process: from now on the kernel counts as alive without one."""
        if self.kernel:
            self.kernel.poll()  # reaps it
        self.kernel, self.pid, self.pgid = None, None, None
        self.parked = True

    def adopt(self, kernel: KernelProcess) -> None:
        """Note that the kernel has a process again."""
        self._take(kernel)
        self.parked, self.returned, self.lives_on = False, True, True

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Prepare as LocalProvisioner does, but a kernel that comes back keeps its ports and key."""
        self._returning = self.registry.returning(self.kernel_id) if self.registry else None
        if self._returning:
            self.take_connection(self._returning.connection)
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel, or adopt the one that comes back."""
        returning, self._returning = self._returning, None
        self.cwd = kwargs.get("cwd", Path.cwd())
        self.returned = returning is not None
        if returning:
            if returning.process:
                self._take(returning.process)
            else:
                self.parked = True
            return self.connection_info
        options = LocalProvisioner._scrub_kwargs(kwargs)
        if self.registry:
            # ipykernel ends itself when its parent changes; this one is to outlive the server.
            options["independent"] = True
            # What it leaves in the background, as debugpy's adapter, is a part of it then.
            cmd = torpor.below_init([os.path.expanduser(word) for word in cmd], options.get("env") or os.environ)
            log = self.registry.log_file(self.kernel_id)
            try:
                # Not the server's own: a pipe to a server that is gone would end the kernel at its next word.
                options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | options
                self._take(KernelProcess.below(launch_kernel(cmd, **options)))
            finally:
                os.close(log)
            self.registry.begin_anew(self.kernel_id)
        else:
            child = launch_kernel(cmd, **options)
            self._take(KernelProcess(child.pid, child=child))
        return self.connection_info

    async def post_launch(self, **kwargs: Any) -> None:
        """Record the kernel in the store, so that it is found after a crash of the server."""
        await super().post_launch(**kwargs)
        if self.registry and self.kernel:
            self.registry.remember(self)

    def take_connection(self, connection: dict[str, Any]) -> None:
        """Make the manager use the ports and the key that the kernel has already."""
        manager: Any = self.parent
        ports = LocalPortCache.instance()
        manager.cleanup_connection_file()
        with suppress(FileNotFoundError):
            Path(manager.connection_file).unlink()  # of an earlier server: it would be taken as it is
        for name in port_names:
            setattr(manager, name, 0)
            ports.currently_used_ports.add(connection[name])  # find_available_port gives it to no other kernel
        manager.load_connection_info(connection)
        self.ports_cached = True  # else new ports are chosen
        manager.write_connection_file()
        self.connection_info = manager.get_connection_info()

    def _take(self, kernel: KernelProcess) -> None:
        self.kernel, self.pid = kernel, kernel.pid
        try:
            self.pgid = os.getpgid(kernel.pid)
        except ProcessLookupError:
            self.pgid = None

    # --------------------------------------------------------------------------------------- as KernelProvisionerBase

    async def poll(self) -> int | None:
        """Return None while the kernel lives or is parked, otherwise its exit code."""
        if self.parked:
            return None
        return self.kernel.poll() if self.kernel else 0

    async def wait(self) -> int | None:
        """Wait until the kernel has ended."""
        while (code := await self.poll()) is None:
            await asyncio.sleep(0.05)
        self.kernel = None
        return code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group. A parked kernel gets none."""
        if self.kernel:
            with suppress(ProcessLookupError):
                self.kernel.signal_group(signum)

    async def kill(self, restart: bool = False) -> None:
        """Kill the kernel. A parked one is abandoned: its checkpoints stay."""
        await self._give_up()
        if self.kernel:
            self.kernel.kill()

    async def terminate(self, restart: bool = False) -> None:
        """Send SIGTERM to the kernel. A parked one is abandoned: its checkpoints stay."""
        await self._give_up()
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Abandon a parked kernel at once: it cannot answer a shutdown request."""
        await self._give_up()

    async def _give_up(self) -> None:
        if self.registry:
            await self.registry.settled(self.kernel_id)
        self.parked = False

    async def cleanup(self, restart: bool = False) -> None:
        """Clean up after the end of the kernel; if it is not restarted, remove its record."""
        await super().cleanup(restart=restart)
        if self.registry and not restart:
            await self.registry.forget(self.kernel_id)

    def get_stable_start_time(self, recommended: float = 10.0) -> float:
        """Seconds until a start counts as stable; none for a kernel that came back: its ports must not change."""
        return -1.0 if self.returned else super().get_stable_start_time(recommended)
