"""What a server remembers of a kernel that Torpor looks after."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torpor import Series
from torpor.errors import Refused, RestoreRefused, TorporError
from torpor_jupyter.kernels.gate import Gate
from torpor_jupyter.kernels.transcript import Transcript


class Unsuitable(TorporError):
    """What was asked does not fit the state that the kernel is in. It was not touched."""

    exit_code = 10


class Cancelled(TorporError):
    """Somebody did not want to wait for it. The kernel is as it was before."""

    exit_code = 10


def as_json(error: TorporError) -> dict[str, Any]:
    """An error for the REST API: the reason as the message, what to do next beside it."""
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
    """What is being done to a kernel."""

    doing: str
    """``saving``, ``parking``, ``waking``, ``restoring``, ``forking``."""
    began_ns: int = field(default_factory=time.time_ns)
    done: int = 0
    total: int = 0
    """Bytes of memory done, and in all; 0 while unknown."""

    cancelled: bool = False

    def progress(self, done: int, total: int) -> None:
        """For the engine; called from its threads. Raises Cancelled to stop it."""
        self.done, self.total = done, total
        if self.cancelled:
            raise Cancelled(f"{self.doing} was cancelled")


@dataclass
class State:
    """What the server remembers of one kernel."""

    gate: Gate = field(default_factory=Gate)
    said: Transcript = field(default_factory=Transcript)
    series: Series = field(default_factory=Series)
    """Its checkpoints since this server knows it: the next one reads what was written since the last."""
    operation: Operation | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    """While something is done to it: what is told of its state, which changes only with the end."""
    ending: bool = False
    """It is being ended: its gate is held shut for good, or until it has a new process."""
    parked: str = ""
    """The snapshot that it is parked in."""
    parked_ns: int = 0
    execution_state: str = "idle"
    """While parked: what it did."""
    unsaved: dict[str, Any] | None = None
    """Why it could not be saved when that was tried last, as the REST API has errors, and when: ``at_ns``."""
    head: str = ""
    """The checkpoint that it was last saved in or taken back to."""
    log: str = ""
    """Of a fork: the kernel whose log processes may have open that it had started before."""
    saved_at: float = field(default_factory=time.monotonic)
    """When it was last saved, or first seen; by time.monotonic()."""
    saved_cells: int = 0
    """How many cells had been sent to it then."""
