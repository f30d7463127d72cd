"""A real Jupyter server to test with: started as a user, asked over HTTP, its kernels used over websockets.

Kernels without a server are used over their own ports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from websocket import WebSocket, WebSocketTimeoutException, create_connection

from tests import api
from tests.users import BIN, User

TOKEN = "for-tests"
PATIENCE = 60.0
START_PATIENCE = 120.0
"""A server loads much before it answers, which takes long on a machine with much else to do."""


class Answer(Exception):
    """An answer that tells of an error."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status}: {body.get('message')}")
        self.status, self.body = status, body


def wait_until(holds: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Ask until it holds; what it gave then."""
    deadline = time.monotonic() + patience
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:.0f} s: {what}")
        time.sleep(0.02)
    return value


class Server:
    """A Jupyter server with Torpor, as a user; `stop` and `kill` end it, and it can be started again."""

    def __init__(
        self, user: User, *options: str, program: str = "server", name: str = "server", host: str = ""
    ) -> None:
        """A server named `name`, with a log and a runtime directory of its own; `host`: on a host of that name, with
        PIDs of its own (by namespaces, which take root).
        """
        self.user, self.program, self.options, self.host = user, program, options, host
        self.runtime = user.tmp / ("runtime" if name == "server" else f"runtime-{name}")
        self.root = user.own(_made(user.tmp / "notebooks"))
        self.store = user.tmp / "store"
        self.log = user.tmp / f"{name}.log"
        self.url = ""
        self.process: Any = None

    def start(self) -> Server:
        if not self.url:  # a server that is started again has its old address
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        port = self.url.rpartition(":")[2].strip("/")
        with open(self.log, "ab") as log:
            self.user.own(self.log)
            command: list[str | Path] = [
                BIN / "jupyter", self.program, "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
                f"--ServerApp.root_dir={self.root}", "--ServerApp.shutdown_no_activity_timeout=600", *self.options,
            ]  # fmt: skip
            environment = {
                "TORPOR_STORE": str(self.store), "JUPYTER_RUNTIME_DIR": str(self.runtime),
                "IPYTHONDIR": str(self.user.tmp / "ipython"),
            }  # fmt: skip
            if self.host:
                self.process = self._popen_elsewhere(list(map(str, command)), environment, log)
            else:
                self.process = self.user.popen(command, env=environment, stdout=log, stderr=log)
        wait_until(self._answers, "the server answers", START_PATIENCE)
        return self

    def _popen_elsewhere(self, command: list[str], environment: dict[str, str], log: Any) -> subprocess.Popen[bytes]:
        apart = ["unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
        become = [
            "setpriv",
            f"--reuid={self.user.uid}",
            f"--regid={self.user.gid}",
            "--clear-groups",
            "--inh-caps=-all",
        ]
        script = 'hostname "$0" && exec "$@"'
        return subprocess.Popen(
            [*apart, "sh", "-c", script, self.host, *become, *command],
            env=self.user.env | environment, cwd=self.user.tmp, start_new_session=True, stdout=log, stderr=log,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """The server's PID as tests see it."""
        if not self.host:
            return int(self.process.pid)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.tail()
        try:
            return bool(self.get("api/status"))
        except OSError:  # nobody listens yet, or the listener has just come
            return False

    def is_parked(self, kernel: str) -> bool:
        """Whether a kernel is parked, and nothing is being done any more: what is asked meanwhile is refused."""
        known = self.kernel(kernel)
        return known["state"] == "parked" and not known["operation"]

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def stop(self) -> None:
        """End it as a service manager does."""
        self._end(signal.SIGTERM)

    def interrupt(self) -> None:
        """End it as JupyterHub does."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            os.kill(self.pid, number)
            try:
                wait_until(lambda: self.process.poll() is not None or self._lost_signal(), "it ends")
                if self.process.poll() is None:
                    os.kill(self.pid, number)
                self.process.wait(PATIENCE)
            except (AssertionError, subprocess.TimeoutExpired):
                self.process.kill()
                raise AssertionError(f"the server does not end: {self.tail()}") from None

    def _lost_signal(self) -> bool:
        """Whether jupyter_server was told to end in the middle of a word of its log: then it fails to hear it."""
        return "received signal" in (tail := self.tail()) and "reentrant call" in tail

    # ------------------------------------------------------------------------------------------------- HTTP

    def ask(self, method: str, path: str, body: object = None, *, token: str = TOKEN, timeout: float = PATIENCE) -> Any:
        """Send a request; the JSON of the answer, or Answer raised."""
        request = urllib.request.Request(
            self.url + path, method=method, data=None if body is None else json.dumps(body).encode()
        )
        if token:
            request.add_header("Authorization", f"token {token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            told = json.loads(text) if text else None
        except json.JSONDecodeError:
            told = {"message": text.decode(errors="replace")}
        if path.startswith("api/torpor/") and "%" not in path:
            api.check(method, path, status, told)
        if status >= 400:
            raise Answer(status, told or {})
        return told

    def get(self, path: str) -> Any:
        return self.ask("GET", path)

    def post(self, path: str, /, **body: object) -> Any:
        return self.ask("POST", path, body)

    def torpor(self, kernel: str, path: str = "", /, **body: object) -> Any:
        """POST to Torpor's API of a kernel."""
        return self.post(f"api/torpor/kernels/{kernel}{path}", **body)

    def kernel(self, kernel: str) -> Any:
        """What Torpor says of a kernel."""
        return self.get(f"api/torpor/kernels/{kernel}")

    def new_session(self, path: str, kernel: str = "python3") -> tuple[str, str]:
        """Start a kernel of a kernelspec for a notebook; the ids of the session and of the kernel."""
        model = self.post("api/sessions", path=path, name=Path(path).name, type="notebook", kernel={"name": kernel})
        return model["id"], model["kernel"]["id"]

    def write_notebook(self, path: str, cells: list[dict[str, object]], **metadata: object) -> None:
        """Write a notebook into the server's folder, as its user."""
        metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        (self.root / path).write_text(json.dumps(notebook))
        self.user.own(self.root / path)

    def source(self, path: str, cell: int = 0) -> str:
        """The source of a cell of a notebook in the server's folder."""
        return "".join(json.loads((self.root / path).read_text())["cells"][cell]["source"])

    def end_kernels(self) -> None:
        """Shut every kernel down, parked ones too."""
        for kernel in self.get("api/kernels"):
            self.ask("DELETE", f"api/kernels/{kernel['id']}")

    def clear(self) -> None:
        """Leave it as it was when it was new, for the next test."""
        self.end_kernels()
        for made in self.get("api/torpor/checkpoints"):
            path = f"api/torpor/kernels/{made['kernel_id']}/checkpoints/{made['id']}"
            self.ask("PATCH", path, {"pinned": False})
            self.ask("DELETE", path)
        for left in self.root.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def used(server: Server) -> Iterator[Server]:
    """A running server that several tests use, one after the other.

    One that a test has started once more is that test's own, and ends with it: such tests come last in their file.
    """
    shared = server.process if server.process.poll() is None else None
    if shared is None:
        server.start()
    try:
        yield server
    finally:
        print(server.tail())  # pytest shows it when the test fails
        if server.process.poll() is None:
            server.clear()
            if server.process is not shared:
                server.stop()


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """A started server that leaves nothing behind."""
    try:
        yield server.start()
    finally:
        try:
            if server.process.poll() is None:
                server.end_kernels()
        finally:
            server.stop()
            print(server.tail())  # pytest shows it when the test fails


class Notebook:
    """What a browser's notebook is for a server: one websocket to a kernel."""

    def __init__(self, server: Server, kernel: str, session: str = "") -> None:
        """A new page, or the one with that session, which connects once more."""
        self.server, self.kernel, self.session = server, kernel, session or uuid.uuid4().hex
        url = f"{server.url.replace('http', 'ws')}api/kernels/{kernel}/channels?session_id={self.session}"
        self.socket: WebSocket = create_connection(url, header=[f"Authorization: token {TOKEN}"], timeout=PATIENCE)
        self.seen: list[dict[str, Any]] = []

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, kind: str, content: dict[str, Any], channel: str = "shell", parent: object = None) -> str:
        """Send a message; its id."""
        id = uuid.uuid4().hex
        header = {
            "msg_id": id, "msg_type": kind, "session": self.session, "username": "", "version": "5.3",
            "date": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        message = {"header": header, "parent_header": parent or {}, "metadata": {}, "content": content}
        self.socket.send(json.dumps(message | {"channel": channel, "buffers": []}))
        return id

    def start(self, code: str) -> str:
        """Send a cell."""
        return self.send("execute_request", {"code": code, "silent": False, "allow_stdin": True, "store_history": True})

    def start_loop(self) -> str:
        """Send a cell that runs until it is interrupted, and wait until an interrupt ends the cell.

        ipykernel says that it executes a cell before it does: an interrupt in between ends the request without a reply.
        """
        cell = self.start("import time\nprint('loops', flush=True)\nwhile True: time.sleep(0.01)")
        self.until(lambda: self.output(cell), "the cell runs")
        return cell

    def receive(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The next message."""
        self.socket.settimeout(timeout)
        message: dict[str, Any] = json.loads(self.socket.recv())
        self.seen.append(message)
        return message

    def about(self, id: str, kind: str) -> list[dict[str, Any]]:
        """The contents of the messages of a kind seen so far that belong to a request."""
        return [
            m["content"] for m in self.seen if (m["parent_header"] or {}).get("msg_id") == id and m["msg_type"] == kind
        ]

    def finished(self, id: str) -> bool:
        """Whether a request has its reply, and the kernel said that it is done with it."""
        idle = any(content["execution_state"] == "idle" for content in self.about(id, "status"))
        return idle and bool(self.about(id, "execute_reply"))

    def output(self, id: str) -> str:
        """What a cell has printed so far."""
        return "".join(content["text"] for content in self.about(id, "stream"))

    def printed(self) -> str:
        """What the kernel has printed so far, for whichever cell."""
        return "".join(m["content"]["text"] for m in self.seen if m["msg_type"] == "stream")

    def until(self, holds: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
        """Receive until it holds."""
        deadline = time.monotonic() + patience
        while not holds():
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise WebSocketTimeoutException
                self.receive(left)
            except WebSocketTimeoutException:
                kinds = [(m["msg_type"], m["content"].get("execution_state")) for m in self.seen[-12:]]
                raise AssertionError(f"not within {patience:.0f} s: {what}; the last messages: {kinds}") from None

    def finish(self, id: str, patience: float = PATIENCE) -> str:
        """Wait for a cell; what it printed, and errors raised as AssertionError."""
        self.until(lambda: self.finished(id), f"the cell {id} is done", patience)
        (reply,) = self.about(id, "execute_reply")
        assert reply["status"] == "ok", reply
        return self.output(id)

    def run(self, code: str) -> str:
        """Run a cell; what it printed."""
        return self.finish(self.start(code))

    def until_awake(self, holds: Callable[[], Any]) -> None:
        """Receive until it holds; a kernel that the server parks meanwhile, before a cell has come to it, is woken."""
        while not holds():
            with suppress(WebSocketTimeoutException):
                self.receive(1)
            if self.server.is_parked(self.kernel):
                self.server.torpor(self.kernel, "/resume")


@contextmanager
def connected(connection_file: Path) -> Iterator[BlockingKernelClient]:
    """A client of the kernel that writes this connection file, when the kernel answers."""
    wait_until(
        lambda: connection_file.exists() and connection_file.read_text().endswith("}"), "it writes its connection"
    )
    client = BlockingKernelClient(connection_file=str(connection_file))
    client.load_connection_file()
    # Without the heartbeat, by which a kernel that takes more than a second to start is dead.
    client.start_channels(hb=False)
    try:
        client.wait_for_ready(timeout=PATIENCE)
        yield client
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


def answers(client: BlockingKernelClient) -> bool:
    """Whether a kernel answers on both channels: each connects again by itself.

    What was not read of the kernel before it ended still waits, and is no answer.
    """
    id = client.kernel_info()
    with suppress(Empty):
        for next_message in (client.get_shell_msg, client.get_iopub_msg):
            while next_message(timeout=1)["parent_header"].get("msg_id") != id:
                pass
        return True
    return False


def printed(client: BlockingKernelClient, code: str) -> str:
    """What a cell prints, until it is done."""
    id = client.execute(code)
    text = ""
    while True:
        message = client.get_iopub_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") != id:
            continue
        assert message["msg_type"] != "error", message["content"]
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
        if message["content"].get("execution_state") == "idle":
            return text


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path
