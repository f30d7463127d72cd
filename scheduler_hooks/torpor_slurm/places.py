"""A script may call `torpor run` several times: each command has a place of its own in the job, with its own snapshots.

    torpor run -- ./prepare
    torpor run -- ./simulate --steps 1000000

In every run of the job the script begins from its top. So what a `torpor run` finds depends on which of the script's
commands it has. They are told apart by their words; one that comes several times, as in a loop, by its order.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.errors import Reason, Refused
from torpor_slurm.job_directory import JobDirectory


@dataclass(frozen=True)
class Place:
    """Where a command has its place in the job."""

    directory: JobDirectory
    note: str = ""
    """What the user should know of how it was found."""


def find(directory: JobDirectory, restarts: int, command: Sequence[str]) -> Place:
    """Find the place of a command in this run of the job: that of an earlier run, or a new one.

    If the words of no place are the same, the script was changed, or they differ from run to run (the name of a node,
    say). An unfinished place of the same program is then taken for the command's, since its work would be lost; a
    finished one is not, since a command that never ran would pass for finished.

    Args:
        directory: the job's.
        restarts: how often Slurm has restarted the job.
        command: what `torpor run` was given.

    Raises:
        Refused: another command of the job still runs, or has left with it.
    """
    places = directory.places()
    for place in places:
        if restarts in place.turns() and not place.has_ended(restarts):
            raise _not_now(place, restarts, command)
    free = [place for place in places if max(place.turns()) < restarts]
    for place in free:
        if place.command == [*command]:
            return Place(place)
    unfinished = [place for place in free if not place.finished]
    for place in unfinished:
        if _program(place.command) == _program(command):
            words = f"`{shlex.join(place.command)}` goes on, as an earlier run of the job has begun it"
            return Place(place, f"{words}: this run's script has `{shlex.join(command)}`")
    new = directory.at(max((place.place for place in places), default=0) + 1)
    if not unfinished:
        return Place(new)
    others = ", ".join(f"`{shlex.join(place.command)}`" for place in unfinished)
    return Place(new, f"`{shlex.join(command)}` begins; earlier runs of the job had {others}: was the script changed?")


def _program(command: Sequence[str]) -> str:
    return os.path.basename(command[0]) if command else ""


def _not_now(place: JobDirectory, restarts: int, command: Sequence[str]) -> Refused:
    state = place.state
    if state.get("run") == restarts and state.get("phase") in ("left", "ended"):
        leaves = Reason(f"job {place.job}", "this run of it has been saved, or Slurm ends it", "its next run goes on")
        return Refused(f"{command[0]} is not run", [leaves])
    return place.supervised_already()
