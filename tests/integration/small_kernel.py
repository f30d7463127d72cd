"""A kernel that starts at once: Jupyter's protocol, and Python's exec. Its argument is its connection file."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import zmq


class Kernel:
    def __init__(self, connection: dict[str, Any]) -> None:
        self.key = connection["key"].encode()
        context = zmq.Context()
        kinds = {"shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER, "iopub": zmq.PUB, "hb": zmq.REP}
        self.sockets = {name: context.socket(kind) for name, kind in kinds.items()}
        for name, socket in self.sockets.items():
            if kinds[name] == zmq.ROUTER:
                socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            socket.bind(f"tcp://{connection['ip']}:{connection[f'{name}_port']}")
        self.names: dict[str, Any] = {}
        self.count = 0

    def send(self, channel: str, to: list[bytes], kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "", "username": "", "version": "5.3"}
        header["date"] = "2026-01-01T00:00:00Z"
        parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
        mark = hmac.new(self.key, b"".join(parts), hashlib.sha256).hexdigest().encode()
        self.sockets[channel].send_multipart([*to, b"<IDS|MSG>", mark, *parts])

    def publish(self, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        self.send("iopub", [kind.encode()], kind, content, parent)

    def answer(self, channel: str) -> bool:
        """Answer one request; whether the kernel goes on."""
        parts = self.sockets[channel].recv_multipart()
        at = parts.index(b"<IDS|MSG>")
        header, content = json.loads(parts[at + 2]), json.loads(parts[at + 5])
        kind = header["msg_type"]
        reply: dict[str, Any] = {"status": "ok"}
        self.publish("status", {"execution_state": "busy"}, header)
        if kind == "kernel_info_request":
            reply |= {"implementation": "small", "protocol_version": "5.3", "implementation_version": "1"}
            reply |= {"language_info": {"name": "python"}, "banner": "", "help_links": []}
        elif kind == "execute_request":
            self.count += 1
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(content["code"], self.names)
            self.publish("stream", {"name": "stdout", "text": said.getvalue()}, header)
            reply["execution_count"] = self.count
        self.send(channel, parts[:at], kind.replace("_request", "_reply"), reply, header)
        self.publish("status", {"execution_state": "idle"}, header)
        return bool(kind != "shutdown_request")

    def run(self) -> None:
        poller = zmq.Poller()
        for name in ("shell", "control", "hb"):
            poller.register(self.sockets[name], zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.sockets["hb"] in ready:
                self.sockets["hb"].send(self.sockets["hb"].recv())
            for channel in ("control", "shell"):
                if self.sockets[channel] in ready and not self.answer(channel):
                    return


signal.signal(signal.SIGINT, signal.SIG_IGN)
Kernel(json.loads(Path(sys.argv[1]).read_text())).run()
