"""Records the output of kernels' cells while no server runs.

A server starts a shell that waits for the server's end. If kernels live on then (after a crash, or if they cannot be
parked), the shell executes this program. It continues the notes of `torpor_jupyter.kernels.notes` until the next server
has taken the kernels over, or they have ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.session import Session

from torpor.errors import TorporError
from torpor.processes import pidfd_open
from torpor_jupyter.data.records import KernelRecord, ProcessId, Records, write_private
from torpor_jupyter.kernels.transcript import Transcript

WAIT = 'read -r line || exec "$@"'
"""A shell script: execute the program when standard input ends without a line."""
LOOK_MS = 200
"""Milliseconds between two checks whether another server has taken a kernel over."""
WRITE_SECONDS = 1.0
"""Seconds between two writes of the received messages."""
NOTE = {"process", "kernel_info", "execution_count", "cell", "cells", "recorded"}
"""The fields of a note."""


class Watch:
    """The shell that waits for the end of this process."""

    def __init__(self, folder: Path, server: ProcessId) -> None:
        """Start the shell. `folder` has the records. Raises OSError."""
        program = [sys.executable, "-m", __name__, str(folder), json.dumps(asdict(server))]
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", WAIT, "torpor-recorder", *program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip

    def end(self, lives: bool) -> None:
        """Let the shell become the recorder if kernels live on; otherwise end it."""
        pipe = self._shell.stdin
        if pipe is None or pipe.closed:
            return
        with suppress(BrokenPipeError), pipe:
            pipe.write(b"" if lives else b"end\n")
        if not lives:
            self._shell.wait()

    def is_over(self) -> bool:
        """Whether there is none any more."""
        return self._shell.poll() is not None

    def wait(self) -> int:
        """Wait for its end; return its exit code."""
        return self._shell.wait()


def note_path(folder: Path, kernel_id: str) -> Path:
    """The path of the note on a kernel, in a folder of records."""
    return folder / "notes" / f"{kernel_id}.json"


def read_note(folder: Path, kernel_id: str) -> dict[str, Any]:
    """The note on a kernel; empty if there is none of this version."""
    try:
        note = json.loads(note_path(folder, kernel_id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.keys() == NOTE else {}


def is_recorded(folder: Path, kernel_id: str) -> bool:
    """Whether a recorder still records a kernel, and will write its note once more."""
    try:
        return ProcessId(**json.loads(_mark(folder, kernel_id).read_text(encoding="utf-8"))).exists()
    except (OSError, ValueError, TypeError):
        return False


def _mark(folder: Path, kernel_id: str) -> Path:
    return folder / "notes" / f"{kernel_id}.recorded"


class Followed:
    """A kernel that is being recorded."""

    def __init__(self, records: Records, record: KernelRecord, note: dict[str, Any], context: zmq.Context[Any]) -> None:
        """Connect to it. Raises OSError, ZMQError."""
        assert record.process
        self._records, self._record, self._note = records, record, note
        self.transcript = Transcript.of(note["cells"])
        self.pidfd = pidfd_open(record.process.pid)
        known = record.connection
        self._session = Session(key=known["key"].encode(), signature_scheme=known["signature_scheme"])
        self.sockets: dict[Any, str] = {}
        iopub = context.socket(zmq.SUB)
        iopub.subscribe(b"")
        self._connect(iopub, "iopub")
        for session in {str(cell.request.get("session", "")) for cell in self.transcript.running}:
            stdin = context.socket(zmq.DEALER)
            stdin.setsockopt(zmq.IDENTITY, session.encode())
            self._connect(stdin, "stdin")
        write_private(_mark(records.folder, record.id), json.dumps(asdict(ProcessId.of(os.getpid()))))
        self._note["recorded"] = datetime.now().isoformat(timespec="seconds")
        self._written = -1
        self.write()

    def _connect(self, socket: Any, channel: str) -> None:
        known = self._record.connection
        socket.linger = 0
        socket.connect(f"{known['transport']}://{known['ip']}:{known[f'{channel}_port']}")
        self.sockets[socket] = channel

    def on_message(self, socket: Any) -> None:
        """Receive all messages that wait at a socket."""
        with suppress(zmq.Again):
            while True:
                parts = socket.recv_multipart(zmq.NOBLOCK)
                try:
                    message = self._session.deserialize(self._session.feed_identities(parts)[1])
                    cell = self.transcript.add_message(self.sockets[socket], message, sum(map(len, parts)))
                except (ValueError, KeyError, TypeError):  # it is not the kernel's
                    continue
                if cell and cell.done:
                    self._note["execution_count"] = cell.count or self._note["execution_count"]

    def is_left(self) -> bool:
        """Whether no server has taken the kernel over."""
        try:
            return self._records.read(KernelRecord, self._record.id).server == self._record.server
        except TorporError:
            return False

    def write(self) -> None:
        """Write the note if there are new messages."""
        if self._written != self.transcript.changes:
            self._written = self.transcript.changes
            note = self._note | {"cells": self.transcript.as_text()}
            with suppress(OSError):  # the disk is full: it is tried again
                write_private(note_path(self._records.folder, self._record.id), json.dumps(note))

    def close(self) -> None:
        """Write the last note, and let the next server know."""
        for socket in self.sockets:
            self.on_message(socket)
            socket.close()
        self.write()
        _mark(self._records.folder, self._record.id).unlink(missing_ok=True)
        os.close(self.pidfd)


def follow(folder: Path, server: ProcessId) -> None:
    """Record the kernels of a server that has ended, until another server has taken them over or they have ended."""
    context: zmq.Context[Any] = zmq.Context()
    with _closing(list(_left(Records(folder), server, context))) as kernels:
        poller = zmq.Poller()
        for kernel in kernels:
            poller.register(kernel.pidfd, zmq.POLLIN)
            for socket in kernel.sockets:
                poller.register(socket, zmq.POLLIN)
        written = time.monotonic()
        while kernels:
            ready = dict(poller.poll(LOOK_MS))
            for kernel in list(kernels):
                for socket in kernel.sockets:
                    if socket in ready:
                        kernel.on_message(socket)
                if kernel.pidfd in ready or not kernel.is_left():
                    for one in (kernel.pidfd, *kernel.sockets):
                        poller.unregister(one)
                    kernels.remove(kernel)
                    kernel.close()
            if time.monotonic() - written >= WRITE_SECONDS:
                written = time.monotonic()
                for kernel in kernels:
                    kernel.write()
    context.term()


def _left(records: Records, server: ProcessId, context: zmq.Context[Any]) -> Iterator[Followed]:
    """The living kernels of a server that run cells of which there is a note."""
    for record in records.all(KernelRecord):
        if isinstance(record, TorporError) or record.server != server or not record.process or record.parked:
            continue
        note = read_note(records.folder, record.id)
        if note.get("process") == asdict(record.process) and Transcript.of(note["cells"]).running:
            with suppress(OSError, zmq.ZMQError):
                yield Followed(records, record, note, context)


@contextmanager
def _closing(kernels: list[Followed]) -> Iterator[list[Followed]]:
    try:
        yield kernels
    finally:
        for kernel in kernels:
            kernel.close()


if __name__ == "__main__":
    follow(Path(sys.argv[1]), ProcessId(**json.loads(sys.argv[2])))
