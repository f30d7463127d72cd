"""Call the REST API of a Jupyter server with Torpor, from one of its kernels or from a terminal.

Servers are found as by `jupyter server list`: each writes its address and token to a file in Jupyter's runtime
directory, which only the user can read.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jupyter_core.paths import jupyter_runtime_dir

from torpor.errors import NotFound, TorporError

LOOK_SECONDS = 10.0
"""How long a server may take to answer a query."""
WORK_SECONDS = 3600.0
"""How long saving or waking a kernel may take."""
FOUND_NOTHING = "start one with `jupyter lab`, in an environment where torpor[jupyter] is installed"


class ServerRefused(TorporError):
    """A server refused a request, or failed; the message is its reason."""

    exit_code = 10


class ConnectionLost(TorporError):
    """The connection to a server ended before its answer."""


@dataclass(frozen=True)
class JupyterServer:
    """A running server of this user."""

    url: str
    token: str
    root_dir: str

    def get(self, path: str, *, seconds: float = LOOK_SECONDS) -> Any:
        """Send GET to a path below ``/api/torpor/``. Raises as `ask`."""
        return self.ask("GET", path, None, seconds=seconds)

    def post(self, path: str, body: dict[str, object] | None = None) -> Any:
        """Send POST to a path below ``/api/torpor/``. Raises as `ask`."""
        return self.ask("POST", path, body or {}, seconds=WORK_SECONDS)

    def ask(self, method: str, path: str, body: object, *, seconds: float) -> Any:
        """Send a request; return the JSON of the answer.

        Raises:
            ServerRefused: the server refused; the message has the reason.
            NotFound: the server has no such kernel or checkpoint, or no Torpor.
            ConnectionLost: there was no answer.
        """
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        port = parts.port
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, port, timeout=seconds, context=ssl.create_default_context())
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=seconds)
        )
        # In a JupyterHub, servers have no token of their own. They accept the one that their kernels inherit.
        token = self.token or os.environ.get("JUPYTERHUB_API_TOKEN", "")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"token {token}"} if token else {})
        try:
            connection.request(
                method, f"{parts.path}api/torpor/{path}", None if body is None else json.dumps(body), headers
            )
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(f"{self.url} does not answer: {error}", advice="see `jupyter server list`") from error
        finally:
            connection.close()
        try:
            found = json.loads(text)
        except ValueError:
            found = {}
        if status < http.client.BAD_REQUEST:
            return found
        message = found.get("reason") or found.get("message") or f"{self.url} answered {status}"
        kind = NotFound if status == http.client.NOT_FOUND else ServerRefused
        details = "\n".join(found.get("details") or ())
        raise kind(message, advice=found.get("advice") or "", details=details)


def servers() -> list[JupyterServer]:
    """The servers of this user that have written such a file. A server that was killed is among them.

    Whether its process lives is not checked: a woken kernel may be in its own PID namespace.
    """
    found = []
    for path in sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            server = JupyterServer(record["url"], record["token"], record["root_dir"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is just starting or ending, or is of another version
        if server.url.startswith("http") and "+unix" not in server.url:
            found.append(server)
    return found


def server_of(kernel_id: str) -> JupyterServer | None:
    """The server with Torpor that manages a kernel; None if there is none."""
    for server in servers():
        try:
            server.get(f"kernels/{quote(kernel_id)}")
        except TorporError:
            continue  # it has no such kernel, or no Torpor, or denies access
        return server
    return None


@dataclass(frozen=True)
class KernelHandle:
    """A kernel of a running server."""

    server: JupyterServer
    id: str
    head: str | None
    """The checkpoint that it was last saved to or restored from."""

    def get(self, path: str) -> Any:
        """Send GET to a path below the kernel. Raises as `JupyterServer.get`."""
        return self.server.get(f"kernels/{quote(self.id)}/{path}")

    def post(self, path: str, /, **body: object) -> Any:
        """Send POST to a path below the kernel. Raises as `JupyterServer.post`."""
        return self.server.post(f"kernels/{quote(self.id)}/{path}", body)

    def checkpoint(self, name: str) -> str:
        """The id of a checkpoint; arguments and errors as of `checkpoint_named`."""
        return str(checkpoint_named(self.server, self.id, name)["id"])


def find(name: str) -> KernelHandle:
    """Find a kernel by the beginning of its id, or by its notebook's path or file name.

    If no kernel of a server is meant, find one that has ended, or was imported, and has checkpoints.

    Raises:
        NotFound: there is none, or more than one.
    """
    everything = _reachable()
    known = {
        kernel["id"]: (KernelHandle(server, kernel["id"], kernel["head"]), [one["path"] for one in kernel["sessions"]])
        for server, of_server in everything
        for kernel in of_server
    }
    found = _meant(name, known)
    if not found:
        ended = {
            made["kernel_id"]: (KernelHandle(server, made["kernel_id"], None), [made["path"]])
            for server, _ in everything
            for made in server.get("checkpoints")
        }
        found = _meant(name, ended)
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(kernel.id for kernel in found)
        raise NotFound(f"{name!r} matches more than one kernel: {ids}", advice="give more characters of the id")
    raise NotFound(f"no kernel {name!r}", advice="see `jupyter torpor list`")


def _meant(name: str, known: dict[str, tuple[KernelHandle, list[str | None]]]) -> list[KernelHandle]:
    """The kernels that a name may mean, by their ids and the paths of their notebooks."""
    return [
        kernel
        for kernel, paths in known.values()
        if name
        and (kernel.id.startswith(name) or any(path and name in (path, os.path.basename(path)) for path in paths))
    ]


def kernels() -> list[tuple[JupyterServer, dict[str, Any]]]:
    """All kernels of this user's servers with Torpor. Raises NotFound if there is no such server."""
    return [(server, kernel) for server, found in _reachable() for kernel in found]


def _reachable() -> list[tuple[JupyterServer, list[dict[str, Any]]]]:
    """This user's servers with Torpor, and their kernels. Raises NotFound if there is none."""
    found, lost = [], []
    for server in servers():
        try:
            found.append((server, server.get("kernels")))
        except TorporError as error:
            lost.append(f"{server.url}: {error}")
    if not found:
        raise NotFound("no Jupyter server with Torpor runs here", advice=FOUND_NOTHING, details="\n".join(lost))
    return found


def serving(path: str, only: JupyterServer | None = None) -> tuple[JupyterServer, str]:
    """The server (or `only` that one) below whose folder a file of this host is, and the file's path there.

    Raises:
        NotFound: it is below no server's folder.
    """
    whole = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
    among = [only] if only else [server for server, _ in _reachable()]
    roots = {server: os.path.realpath(server.root_dir) for server in among}
    below = {server: root for server, root in roots.items() if os.path.commonpath([root, whole]) == root}
    if not below:
        folders = ", ".join(roots.values())
        raise NotFound(f"{path} is not below the folder of a Jupyter server", advice=f"name a file below {folders}")
    server = max(below, key=lambda one: len(below[one]))
    return server, os.path.relpath(whole, below[server])


def checkpoint_named(server: JupyterServer, kernel_id: str, name: str) -> dict[str, Any]:
    """Find a checkpoint of a kernel by its name (the newest of that name) or by the beginning of its id.

    Raises:
        NotFound: there is none, or several ids begin so.
    """
    made: list[dict[str, Any]] = server.get(f"kernels/{quote(kernel_id)}/checkpoints")
    named = [checkpoint for checkpoint in made if name and checkpoint["name"] == name]  # most have no name
    if named:
        return named[-1]
    if name == "latest" and made:
        return made[-1]
    by_id = [one for one in made if name and (one["id"].startswith(name) or one["id"].rpartition("-")[2] == name)]
    if len(by_id) == 1:
        return by_id[0]
    why = "is the beginning of several ids" if by_id else "is not one of its checkpoints"
    raise NotFound(f"{name!r} {why}", advice="see %checkpoints, or `jupyter torpor checkpoints`")
