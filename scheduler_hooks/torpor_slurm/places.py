"""A script may call `torpor run` several times. Each of these commands has a *place* in the job directory: a
subdirectory with the snapshots of this command.

    torpor run -- ./prepare
    torpor run -- ./simulate --steps 1000000

In every run of the job the script begins from its top. So each `torpor run` has to find the place of its command: by
the command line, and if the same command comes several times, as in a loop, by the order.
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
    """The place of a command in the job."""

    directory: JobDirectory
    note: str = ""
    """What to tell the user about how it was found, if anything."""


def find(directory: JobDirectory, restarts: int, command: Sequence[str]) -> Place:
    """Find the place of a command in this run of the job: that of an earlier run, or a new one.

    If no place has this command line, either the script was changed, or the command line differs from run to run (it
    has the name of a node, say). Then an unfinished place of the same program is taken: otherwise its work would be
    lost. A finished place is not taken: a command that never ran would count as finished.

    Args:
        directory: the job's.
        restarts: how often Slurm has restarted the job.
        command: what `torpor run` was given.

    Raises:
        Refused: another command of the job still runs, or was saved in this run because the job ends.
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
