"""The srun wrapper: below a supervisor, `srun` runs a step of one task in place, as a part of the job's process tree.

slurmstepd starts the tasks of a real step, not srun. They would not be in a snapshot, and a woken srun would find its
connection to them gone, and exit with 0. So the supervisor puts a script named srun first in the application's PATH;
that script runs this module. It ignores options that mean nothing for one task on this node (binding, sharing), and
refuses those that matter (several tasks, another node, GPUs).
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torpor import processes
from torpor.errors import NotFound, Reason, Refused, TorporError
from torpor.store import make_directories, sync_directory
from torpor_slurm.allocation import ENV_FILE
from torpor_slurm.options import Grammar

GRAMMAR = Grammar(
    without_value=frozenset({
        "contiguous", "disable-status", "exact", "exclusive", "help", "hold", "interactive", "kill-on-bad-exit",
        "label", "multi-prog", "nice", "no-allocate", "no-kill", "overcommit", "overlap", "oversubscribe",
        "preserve-env",
        "propagate", "pty", "quiet", "quit-on-interrupt", "resv-ports", "spread-job", "test-only", "unbuffered",
        "usage", "use-min-nodes", "verbose", "version", "whole",
    }),
    short_without_value=frozenset("EHKOQVXZhklqsuv"),
    long={
        "D": "chdir", "E": "preserve-env", "G": "gpus", "J": "job-name", "K": "kill-on-bad-exit", "N": "nodes",
        "O": "overcommit", "Q": "quiet", "W": "wait", "X": "disable-status", "c": "cpus-per-task", "e": "error",
        "i": "input", "k": "no-kill", "l": "label", "m": "distribution", "n": "ntasks", "o": "output",
        "q": "quit-on-interrupt", "s": "oversubscribe", "u": "unbuffered", "v": "verbose", "w": "nodelist",
    },
)  # fmt: skip
"""srun(1)."""
_NEEDLESS = frozenset({
    "--", "acctg-freq", "comment", "cpu-bind", "cpu-freq", "cpus-per-task", "disable-status", "distribution", "exact",
    "exclusive", "hint", "job-name", "kill-on-bad-exit", "mem", "mem-bind", "mem-per-cpu", "no-kill", "overcommit",
    "overlap", "oversubscribe", "preserve-env", "quiet", "quit-on-interrupt", "slurmd-debug", "threads-per-core",
    "unbuffered", "verbose", "wait", "whole",
})  # fmt: skip
"""Options that mean nothing for a single task that has all of the job's resources on this node."""
_ONE = ("nodes", "ntasks", "ntasks-per-node")
"""Options that are accepted with the value 1."""
_FILES = {"input": (0, os.O_RDONLY), "output": (1, os.O_WRONLY | os.O_CREAT), "error": (2, os.O_WRONLY | os.O_CREAT)}


_PATTERN = re.compile(r"%(\d*)(.?)", re.DOTALL)
_KNOWN = frozenset("%AJNabjnstux")
"""The letters of srun's file name patterns."""

SCRIPT = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -E -m torpor_slurm.srun_wrapper "$@"\n'
"""The script named srun that the application finds in its PATH."""


def refusals(values: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Reason]:
    """What a step requests that cannot be a part of a snapshot."""
    tasks = values.get("ntasks", environment.get("SLURM_NTASKS", "1"))
    if tasks != "1":
        why = f"{tasks} tasks: only a step of one task can be a part of the snapshot"
        yield Reason("srun", why, "use srun --ntasks=1, or let the application start its own processes")
    for name, value in values.items():
        if name in _NEEDLESS or name in _FILES or name in ("chdir", "ntasks", "open-mode"):
            for letter in _unknown(value) if name in _FILES else ():
                yield Reason(
                    f"srun --{name}={value}", f"the pattern %{letter} is not known here", "write the full name"
                )
        elif name in _ONE:
            if value not in ("1", "1-1"):
                yield Reason(f"srun --{name}={value}", "a snapshot holds the processes of one node", f"use --{name}=1")
        elif (name, value) not in (("mpi", "none"), ("export", "ALL")):
            why = "the step runs in place, as a part of the job's process tree, and this option would have no effect"
            yield Reason(f"srun --{name}", why, "remove it, or run the command without srun")


def main(arguments: Sequence[str]) -> None:
    """Execute the command of a step in the place of this process; `arguments` are srun's.

    Raises:
        Refused: the step cannot be a part of the job's process tree.
        NotFound: there is no such program.
    """
    values, command = GRAMMAR.read(arguments)
    if reasons := list(refusals(values, os.environ)):
        raise Refused("this step cannot be a part of the snapshot", reasons)
    os.chdir(values.get("chdir", "."))
    places = file_names({name: values[name] for name in _FILES if name in values}, os.environ)
    for name, place in places.items():
        number, flags = _FILES[name]
        _redirect(number, place, flags, values.get("open-mode", "truncate"))
    if "output" in values and "error" not in values:
        os.dup2(1, 2)
    path = shutil.which(command[0]) if command else None
    if path is None:
        raise NotFound(f"there is no program {command[0]!r}" if command else "srun: no command to run")
    os.execv(path, command)


def refuse_real_srun(pid: int) -> None:
    """Refuse a process tree with a real srun, called by its path: a snapshot would not have the tasks of its step.

    Raises:
        Refused: there is one.
    """
    for one in processes.tree(pid):
        with suppress(OSError):
            if os.path.basename(os.readlink(f"/proc/{one}/exe")) == "srun":
                why_not = "slurmstepd runs the tasks of its step, and they would not be in the snapshot"
                reason = Reason(f"srun, process {one}", why_not, "call it as srun, by name")
                raise Refused("the job cannot be saved", [reason])


def _unknown(name: str) -> list[str]:
    return (
        [] if "\\" in name else [letter for _, letter in _PATTERN.findall(name) if letter not in _KNOWN or not letter]
    )


def file_names(names: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The names of a step's files, with the patterns of srun(1) replaced: this is task 0 on node 0.

    Args:
        names: the values of --input, --output and --error.
        environment: the variables of the job.
    """
    job = environment.get("SLURM_JOB_ID", "0")
    array = environment.get("SLURM_ARRAY_TASK_ID", "4294967294")  # what Slurm writes where there is none: NO_VAL
    known = {
        **{"%": "%", "j": job, "A": environment.get("SLURM_ARRAY_JOB_ID", job), "a": array, "b": str(int(array) % 10)},
        **{"N": os.uname().nodename.partition(".")[0], "n": "0", "t": "0", "x": environment.get("SLURM_JOB_NAME", "")},
        "u": pwd.getpwuid(os.getuid()).pw_name if any("u" in name for name in names.values()) else "",
    }
    if any(letter in "sJ" for name in names.values() for _, letter in _PATTERN.findall(name)):
        known["s"] = str(_next_step(environment))
        known["J"] = f"{job}.{known['s']}"

    def replaced(found: re.Match[str]) -> str:
        value = known[found[2]]
        return value.zfill(min(int(found[1] or 0), 10)) if value.isdecimal() else value

    # A backslash anywhere has srun take the name as it is, without that.
    return {
        kind: name.replace("\\", "") if "\\" in name else _PATTERN.sub(replaced, name) for kind, name in names.items()
    }


def _next_step(environment: Mapping[str, str]) -> int:
    """A number that no step of the job has had: two that write to a file of their own need two names."""
    if not (job := os.path.dirname(environment.get(ENV_FILE, ""))):
        return 0
    steps = Path(job, "steps")
    make_directories(str(steps))
    number = len(os.listdir(steps))  # none is ever removed
    while True:
        with suppress(FileExistsError):
            os.close(os.open(steps / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            sync_directory(steps)
            return number
        number += 1


def _redirect(number: int, path: str, flags: int, mode: str) -> None:
    if path in ("all", ""):
        return
    if path == "none":
        path = os.devnull
    if flags & os.O_CREAT:
        flags |= os.O_APPEND if mode.startswith("a") else os.O_TRUNC
    fd = os.open(path, flags, 0o666)
    os.dup2(fd, number)
    if fd != number:
        os.close(fd)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (TorporError, OSError) as error:
        sys.exit(f"srun, in a job under torpor: {error}")
