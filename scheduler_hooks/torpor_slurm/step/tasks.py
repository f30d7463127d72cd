"""The tasks of a step: the processors, environment and files that each gets, and how it is started."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from torpor_slurm.step.files import file_name, is_one_per_task
from torpor_slurm.step.options import Step
from torpor_slurm.step.processors import CPUS_VARIABLE

BOUND = "TORPOR_STEP_BOUND"
"""The environment variable of a task that names the processors it is bound to, written like CPUS_VARIABLE."""
_ONLY_TO_WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


@dataclass(frozen=True)
class Binding:
    """The processors of a step's tasks."""

    holds: Sequence[Sequence[int]]
    """The processors that each task holds, counted within the allocation."""
    masks: Sequence[frozenset[int]] | None
    """The processors that each task is bound to, by the kernel's numbers; None: no task is bound."""
    variables: Mapping[str, str]
    """The SLURM_CPU_BIND* variables."""
    shares: Sequence[Sequence[int]] = ()
    """Like `masks`, but counted within the allocation; empty if --cpu-bind gives the kernel's numbers."""


def binding(step: Step, cpus: Sequence[int], allocated: int, allowed: Sequence[int]) -> Binding:
    """Divide a step's processors among its tasks: by --cpu-bind, or evenly.

    Args:
        step: the step.
        cpus: the step's processors, counted within the allocation.
        allocated: how many processors the allocation has.
        allowed: the kernel's numbers of the processors that this process may use. If Slurm does not confine jobs to
            their allocation, these are more than the allocation has. Then no task is bound: other jobs would be bound
            to the same processors.
    """
    share = step.cpus_per_task if step.exact and step.cpus_per_task else len(cpus) // step.tasks
    holds = [list(cpus[task * share : (task + 1) * share]) for task in range(step.tasks)]
    holds[0] += cpus[share * step.tasks :]
    if step.has("overlap"):
        holds = [[] for _ in holds]
    words = step.values.get("cpu-bind", "").split(",")
    verbosity = "verbose" if words[0] in ("v", "verbose") else "quiet"
    rest = words[1:] if words[0] in ("v", "verbose", "q", "quiet") else words
    kind, _, first = rest[0].partition(":") if rest else ("", "", "")
    listed = [first, *rest[1:]] if first else []
    masks: list[frozenset[int]] | None = None
    shares: list[Sequence[int]] = []
    if kind in ("map_cpu", "mask_cpu"):
        chosen = [frozenset([int(one, 0)]) if kind == "map_cpu" else _bits(int(one, 16)) for one in listed]
        masks = [chosen[task % len(chosen)] for task in range(step.tasks)] if chosen else None
    elif kind in ("none", "no"):
        listed = []
    elif len(allowed) == allocated and 0 < share < allocated:
        shares = [cpus[task * share : (task + 1) * share] for task in range(step.tasks)]
        masks = [frozenset(allowed[cpu] for cpu in one) for one in shares]
        if not kind:
            kind, listed = "mask_cpu", [hex(sum(1 << cpu for cpu in mask)) for mask in masks]
    variables = {}
    if kind:
        typed = f"{kind}:" if listed else kind
        variables = {
            "SLURM_CPU_BIND": f"{verbosity},{typed}{','.join(listed)}",
            "SLURM_CPU_BIND_LIST": ",".join(listed),
            "SLURM_CPU_BIND_TYPE": typed,
            "SLURM_CPU_BIND_VERBOSE": verbosity,
        }
    return Binding(holds, masks, variables, shares)


def _bits(mask: int) -> frozenset[int]:
    return frozenset(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def environment(step: Step, number: int, cpus: int, job: Mapping[str, str]) -> dict[str, str]:
    """The environment of all tasks of a step, as slurmstepd of Slurm 22.05 sets it.

    The four variables about srun's sockets (SLURM_SRUN_COMM_HOST and the like) are left out: this srun has no sockets.

    Args:
        step: the step.
        number: its number.
        cpus: how many processors it has.
        job: the environment that srun was called with.
    """
    tasks = str(step.tasks)
    found = {
        **job,
        "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks,
        "SLURM_STEP_ID": str(number),
        "SLURM_STEPID": str(number),
        "SLURM_STEP_NODELIST": job.get("SLURM_JOB_NODELIST", ""),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": tasks,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": "0",
        "SLURM_GTIDS": ",".join(map(str, range(step.tasks))),
        "SLURM_DISTRIBUTION": step.values.get("distribution") or ("block" if step.tasks > 1 else "cyclic"),
        "SLURM_UMASK": f"{_umask():04o}",
        "SRUN_DEBUG": "3",
    }
    if step.exact:
        found["SLURM_CPUS_ON_NODE"] = str(cpus)
    if step.cpus_per_task:
        found["SLURM_CPUS_PER_TASK"] = str(step.cpus_per_task)
    for name, variable in (("label", "SLURM_LABELIO"), ("overcommit", "SLURM_OVERCOMMIT")):
        if step.has(name):
            found[variable] = "1"
    for option, variable in (("job-name", "SLURM_JOB_NAME"), ("ntasks-per-node", "SLURM_NTASKS_PER_NODE")):
        if value := step.values.get(option):
            found[variable] = value
    return found


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@dataclass
class Task:
    """A task of a step, before its start."""

    number: int
    command: Sequence[str]
    stdio: list[int]
    """The descriptors that become its 0, 1 and 2."""
    pipes: list[int] = field(default_factory=list)
    """Pipe ends among them that only the task uses: `start` closes them here once the task has them."""

    def become(self, variables: Mapping[str, str], bound: Binding) -> NoReturn:
        """Replace this process by the task."""
        for number in signal.valid_signals():  # as slurmstepd sets them; Python, and a shell's `&`, ignore some
            with suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if bound.masks is not None:
            with suppress(OSError):  # this job may use none of them: the task stays unbound, as with Slurm
                os.sched_setaffinity(0, bound.masks[self.number])
        high = [os.dup(fd) for fd in self.stdio]  # first: dup2() below may close one that is needed; no CLOEXEC
        for target, fd in enumerate(high):
            os.dup2(fd, target)
        for fd in set(high) - {0, 1, 2}:
            os.close(fd)
        own = {
            **variables,
            **bound.variables,
            "SLURM_PROCID": str(self.number),
            "SLURM_LOCALID": str(self.number),
            "SLURM_TASK_PID": str(os.getpid()),
            CPUS_VARIABLE: ",".join(map(str, bound.holds[self.number])),
        }
        if bound.shares:
            own[BOUND] = ",".join(map(str, bound.shares[self.number]))
        try:
            os.execvpe(self.command[0], list(self.command), own)
        except OSError as error:
            node = os.uname().nodename.partition(".")[0]
            words = f"slurmstepd-{node}: error: execve(): {self.command[0]}: {error.strerror}\n"
            os.write(2, words.encode(errors="surrogateescape"))
            os._exit(error.errno or 1)

    def start(self, variables: Mapping[str, str], bound: Binding) -> int:
        """Start the task as a child, and return its PID."""
        # Signals that are forwarded to the child stay pending until it has reset its signal actions.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            try:
                self.become(variables, bound)
            finally:
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for fd in self.pipes:
            os.close(fd)
        return pid


class Files:
    """The standard files of a step's tasks."""

    def __init__(self, step: Step, number: int, job: Mapping[str, str]) -> None:
        """Prepare them.

        Args:
            step: the step.
            number: its number.
            job: the environment that srun was called with.
        """
        self._step = step
        self._number = number
        self._job = job
        self._opened: dict[str, int] = {}

    def input(self, task: int) -> int | None:
        """The descriptor for a task's stdin; None if srun's own stdin is copied to every task."""
        value = self._step.values.get("input", "all")
        if value in ("all", ""):
            return 0 if self._step.tasks == 1 or _is_null(0) else None
        if value.isdecimal() and int(value) < self._step.tasks:
            return 0 if int(value) == task else self._open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        path = os.devnull if value == "none" else self._name(value, task)
        return self._open(path, os.O_RDONLY | os.O_CLOEXEC)

    def output(self, task: int, stream: int) -> tuple[int, bool]:
        """The descriptor for a task's stdout (1) or stderr (2), and whether other tasks write to the same file."""
        values = self._step.values
        value = values.get("output" if stream == 1 else "error", "all")
        if stream == 2 and "error" not in values and "output" in values:
            return self.output(task, 1)
        if value in ("all", ""):
            return stream, self._step.tasks > 1
        if value.isdecimal() and int(value) < self._step.tasks:
            return (stream, False) if int(value) == task else (self._open(os.devnull, _ONLY_TO_WRITE), False)
        if value == "none":
            return self._open(os.devnull, _ONLY_TO_WRITE), False
        flags = os.O_APPEND if values.get("open-mode", "truncate").startswith("a") else os.O_TRUNC
        fd = self._open(self._name(value, task), flags | _ONLY_TO_WRITE)
        return fd, self._step.tasks > 1 and not is_one_per_task(value)

    def close(self, kept: Set[int]) -> None:
        """Close the files here, except those in `kept`, to which merged output is written."""
        for fd in set(self._opened.values()) - kept:
            os.close(fd)

    def _name(self, value: str, task: int) -> str:
        return file_name(value, self._job, self._number, task)

    def _open(self, path: str, flags: int) -> int:
        key = f"{flags} {path}"
        if key not in self._opened:
            self._opened[key] = os.open(path, flags, 0o666)
        return self._opened[key]


def _is_null(fd: int) -> bool:
    try:
        return os.fstat(fd).st_rdev == Path(os.devnull).stat().st_rdev
    except OSError:
        return True  # it is closed


def say(words: str) -> None:
    """Print a line to stderr, as srun does."""
    print(f"srun: {words}", file=sys.stderr, flush=True)
