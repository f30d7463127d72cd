"""`torpor sbatch`: submit the user's own script with its options so that it runs under a supervisor.

The submitted script has the user's #SBATCH lines, a line that executes `torpor run`, and then the user's script,
unchanged. The supervisor copies the user's script to a path that every node sees: a shell keeps its script open, and
the file in the spool directory of one node does not exist on the next.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.errors import NotFound, Reason, Refused
from torpor.store import make_directories
from torpor_slurm.allocation import gpus_held, several_nodes
from torpor_slurm.controller import SlurmError
from torpor_slurm.options import Grammar
from torpor_slurm.shell import shebang

_MARK = "#TORPOR the job's own script: {}\n"
_MARKED = re.compile(rb"^#TORPOR the job's own script: ([^\n/]+)\n", re.MULTILINE)

_GRAMMAR = Grammar(
    without_value=frozenset({
        "contiguous", "exclusive", "get-user-env", "help", "hold", "ignore-pbs", "kill-on-invalid-dep", "nice",
        "no-kill", "no-requeue", "overcommit", "oversubscribe", "parsable", "propagate", "quiet", "reboot", "requeue",
        "spread-job", "stepmgr", "test-only", "torpor", "usage", "use-min-nodes", "verbose", "version", "wait",
    }),
    short_without_value=frozenset("hHIkOQsvVW"),
    long={"N": "nodes", "G": "gpus", "J": "job-name", "n": "ntasks"},
    in_full={"torpor"[:letters]: "torpor" for letters in range(2, 6)},
)  # fmt: skip
"""The options of sbatch(1)."""
_GPU_OPTIONS = ("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task")
OWN = "torpor"
"""The option --torpor[=EVERY] of the SPANK plugin, which turns sbatch into `torpor sbatch`; removed here."""
_TRES_OPTIONS = ("gres", "tres-per-job", "tres-per-node", "tres-per-socket", "tres-per-task")


@dataclass(frozen=True)
class Submission:
    """A command line of sbatch, in its parts."""

    options: tuple[str, ...]
    """As given, without --wrap and --torpor."""
    name: str
    """The name of the script."""
    script: bytes
    arguments: tuple[str, ...]
    """The arguments of the script."""
    every: str | None = None
    """EVERY of --torpor[=EVERY]; None: not given."""

    @property
    def values(self) -> dict[str, str]:
        """All options by long name. The command line takes precedence over the #SBATCH lines of the script."""
        found: dict[str, str] = {}
        for words in (*map(_words, directives(self.script)), list(self.options)):
            found.update(_GRAMMAR.read(words)[0])
        return found


def parse(arguments: Sequence[str]) -> Submission:
    """Parse a command line of sbatch, and read the script.

    Raises:
        NotFound: there is no such script.
        Refused: its first line, or one of its #SBATCH lines, cannot be read.
        ValueError: the arguments name no script, or two.
    """
    values, rest = _GRAMMAR.read(arguments)
    options = tuple(_GRAMMAR.without(arguments[: len(arguments) - len(rest)], OWN, "wrap"))
    every = values.get(OWN) or None
    if "wrap" in values:
        if rest:
            raise ValueError(f"--wrap and the script {rest[0]}: give only one of them")
        return Submission(options, "wrap", f"#!/bin/sh\n{values['wrap']}\n".encode(), (), every)
    if not rest:
        raise ValueError("name a batch script, or use --wrap; standard input is not read")
    try:
        script = Path(rest[0]).read_bytes()
    except OSError as error:
        raise NotFound(f"script {rest[0]} cannot be read: {error.strerror}") from error
    if not script.startswith(b"#!"):
        why = Reason(f"script {rest[0]}", "its first line names no interpreter", "begin it with #!/bin/sh, say")
        raise Refused("nothing was submitted", [why])
    for line in directives(script):
        every = every or _GRAMMAR.read(_words(line))[0].get(OWN) or None
    return Submission(options, os.path.basename(rest[0]), script, tuple(rest[1:]), every)


def refuse(submission: Submission) -> list[Reason]:
    """Why the job cannot be saved: what it requests that Torpor does not support."""
    values = submission.values
    reasons = []
    parts = [words[0] for words in map(_words, directives(submission.script)) if words in (["hetjob"], ["packjob"])]
    if sign := ":" if ":" in submission.options else next(iter(parts), ""):
        reasons.append(
            Reason(
                f"a heterogeneous job ({sign})",
                "a snapshot holds the processes of one node",
                "submit each by itself",
            )
        )
    nodes = values.get("nodes", "1").rpartition("-")[2]
    if nodes != "1":
        reasons.append(several_nodes(nodes))
    gpus = [f"--{name}={values[name]}" for name in _GPU_OPTIONS if values.get(name, "0") != "0"]
    gpus += [f"--{name}={values[name]}" for name in _TRES_OPTIONS if "gpu" in values.get(name, "")]
    if gpus:
        reasons.append(gpus_held(", ".join(gpus)))
    # In the script it is overridden by the command line's --requeue: workflow managers write it into every script.
    if "no-requeue" in _GRAMMAR.read(submission.options)[0]:
        reasons.append(Reason("--no-requeue", "a preempted job can only go on if it is requeued", "remove it"))
    if values.get("open-mode", "append") != "append":
        reasons.append(
            Reason("--open-mode=truncate", "each requeue would truncate the job's output", "remove it: append is used")
        )
    return reasons


def submit(submission: Submission, run: Sequence[str], store: str) -> tuple[str, int]:
    """Submit the job. Return the output of sbatch, and its exit code (with --wait, that of the job).

    The standard error of sbatch is not redirected. The store's directory is made here, if possible: if a later run of
    the job finds none, it takes it for one that is not mounted, although no earlier run may have got as far as to make
    it.

    Args:
        submission: the command line that the user gave.
        run: `torpor run` with its options: what the job executes.
        store: the directory of the store.

    Raises:
        Refused: the job requests something that cannot be saved.
        SlurmError, NotFound: sbatch failed, or there is no sbatch.
    """
    if reasons := refuse(submission):
        raise Refused("nothing was submitted", reasons)
    with suppress(OSError):  # this host need not have the file system of the nodes
        make_directories(store)
    with tempfile.TemporaryDirectory(prefix="torpor-sbatch-") as folder:
        path = Path(folder, submission.name)  # its name becomes the job's
        path.write_bytes(wrapped(submission, run))
        ours = ["--requeue", "--open-mode=append", "--nodes=1"]
        command = ["sbatch", *ours, *submission.options, str(path), *submission.arguments]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        except FileNotFoundError:
            raise NotFound("there is no sbatch here", advice="is this a host of a Slurm cluster?") from None
        except OSError as error:
            raise SlurmError(f"sbatch cannot be started: {error.strerror}", advice="see its rights") from None
    if done.returncode and not done.stdout:
        raise SlurmError(f"sbatch failed with exit code {done.returncode}", advice="see its message above")
    return done.stdout, done.returncode


def wrapped(submission: Submission, run: Sequence[str]) -> bytes:
    """The script that is submitted instead of the user's."""
    head = [shebang().encode(), *filter(None, map(_without_own, directives(submission.script)))]
    head.append(os.fsencode(f'exec {shlex.join(run)} --script "$0" -- "$@"\n' + _MARK.format(submission.name)))
    return b"".join([*head, submission.script])


def embedded_script(path: str) -> tuple[str, bytes]:
    """The user's script within a submitted one: its name and its text.

    Raises:
        NotFound: it cannot be read, or was not submitted by `torpor sbatch`.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise NotFound(f"the batch script {path} cannot be read: {error.strerror}") from error
    found = _MARKED.search(text)
    if found is None:
        raise NotFound(f"{path} was not submitted by `torpor sbatch`")
    return os.fsdecode(found[1]), text[found.end() :]


def directives(script: bytes) -> list[bytes]:
    """The #SBATCH lines of a script. sbatch reads them up to the first line that is not a comment."""
    found = []
    for line in script.splitlines(keepends=True):
        if line.startswith(b"#SBATCH"):
            found.append(line.rstrip(b"\r\n") + b"\n")
        elif line.strip() and not line.lstrip().startswith(b"#"):
            break
    return found


def _words(directive: bytes) -> list[str]:
    text = directive.decode(errors="surrogateescape")
    try:
        return shlex.split(text.removeprefix("#SBATCH"), comments=True)
    except ValueError as error:
        raise Refused("nothing was submitted", [Reason(text.strip(), str(error), "correct this line")]) from error


def _without_own(directive: bytes) -> bytes | None:
    """An #SBATCH line without --torpor; None if it had no other option."""
    words = _words(directive)
    if OWN not in _GRAMMAR.read(words)[0]:
        return directive
    kept = _GRAMMAR.without(words, OWN)
    return os.fsencode(f"#SBATCH {shlex.join(kept)}\n") if kept else None


def as_options(values: Mapping[str, str | float | tuple[str, ...] | None]) -> list[str]:
    """The options of `torpor run` that correspond to those of `torpor sbatch`. A tuple has those that are repeated."""
    return [
        f"--{name.replace('_', '-')}={one}"
        for name, value in values.items()
        for one in (value if isinstance(value, tuple) else (value,))
        if one is not None
    ]
