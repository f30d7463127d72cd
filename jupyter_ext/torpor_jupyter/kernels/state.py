"""The state that a server keeps in memory for each kernel that Torpor manages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torpor import Series
from torpor.errors import Refused, RestoreRefused, TorporError
from torpor_jupyter.kernels.gate import Gate
from torpor_jupyter.kernels.transcript import Transcript


class Unsuitable(TorporError):
    """The request does not fit the kernel's present state. The kernel was not touched."""

    exit_code = 10


class Cancelled(TorporError):
    """The user has cancelled the operation. The kernel is as it was before."""

    exit_code = 10


def as_json(error: TorporError) -> dict[str, Any]:
    """An error as JSON for the REST API."""
    reasons = error.reasons if isinstance(error, (Refused, RestoreRefused)) else ()
    return {
        "message": str(error),
        "reason": error.message,
        "advice": error.advice,
        "details": [str(reason) for reason in reasons],
        "causes": [{"why": reason.why, "advice": reason.advice} for reason in reasons],
        "kind": type(error).__name__,
        "only_files": isinstance(error, RestoreRefused) and error.only_files,
    }


@dataclass
class Operation:
    """An operation on a kernel that is in progress."""

    doing: str
    """``saving``, ``parking``, ``waking``, ``restoring``, ``forking``."""
    began_ns: int = field(default_factory=time.time_ns)
    done: int = 0
    total: int = 0
    """Bytes of memory: done so far, and in all. 0 while unknown."""

    cancelled: bool = False

    def progress(self, done: int, total: int) -> None:
        """Note the progress. The engine calls this from its threads. Raises Cancelled to stop it."""
        self.done, self.total = done, total
        if self.cancelled:
            raise Cancelled(f"{self.doing} was cancelled")


@dataclass
class State:
    """The state of one kernel."""

    gate: Gate = field(default_factory=Gate)
    transcript: Transcript = field(default_factory=Transcript)
    series: Series = field(default_factory=Series)
    """Its checkpoints since this server knows it: the next one reads only memory that was written since the last."""
    operation: Operation | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    """During an operation: the condition that is reported (`Registry.condition`), as it was before the operation."""
    ending: bool = False
    """Whether it is being ended. Then its gate is held shut, for good or until it has a new process."""
    parked: str = ""
    """The id of the snapshot that it is parked in; empty if it is living."""
    parked_ns: int = 0
    execution_state: str = "idle"
    """While parked: its execution state (idle, busy) at that time."""
    unsaved: dict[str, Any] | None = None
    """Why the last attempt to save it failed, as an error of the REST API, and when (``at_ns``); None if it did not."""
    head: str = ""
    """The id of the checkpoint that it was last saved in, or taken back to."""
    log: str = ""
    """Of a fork: the id of the kernel whose log may still be open in processes that were started before the fork."""
    saved_at: float = field(default_factory=time.monotonic)
    """When it was last saved, or first seen (time.monotonic())."""
    saved_cells: int = 0
    """How many cells had been sent to it by then."""
