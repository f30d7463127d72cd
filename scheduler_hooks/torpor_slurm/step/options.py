"""The options of a step: srun's command line, and the environment variables that srun reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torpor.errors import Reason, Refused
from torpor_slurm.options import Grammar
from torpor_slurm.step.files import unknown_patterns

GRAMMAR = Grammar(
    without_value=frozenset({
        "contiguous", "disable-status", "exact", "exclusive", "help", "hold", "immediate", "interactive",
        "kill-on-bad-exit", "label", "multi-prog", "nice", "no-allocate", "no-kill", "overcommit", "overlap",
        "oversubscribe", "preserve-env", "propagate", "pty", "quiet", "quit-on-interrupt", "resv-ports", "spread-job",
        "test-only", "unbuffered", "usage", "use-min-nodes", "verbose", "version", "whole",
    }),
    short_without_value=frozenset("EHIKOQVXZhklqsuv"),
    long={
        "D": "chdir", "E": "preserve-env", "G": "gpus", "I": "immediate", "J": "job-name", "K": "kill-on-bad-exit",
        "N": "nodes", "O": "overcommit", "Q": "quiet", "W": "wait", "X": "disable-status", "c": "cpus-per-task",
        "e": "error", "i": "input", "k": "no-kill", "l": "label", "m": "distribution", "n": "ntasks", "o": "output",
        "q": "quit-on-interrupt", "s": "oversubscribe", "u": "unbuffered", "v": "verbose", "w": "nodelist",
    },
)  # fmt: skip
"""The options of srun(1)."""
EFFECTIVE = frozenset({
    "chdir", "cpu-bind", "cpus-per-task", "distribution", "error", "exact", "exclusive", "immediate", "input",
    "job-name", "kill-on-bad-exit", "label", "mpi", "multi-prog", "ntasks", "open-mode", "output", "overcommit",
    "overlap", "quiet", "unbuffered", "wait",
})  # fmt: skip
"""Options that this package implements."""
NEEDLESS = frozenset({
    "--", "acctg-freq", "comment", "cpu-freq", "disable-status", "hint", "mem", "mem-bind", "mem-per-cpu", "no-kill",
    "ntasks-per-node", "oversubscribe", "preserve-env", "quit-on-interrupt", "slurmd-debug", "threads-per-core",
    "verbose", "whole",
})  # fmt: skip
"""Options that are accepted and ignored: they change nothing for a step that shares its only node with its job."""
FILES = ("input", "output", "error")
_VARIABLES = {
    "chdir": "SLURM_WORKING_DIR", "cpu-bind": "SLURM_CPU_BIND", "cpus-per-task": "SRUN_CPUS_PER_TASK",
    "error": "SLURM_STDERRMODE", "exact": "SLURM_EXACT", "exclusive": "SLURM_EXCLUSIVE", "immediate": "SLURM_IMMEDIATE",
    "input": "SLURM_STDINMODE", "kill-on-bad-exit": "SLURM_KILL_BAD_EXIT", "label": "SLURM_LABELIO",
    "mpi": "SLURM_MPI_TYPE", "multi-prog": "SLURM_MULTI_PROG", "ntasks": "SLURM_NTASKS", "open-mode": "SLURM_OPEN_MODE",
    "output": "SLURM_STDOUTMODE", "overcommit": "SLURM_OVERCOMMIT", "overlap": "SLURM_OVERLAP",
    "unbuffered": "SLURM_UNBUFFEREDIO", "wait": "SLURM_WAIT",
}  # fmt: skip
"""The variables by which srun's environment sets options; the command line wins (srun(1), INPUT ENVIRONMENT VARIABLES).
"""
_FLAGS = frozenset({"exact", "exclusive", "label", "multi-prog", "overcommit", "overlap", "unbuffered"})
"""The options of _VARIABLES that stay off if their variable is 0, "no" or "false"."""


@dataclass(frozen=True)
class Step:
    """A step, as its options describe it."""

    values: Mapping[str, str]
    """The options by long name."""
    command: tuple[str, ...]
    tasks: int
    cpus_per_task: int | None
    """None: not given."""

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return name in self.values

    @property
    def kills_on_bad_exit(self) -> bool:
        """--kill-on-bad-exit[=1]."""
        return self.values.get("kill-on-bad-exit", "0") in ("", "1")

    @property
    def exact(self) -> bool:
        """Whether the step gets only the processors it asks for: --cpus-per-task implies --exact (Slurm 22.05)."""
        return self.has("exact") or self.has("exclusive") or self.cpus_per_task is not None


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Step:
    """Read srun's command line and environment.

    Raises:
        Refused: the step cannot be a part of the job's process tree.
    """
    given, command = GRAMMAR.read(arguments)
    if reasons := list(unsupported(given, environment)):
        raise Refused("this step cannot be a part of the snapshot", reasons)
    values = {**_of_environment(environment), **given}
    tasks = given.get("ntasks") or environment.get("SLURM_NTASKS") or environment.get("SLURM_NPROCS")
    number = tasks or given.get("ntasks-per-node") or "1"
    per_task = values.get("cpus-per-task")
    return Step(values, tuple(command), int(number), int(per_task) if per_task else None)


def unsupported(given: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Reason]:
    """Why options of a step cannot be honoured here."""
    here = [environment.get(name) for name in ("SLURMD_NODENAME", "SLURM_JOB_NODELIST", "SLURM_NODELIST")]
    for name, value in given.items():
        option = f"srun --{name}={value}"
        if name in FILES:
            for letter in unknown_patterns(value):
                yield Reason(option, f"the pattern %{letter} is not known here", "write the full name")
        elif name in ("ntasks", "cpus-per-task", "ntasks-per-node"):
            if not re.fullmatch("[1-9][0-9]*", value):
                yield Reason(option, "this is not a number of tasks or processors", "give a whole number above 0")
        elif name == "nodes":
            if value not in ("1", "1-1"):
                yield Reason(option, "a snapshot holds the processes of one node", "use --nodes=1")
        elif name in EFFECTIVE or name in NEEDLESS or (name == "nodelist" and value in here):
            continue
        elif (name, value) not in (("export", "ALL"), ("jobid", environment.get("SLURM_JOB_ID"))):
            why = "the step runs as a part of the job's process tree, and this option would have no effect"
            yield Reason(f"srun --{name}", why, "remove it, or run the command without srun")


def _of_environment(environment: Mapping[str, str]) -> dict[str, str]:
    found = {name: environment[variable] for name, variable in _VARIABLES.items() if environment.get(variable)}
    return {name: value for name, value in found.items() if name not in _FLAGS or value not in ("0", "no", "false")}
