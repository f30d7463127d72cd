"""Room for a step: the processors of the allocation that no other step of the job has.

A task shows in its environment which it has, so that what a step holds is free when its tasks have ended, however they
end, and is held again when they are woken. Nothing is written down anywhere else. Like Slurm's, a step has all
processors if it says nothing of them, as many as it asks for with --exact, --exclusive or --cpus-per-task, and none to
itself with --overlap.

They are counted from 0 within the allocation: on the next node the job has as many, but others.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torpor_slurm.step.kin import ancestors, environments, task_variable
from torpor_slurm.step.options import Step
from torpor_slurm.step.place import locked

HOLDS = "TORPOR_STEP_CPUS"
"""The environment variable of a task that names the processors it holds: ``0,1,2``; empty with --overlap."""


class NoRoom(Exception):
    """The step will never have room, or not at once as it must; as srun says it."""


def size(variables: Mapping[str, str]) -> int:
    """How many processors the allocation has."""
    try:
        return int(variables.get("SLURM_CPUS_ON_NODE") or variables["SLURM_JOB_CPUS_PER_NODE"].partition("(")[0])
    except (KeyError, ValueError):
        return len(os.sched_getaffinity(0))


@contextmanager
def taken(step: Step, variables: Mapping[str, str]) -> Iterator[list[int]]:
    """The processors of a step, for as long as it takes to start its tasks; waits until it can have them.

    Args:
        step: what it asks for.
        variables: of the allocation and the job.

    Raises:
        NoRoom: it asks for more than the job has; it must not wait, and would have to.
    """
    job, every = variables.get("SLURM_JOB_ID", "0"), set(range(size(variables)))
    need = step.tasks * (step.cpus_per_task or 1)
    if need > len(every) and not step.has("overcommit"):
        raise NoRoom(f"Unable to create step for job {job}: More processors requested than permitted")
    if step.has("overlap"):
        yield sorted(every)
        return
    wanted = min(need, len(every)) if step.exact else len(every)
    waited = False
    while True:
        with locked(variables):  # where files cannot be, two steps may have the same processors
            holders = held(variables)
            free = sorted(every.difference(*holders.values()))
            if len(free) >= wanted:
                if waited and not step.has("quiet"):
                    print(f"srun: Step created for job {job}", file=sys.stderr, flush=True)
                yield free[:wanted]
                return
        if step.has("immediate"):
            raise NoRoom(f"Unable to create step for job {job}: Requested nodes are busy")
        if not waited and not step.has("quiet"):
            busy = "step creation temporarily disabled, retrying (Requested nodes are busy)"
            print(f"srun: Job {job} {busy}", file=sys.stderr, flush=True)
        waited = True
        _wait_for_any([pid for pid, cpus in holders.items() if cpus])


def held(variables: Mapping[str, str]) -> dict[int, set[int]]:
    """The processors that the job's tasks hold, by their PIDs; without those of the task that called this srun."""
    found = {}
    for pid, words in environments(variables):
        if task_variable(pid) in words:
            holds = next((word.partition(b"=")[2] for word in words if word.startswith(f"{HOLDS}=".encode())), b"")
            found[pid] = {int(one) for one in holds.split(b",") if one.isdigit()}
    for ancestor in ancestors():
        found.pop(ancestor, None)
    return found


def _wait_for_any(holders: Sequence[int]) -> None:
    """Wait until one of these processes has ended."""
    from torpor.processes import pidfd_open  # noqa: PLC0415 - brings the engine along: only those that wait need it

    poll = select.poll()
    fds = []
    try:
        for pid in holders:
            try:
                fds.append(pidfd_open(pid))
            except ProcessLookupError:
                return
            poll.register(fds[-1], select.POLLIN)
        poll.poll()
    finally:
        for fd in fds:
            os.close(fd)
