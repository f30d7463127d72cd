"""``%load_ext torpor``: ``%checkpoint [name]``, ``%checkpoints``, ``%rewind NAME`` in any notebook or console.

If a Jupyter server with Torpor manages the kernel, the magics call that server's REST API, and the checkpoints are
those that JupyterLab's panel shows. Without such a server (a console, VS Code), a helper process outside of the kernel
saves it: see `torpor_jupyter.client.helper`.
"""

from __future__ import annotations

import re
import time
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from traitlets.config import MultipleInstanceError

from torpor.errors import TorporError
from torpor_jupyter.client import helper, rest

FILES_OPTION = "--files=as-they-are "
KERNEL_FILE = re.compile(r"kernel-(.+)\.json")
WAKE_SECONDS = 30.0
"""How long the server may take to wake this kernel after the connection to it was lost."""


def load_ipython_extension(shell: Any) -> None:
    """Register the magics; `shell` is IPython's InteractiveShell."""
    shell.register_magics(TorporMagics)


@magics_class
class TorporMagics(Magics):
    """Torpor's magics."""

    @line_magic
    def checkpoint(self, line: str) -> None:
        """Save this kernel; it keeps running.

        ``%checkpoint [name]``. The kernel is saved in the middle of this cell. When it is taken back to this
        checkpoint, it continues with the line after this one.
        """
        name = line.strip()
        server = self._server()
        if server is None:
            print(self._call(helper.checkpoint, name))
            return
        path = f"kernels/{self._kernel_id()}/checkpoints"
        try:
            made = self._call(server.post, path, {"name": name})
        except rest.ConnectionLost:
            print(f"The kernel is back at {self._head(server)}")
            return
        print(f"Saved as {_label(made)}: {_size(made['size'])}, {_size(made['written'])} of it new")
        for notice in made["notices"]:
            print(f"A wake will not restore everything: {notice}")

    @line_magic
    def checkpoints(self, line: str) -> None:
        """List the checkpoints of this kernel, oldest first."""
        if line.strip():
            raise UsageError("%checkpoints takes no arguments")
        server = self._server()
        if server is None:
            print(self._call(helper.listed) or "There are none.")
            return
        kernel = self._call(server.get, f"kernels/{self._kernel_id()}")
        made = self._call(server.get, f"kernels/{self._kernel_id()}/checkpoints")
        for one in made:
            here = "*" if one["id"] == kernel["head"] else " "
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["created_ns"] / 10**9))
            pinned = "  (pinned)" if one["pinned"] else ""
            print(f"{here} {one['id']}  {when}  {_size(one['written']):>10}  {_title(one)}{pinned}")
        if not made:
            print("There are none.")

    @line_magic
    def rewind(self, line: str) -> None:
        """Take this kernel back to a checkpoint: ``%rewind ID`` or ``%rewind NAME``.

        First the current state is saved as another checkpoint. Cells that are running end as aborted. If a file was
        changed in place since the checkpoint, the rewind is refused, and the message names the file;
        ``%rewind --files=as-they-are NAME`` accepts such files as they are.
        """
        name = line.strip()
        wanted = {"files_as_they_are": True} if name.startswith(FILES_OPTION) else {}
        name = name.removeprefix(FILES_OPTION).strip()
        if not name:
            raise UsageError("%rewind takes the name or the id of a checkpoint: see %checkpoints")
        server = self._server()
        if server is None:
            raise UsageError(helper.NO_REWIND)
        found = self._call(rest.checkpoint_named, server, self._kernel_id(), name)
        print(f"Going back to {_label(found)}", flush=True)
        try:
            self._call(server.post, f"kernels/{self._kernel_id()}/checkpoints/{found['id']}/restore", wanted)
        except rest.ConnectionLost:  # the kernel was saved in this line, and has now continued from it
            print(f"The kernel is back at {self._head(server)}")

    def _kernel_id(self) -> str:
        """This kernel's id, from the name of its connection file; empty in a shell that is not a kernel."""
        try:
            from ipykernel.connect import get_connection_file  # noqa: PLC0415  not in a plain `ipython`

            file = get_connection_file()
        except (
            ImportError,
            RuntimeError,
            MultipleInstanceError,
        ):  # MultipleInstanceError: IPython in a terminal is the app
            return ""
        found = KERNEL_FILE.fullmatch(file.rpartition("/")[2])
        return found[1] if found else ""

    def _server(self) -> rest.JupyterServer | None:
        return rest.server_of(self._kernel_id()) if self._kernel_id() else None

    def _head(self, server: rest.JupyterServer) -> str:
        """Wait until the server has woken this kernel; return the label of the checkpoint that it was woken from."""
        deadline = time.monotonic() + WAKE_SECONDS
        while True:
            kernel = self._call(server.get, f"kernels/{self._kernel_id()}")
            if kernel["operation"] is None and kernel["head"]:
                made = self._call(server.get, f"kernels/{self._kernel_id()}/checkpoints")
                return next((_label(one) for one in made if one["id"] == kernel["head"]), kernel["head"])
            if time.monotonic() > deadline:
                return "a checkpoint"
            time.sleep(0.05)

    def _call(self, call: Any, *arguments: Any) -> Any:
        """Call a function; turn Torpor's errors but ConnectionLost into UsageError, which IPython shows in one line."""
        try:
            return call(*arguments)
        except rest.ConnectionLost:
            raise
        except TorporError as error:
            details = f"\n{error.details}" if error.details else ""
            raise UsageError(f"{error}{details}") from None


def _title(checkpoint: dict[str, Any]) -> str:
    return checkpoint["name"] or checkpoint["cell"] or f"after cell [{checkpoint['execution_count']}]"


def _label(checkpoint: dict[str, Any]) -> str:
    return f"“{checkpoint['name']}”, {checkpoint['id']}" if checkpoint["name"] else str(checkpoint["id"])


def _size(size: float) -> str:
    # Not torpor.cli.readable, which would import a command line into the kernel.
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
