"""Talk to the controller (slurmctld) by scontrol and squeue, as any user may.

This module reads the text of `scontrol show ... -o`, not its JSON, which needs a plugin that many sites lack.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.errors import NotFound, TorporError

PATIENCE = 20.0
"""Seconds that a command may take. A busy controller answers within a few."""
RETRY = 3.0
"""Seconds to wait before a request that was not answered is repeated."""
_UNCONFIGURED = "Could not establish a configuration source"
_CONFIGURE = "set $SLURM_CONF, or run this on a host of the cluster"
_FIELD = re.compile(r"(?:^|\s)([A-Za-z][\w/:]*)(?:=|[^\S\n]+=[^\S\n]*)(\S*)")
"""``Key=value``, or ``Key   = value`` in a line of its own. An empty value is followed by the next key."""


class SlurmError(TorporError):
    """Slurm did not do what it was asked, or did not answer."""

    exit_code = 40


@dataclass(frozen=True)
class JobRecord:
    """One job as `scontrol show job` describes it. Times are seconds since the epoch; None: not set."""

    state: str
    """RUNNING, PENDING, COMPLETING, CANCELLED, PREEMPTED, TIMEOUT, ..."""
    reason: str
    restarts: int
    requeue: bool
    """Whether it may be requeued."""
    start: float | None
    end: float | None
    """EndTime: when its time limit is reached; once it is being preempted, when its grace time ends."""
    preempt: float | None
    """PreemptTime: when its preemption began."""
    partition: str
    name: str
    limited: bool
    """Whether it has a time limit."""

    @classmethod
    def unknown(cls, restarts: int) -> JobRecord:
        """The record of a job that the controller does not know: it runs, and nothing else is known."""
        nothing = (None, None, None)
        return cls("RUNNING", "None", restarts, True, *nothing, partition="", name="", limited=False)

    @classmethod
    def parse(cls, text: str) -> JobRecord:
        """Read a line of `scontrol show job -o`.

        Raises:
            SlurmError: the line lacks a field, or has one that cannot be read.
        """
        # A job's name may hold anything, even "Restarts=9". The other free texts come after all fields that are read.
        name, _, after = text.partition(" JobName=")[2].partition(" UserId=")
        fields = fields_of(after)
        try:
            return cls(
                state=fields["JobState"],
                reason=fields["Reason"],
                restarts=int(fields["Restarts"]),
                requeue=fields["Requeue"] == "1",
                start=moment(fields["StartTime"]),
                end=moment(fields["EndTime"]),
                preempt=moment(fields.get("PreemptTime", "None")),
                partition=fields["Partition"],
                name=name,
                limited=fields["TimeLimit"] != "UNLIMITED",
            )
        except (KeyError, ValueError, OverflowError) as error:
            raise SlurmError(f"the output of scontrol show job cannot be read: {error}", details=text) from error


def fields_of(text: str) -> dict[str, str]:
    """The ``Key=value`` pairs of a text. If a key comes twice, the first one counts."""
    found: dict[str, str] = {}
    for key, value in _FIELD.findall(text):
        found.setdefault(key, value)
    return found


def moment(text: str) -> float | None:
    """Read a time as scontrol writes it: in seconds, or as local time (ambiguous when daylight saving time ends)."""
    if text in ("Unknown", "None", "N/A", ""):
        return None
    if text.isdecimal():
        return float(text)
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def call(command: Sequence[str], *, environment: Mapping[str, str] | None = None, patience: float | None = None) -> str:
    """Run a Slurm command and return its standard output.

    Raises:
        NotFound: there is no such program here.
        SlurmError: the command failed (the error has its standard error), or it took longer than `patience` seconds, by
            default PATIENCE.
    """
    patience = PATIENCE if patience is None else patience
    environment = {**(os.environ if environment is None else environment), "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False
        )
    except FileNotFoundError:
        raise NotFound(f"there is no {command[0]} here", advice="is this a host of a Slurm cluster?") from None
    except OSError as error:
        raise SlurmError(f"{command[0]} cannot be started: {error.strerror}", advice="see its rights") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {patience:.0f} s", advice="see `scontrol ping`") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
        if _UNCONFIGURED in words:  # at the end of many lines of DNS errors
            raise SlurmError(f"{command[0]} finds no configuration of a cluster here", advice=_CONFIGURE)
        raise SlurmError(f"{' '.join(command[:2])} failed: {words or f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def job_record(job: str) -> JobRecord:
    """Ask the controller for the record of a job.

    Raises:
        SlurmError, NotFound: as `call`.
    """
    return JobRecord.parse(call(["scontrol", "show", "job", "-o", job]))


def states(jobs: Sequence[str]) -> dict[str, str]:
    """The state of each of these jobs that the controller knows, by one call of squeue.

    Raises:
        SlurmError, NotFound: as `call`.
    """
    if not jobs:
        return {}
    try:
        listing = call(["squeue", "--noheader", "--states=all", "--format=%A %T", f"--jobs={','.join(jobs)}"])
    except SlurmError as error:
        if "Invalid job id" in str(error):  # squeue's error if the controller knows none of them
            return {}
        raise
    return {words[0]: words[1] for words in map(str.split, listing.splitlines()) if len(words) == 2}


def requeue(job: str, *, hold: bool = False) -> None:
    """Requeue a job; with `hold`, in held state. Slurm ends those of its processes that still run.

    Raises:
        SlurmError, NotFound: as `call`.
    """
    call(["scontrol", "requeuehold" if hold else "requeue", job])


@dataclass(frozen=True)
class Notice:
    """How long a preempted job has to end, in seconds."""

    grace: int
    """GraceTime of the partition. Slurm signals the job's steps when it begins."""
    kill_wait: int
    """KillWait: the time from SIGTERM, at the end of the grace time, to SIGKILL."""

    @classmethod
    def of(cls, partition: Mapping[str, str], config: Mapping[str, str]) -> Notice:
        """Read it from the settings of a partition and of the cluster. A value like NONE stands for the default."""
        grace, wait = partition.get("GraceTime", ""), config.get("KillWait", "")
        return cls(int(grace) if grace.isdecimal() else 0, int(wait) if wait.isdecimal() else 30)

    @property
    def window(self) -> int:
        """From the first signal to SIGKILL."""
        return self.grace + self.kill_wait


def configuration() -> dict[str, str]:
    """The cluster's settings, from `scontrol show config`.

    Raises:
        SlurmError, NotFound: as `call`.
    """
    return fields_of(call(["scontrol", "show", "config"]))


def notice(partition: str) -> Notice:
    """How long the jobs of a partition have when Slurm preempts them.

    Raises:
        SlurmError, NotFound: as `call`.
    """
    return Notice.of(fields_of(call(["scontrol", "show", "partition", "-o", partition])), configuration())
