"""`torpor slurm status`: the jobs under Torpor, their snapshots, and whether the grace time is long enough."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torpor.errors import NotFound
from torpor.store import readable
from torpor_slurm import controller
from torpor_slurm.controller import SlurmError
from torpor_slurm.job_directory import JobDirectory

HEADINGS = ("job", "name", "Slurm", "under Torpor", "snapshots", "last pause", "warning enough?")


@dataclass(frozen=True)
class Row:
    """One job. Times are seconds; None where it is not known."""

    job: str
    name: str
    slurm: str
    """JobState at the controller; empty if the controller does not know the job any more."""
    phase: str
    """running, left (saved and gone), ended (by Slurm or the user) or finished."""
    cause: str
    """Why it was saved and ended, or was ended."""
    node: str
    run: int
    """How often Slurm had restarted the job, as $SLURM_RESTART_COUNT."""
    snapshots: tuple[str, ...]
    saved: float | None
    """When it was last saved, seconds of the epoch."""
    size: int
    pause: float | None
    """How long the job stood still for the last save after which it ran on."""
    save_seconds: float | None
    window: int | None
    """Seconds between the first signal of a preemption and SIGKILL (GraceTime + KillWait)."""
    directory: str

    @property
    def enough(self) -> bool | None:
        """Whether the last save fits into the window."""
        if self.save_seconds is None or self.window is None:
            return None
        return self.save_seconds < self.window

    def as_json(self) -> dict[str, Any]:
        """The row for `--json`."""
        return {**dataclasses.asdict(self), "enough": self.enough}

    def in_words(self) -> tuple[str, ...]:
        """The row for people: one text for each of HEADINGS."""
        phase = f"{self.phase}: {self.cause}" if self.cause and self.phase in ("left", "ended") else self.phase
        count = str(len(self.snapshots))
        if self.snapshots and self.saved is not None:
            count += f", {readable(self.size)}, {time.time() - self.saved:.0f} s ago"
        pause = "" if not self.pause else f"{self.pause * 1000:.0f} ms"
        return (
            self.job,
            self.name,
            self.slurm or "not known any more",
            f"{phase}, run {self.run} on {self.node}",
            count,
            pause,
            self._judgement(),
        )

    def _judgement(self) -> str:
        if self.save_seconds is None:
            return "not saved yet"
        if self.window is None:
            return f"a save took {self.save_seconds:.1f} s"
        return f"{'yes' if self.enough else 'NO'}: a save took {self.save_seconds:.1f} s of {self.window} s"


def status(base: str, job: str | None = None) -> list[Row]:
    """All jobs that have a directory in a store, or the given one.

    Raises:
        NotFound: there is no such job.
    """
    directories = [directory for directory in JobDirectory.all(base) if job in (None, directory.job)]
    if job is not None and not directories:
        raise NotFound(f"store {base} has no job {job}", advice="name the job's store with --store")
    window = cache(_window)
    try:
        states = controller.states([directory.job for directory in directories])
    except (SlurmError, NotFound):
        states = {}
    return [_row(directory, directory.state, states.get(directory.job, ""), window) for directory in directories]


def _row(directory: JobDirectory, state: dict[str, Any], slurm: str, window: Callable[[str], int | None]) -> Row:
    return Row(
        job=directory.job,
        name=state.get("name", ""),
        slurm=slurm,
        phase=state.get("phase", ""),
        cause=state.get("cause", ""),
        node=state.get("node", ""),
        run=state.get("run", 0),
        snapshots=tuple(info.id for info in directory.at(state.get("place", 1)).store.snapshots()),
        saved=state.get("saved"),
        size=state.get("bytes", 0),
        pause=state.get("pause_seconds"),
        save_seconds=state.get("save_seconds"),
        window=window(state.get("partition", "")),
        directory=str(directory.path),
    )


def _window(partition: str) -> int | None:
    try:
        return controller.notice(partition).window
    except (SlurmError, NotFound):
        return None
