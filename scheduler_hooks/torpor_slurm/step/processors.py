"""The processors of the allocation that are free for a step: those that no other step of the job holds.

A task's environment names the processors that it holds, and nothing else records them. So they become free when the
task ends, however it ends, and are held again when it is woken. As in Slurm, a step holds all processors by default, as
many as it asks for with --exact, --exclusive or --cpus-per-task, and none exclusively with --overlap.

Processors are counted from 0 within the allocation: on the next node the job gets the same number of processors, but
other ones.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torpor_slurm.step.job_files import locked
from torpor_slurm.step.job_processes import ancestors, environments, task_variable
from torpor_slurm.step.options import Step

CPUS_VARIABLE = "TORPOR_STEP_CPUS"
"""The environment variable of a task that names the processors it holds: ``0,1,2``; empty with --overlap."""


class NoProcessors(Exception):
    """The allocation can never have enough free processors for the step, or has not now and the step must not wait
    (--immediate). The message is srun's."""


def count(variables: Mapping[str, str]) -> int:
    """How many processors the allocation has."""
    try:
        return int(variables.get("SLURM_CPUS_ON_NODE") or variables["SLURM_JOB_CPUS_PER_NODE"].partition("(")[0])
    except (KeyError, ValueError):
        return len(os.sched_getaffinity(0))


@contextmanager
def reserved(step: Step, variables: Mapping[str, str]) -> Iterator[list[int]]:
    """Wait until a step's processors are free, and reserve them while its tasks are started.

    Args:
        step: the step.
        variables: the environment of the job, with the current allocation.

    Raises:
        NoProcessors: the step asks for more than the job has, or would have to wait and must not.
    """
    job, every = variables.get("SLURM_JOB_ID", "0"), set(range(count(variables)))
    need = step.tasks * (step.cpus_per_task or 1)
    if need > len(every) and not step.has("overcommit"):
        raise NoProcessors(f"Unable to create step for job {job}: More processors requested than permitted")
    if step.has("overlap"):
        yield sorted(every)
        return
    wanted = min(need, len(every)) if step.exact else len(every)
    waited = False
    while True:
        with locked(variables):  # on a file system without locks, two steps may get the same processors
            holders = held_by_tasks(variables)
            free = sorted(every.difference(*holders.values()))
            if len(free) >= wanted:
                if waited and not step.has("quiet"):
                    print(f"srun: Step created for job {job}", file=sys.stderr, flush=True)
                yield free[:wanted]
                return
        if step.has("immediate"):
            raise NoProcessors(f"Unable to create step for job {job}: Requested nodes are busy")
        if not waited and not step.has("quiet"):
            busy = "step creation temporarily disabled, retrying (Requested nodes are busy)"
            print(f"srun: Job {job} {busy}", file=sys.stderr, flush=True)
        waited = True
        _wait_for_any([pid for pid, cpus in holders.items() if cpus])


def held_by_tasks(variables: Mapping[str, str]) -> dict[int, set[int]]:
    """The processors that each task of the job holds, by its PID; without the task that called this srun."""
    found = {}
    for pid, words in environments(variables):
        if task_variable(pid) in words:
            entries = (word for word in words if word.startswith(f"{CPUS_VARIABLE}=".encode()))
            holds = next(entries, b"").partition(b"=")[2]
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
