"""Forks: a second kernel from a checkpoint, beside the first, with ports and a key of its own.

The image is woken with every listener at a new port, which no client knows yet. Then a request, signed with the old
key, gives ipykernel its new ports and its new key. It signs its answer with the new key: this shows that it has taken
them. Only then the server and its clients learn of the new kernel. If a step fails, the new process is ended.

This works only with an idle ipykernel. Where other kernels keep their ports is not known. And if a cell were running,
its output would belong to the notebook of the first kernel.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torpor
from torpor import Files, Series, listening_ports
from torpor.errors import Reason, RestoreFailed, RestoreRefused
from torpor.store import SnapshotInfo, Store
from torpor_jupyter.data.records import CheckpointRecord
from torpor_jupyter.kernels import ipython
from torpor_jupyter.kernels.process import KernelProcess
from torpor_jupyter.kernels.quiescing import PORTS
from torpor_jupyter.kernels.state import Operation, Unsuitable

ANSWER_SECONDS = 20.0
TRIES = 3
"""A port that is free at one moment may be taken at the next."""
MORE_PORTS = 1
"""How many listeners ipykernel has besides the five of its connection file: one, for the output of its child processes.
"""


@dataclass(frozen=True)
class WokenProcess:
    """A process that was woken from a checkpoint, and has not got its identity as a second kernel yet."""

    process: KernelProcess
    ports: dict[int, int]
    """New ports by old ones."""
    warnings: tuple[str, ...]


def check(record: CheckpointRecord) -> None:
    """Raise Unsuitable if the record of a checkpoint shows that it cannot be forked."""
    kind = record.kernel_info.get("implementation", ipython.IMPLEMENTATION)
    if kind != ipython.IMPLEMENTATION:
        raise Unsuitable(
            f"a kernel of {kind} cannot be forked: it cannot change its ports and its key",
            advice="go back to the checkpoint instead; only kernels of IPython (ipykernel) can be forked",
        )
    if record.execution_state != "idle" or record.outstanding:
        raise Unsuitable(
            "a cell was running at the checkpoint: its output belongs to the first notebook",
            advice="fork a checkpoint that was made while the kernel was idle",
        )
    if record.connection.get("transport", "tcp") != "tcp":
        raise Unsuitable("only kernels over TCP can be forked", advice="set KernelManager.transport to tcp")


def wake(
    info: SnapshotInfo, store: Store, record: CheckpointRecord, operation: Operation, series: Series, files: Files
) -> WokenProcess:
    """Wake a checkpoint with all its listeners at new ports. Raises as `torpor.restore`."""
    ports = listening_ports(info, store=store)
    own = {record.connection[name] for name in PORTS}
    if len(more := sorted(ports - own)) > MORE_PORTS:
        why = "the kernel listens there, too, and the fork would have to have another port than its programs know"
        raise RestoreRefused("the checkpoint cannot be forked", [Reason(f"port {port}", why) for port in more])
    for attempt in range(TRIES):
        moved = dict(zip(sorted(ports), _free_ports(len(ports)), strict=True))
        try:
            job = torpor.restore(
                info,
                store=store,
                detach=True,
                progress=operation.progress,
                ports=moved,
                files=files,
                series=series,
            )
        except RestoreRefused as error:
            taken = any(str(port) in str(reason) for reason in error.reasons for port in moved.values())
            if not taken or attempt + 1 == TRIES:
                raise
            continue
        try:
            return WokenProcess(KernelProcess(job.tree_pid, job=job), moved, job.warnings)
        except ProcessLookupError:
            raise RestoreFailed("the kernel ended as soon as it was woken", advice="see its log") from None
    raise AssertionError("the last try raises or returns")


async def give_identity(
    woken: WokenProcess, record: CheckpointRecord, key: str, *, file: str, notebook: str, logs: list[str], log: str
) -> dict[str, Any]:
    """Give a woken kernel its own ports, key and log.

    Args:
        woken: the kernel.
        record: the record of the checkpoint.
        key: the new key.
        file: the connection file that the server will write for it.
        notebook: the path of its notebook.
        logs: log files, one of which is its standard output and error now.
        log: the log file that shall replace it.

    Returns:
        The content of its connection file.

    Raises:
        Unsuitable: the kernel cannot be forked; the caller must end its process.
    """
    connection = record.connection | {name: woken.ports[record.connection[name]] for name in PORTS}
    values = {
        "ports": {str(old): new for old, new in woken.ports.items()}, "names": list(PORTS), "key": key,
        "connection_file": file, "notebook": notebook, "logs": logs, "log": log,
    }  # fmt: skip
    try:
        kind = await ipython.implementation(connection, seconds=ANSWER_SECONDS)
        if kind != ipython.IMPLEMENTATION:
            raise ipython.NoAnswer(f"it is a kernel of {kind}")
        taken = await ipython.run_code(
            connection, ipython.NEW_IDENTITY, values, seconds=ANSWER_SECONDS, reply_key=key.encode()
        )
    except ipython.NoAnswer as error:
        raise Unsuitable(
            f"the checkpoint cannot be forked: {error.message}",
            advice="only idle kernels of IPython (ipykernel) that listen nowhere else can be forked",
        ) from error
    if taken != {name: connection[name] for name in PORTS}:
        raise Unsuitable(f"the checkpoint cannot be forked: the kernel has taken other ports, {taken}")
    return connection | {"key": key}


def _free_ports(count: int) -> list[int]:
    """Find ports that are free now."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in found:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in found]
