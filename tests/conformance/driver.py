"""A process of one user that checkpoints and restores on request, each request in a fresh fork.

It imports torpor once, which is most of what a new interpreter would cost, and then answers on a unix
socket: one connection, one forked handler, lines of JSON both ways.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import gc
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, TextIO
from unittest import mock

import torpor
from torpor.dump import proof
from torpor.errors import TorporError
from torpor.image import reading
from torpor.probe import probe
from torpor.remote import killing
from torpor.remote.freeze import Frozen
from torpor.restorer.round_trip import differences

PR_SET_CHILD_SUBREAPER = 36
PR_SET_PTRACER = 0x59616D61
MARK = 0x746F7270
"""For prctl: see tests/inject/inject.c."""


@contextmanager
def marked() -> Iterator[None]:
    """What tests/inject counts the calls of."""
    mark = ctypes.CDLL(None).prctl
    mark(MARK, 1, 0, 0, 0)
    try:
        yield
    finally:
        mark(MARK, 0, 0, 0, 0)


def checkpoint(request: dict[str, Any], reply: TextIO) -> None:
    """Take a snapshot and say its id. With "gone" as `then` the tree ends in the moment in which it would run on."""
    options = {name: request[name] for name in ("outside", "tcp", "bundle_files") if name in request}
    then = request["then"]
    with marked(), mock.patch.object(Frozen, "thaw", _end) if then == "gone" else nullcontext():
        snapshot = torpor.checkpoint(
            request["pid"], store=request["store"], then="run" if then == "gone" else then, **options
        )
    if found := [notice for notice in snapshot.notices if notice.startswith(proof.DIFFERING)]:
        raise TorporError(*found)
    say(reply, snapshot=snapshot.id)


def _end(frozen: Frozen) -> None:
    frozen.pause_ns = 1
    killing.kill(frozen.processes)


def restore(request: dict[str, Any], reply: TextIO) -> None:
    """Restore: say the job's PID; unless it is detached stay until it ends, and say how."""
    flags = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)
    stdio = [os.open(path, flag) for path, flag in zip(request.get("stdio", ()), flags, strict=False)]
    options = {name: request[name] for name in ("files", "way") if name in request}
    detach = bool(request.get("detach"))
    here = probe()
    if request.get("executes"):  # as where no user namespace can be made
        here = dataclasses.replace(here, user_namespaces=False, set_mm_map=False)
    with marked(), mock.patch("torpor.restorer.surroundings.probe", lambda: here):
        job = torpor.restore(
            request["snapshot"], store=request["store"], detach=detach, stdio=stdio or (0, 1, 2), **options
        )
    for fd in stdio:
        os.close(fd)
    say(reply, pid=job.pid)
    if not detach:
        say(reply, status=job.wait())


def inspect(request: dict[str, Any], reply: TextIO) -> None:
    """What the store shows, and everything that is wrong in it."""
    store = torpor.Store(request["store"])
    there = os.path.isdir(request["store"])
    listed = [one.id for one in store.snapshots()] if there else []
    say(reply, listed=listed, faults=[str(reason) for reason in store.verify()] if listed else [])


def compare(request: dict[str, Any], reply: TextIO) -> None:
    """What differs, and should not, between successive snapshots in a store."""
    store = torpor.Store(request["store"])
    images = []
    for one in store.snapshots():
        with store.open(one) as reader:
            images.append(reading.read(reader))
    say(reply, differences=[words for both in pairwise(images) for words in differences(*both)])


def say(reply: TextIO, **words: object) -> None:
    """One line of JSON to the harness."""
    reply.write(json.dumps(words) + "\n")
    reply.flush()


ANSWERS = {"checkpoint": checkpoint, "restore": restore, "inspect": inspect, "compare": compare}


def handle(connection: socket.socket) -> None:
    """Answer one request and its consequences."""
    with connection.makefile("rw") as stream:
        say(stream, handler=os.getpid())
        request = json.loads(stream.readline())
        if request.get("file_size"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
        if request.get("attended"):  # by tests/inject, which says when it is there
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, -1, 0, 0, 0)
            probe.cache_clear()  # its calls are tried, too
            faulthandler.enable()
            stream.readline()
        try:
            ANSWERS[request["do"]](request, stream)
        except TorporError as error:
            say(stream, error=type(error).__name__, exit_code=error.exit_code, message=str(error))


def serve(path: str) -> None:
    """Accept requests for ever; the harness ends this process when it is done."""
    with socket.socket(socket.AF_UNIX) as listener:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a killed handler leaves is seen below us
        _ = torpor.checkpoint, torpor.restore, probe()  # imported and tried once, here, not in every handler
        gc.freeze()  # what is there already is not copied for a handler only because its collector looks at it
        listener.bind(f"{path}.draft")
        listener.listen()
        os.rename(f"{path}.draft", path)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: the harness looks for zombies
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                faulthandler.register(signal.SIGQUIT)  # the harness asks one that hangs where it is
                listener.close()
                try:
                    handle(connection)
                except BaseException:
                    sys.excepthook(*sys.exc_info())  # in the log before the harness sees the end
                    os._exit(70)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])
