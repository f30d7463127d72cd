"""`torpor doctor --slurm`: what a site's settings mean for jobs under Torpor, and how large a job can be saved."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torpor.store import as_store_errors, readable
from torpor_slurm import controller

SAMPLE = 256 << 20
"""Bytes that are written to measure a store."""
PIECE = 8 << 20
SAFETY = 0.5
"""The part of the window that may be planned with: other jobs leave at the same time and share the storage."""


@dataclass(frozen=True)
class Advice:
    """One line of the report; the fields are as of the doctor's own findings."""

    name: str
    title: str
    verdict: str
    """ok, limited, no or info."""
    means: str
    allow: str = ""
    """What the administrator can set."""


def examine(
    config: Mapping[str, str], partitions: Mapping[str, Mapping[str, str]], can_wake: bool, rate: float
) -> list[Advice]:
    """Judge a site: pure, so that sites can be made up for tests.

    Args:
        config: `scontrol show config`.
        partitions: by name, `scontrol show partition`.
        can_wake: whether a user may make a capsule on this host.
        rate: bytes a second that the store takes.
    """
    return [
        *_capsules(can_wake),
        *_tracking(config),
        *_requeue(config),
        *_signals(config),
        Advice(
            "store_rate", "the store", "info", f"takes {readable(int(rate))} a second, synced, from this host alone"
        ),
        *(_window(name, fields, config, rate) for name, fields in partitions.items()),
    ]


def _capsules(can_wake: bool) -> Iterator[Advice]:
    if can_wake:
        yield Advice("capsules", "user namespaces", "ok", "jobs can be woken on a host like this one")
    else:
        yield Advice("capsules", "user namespaces", "no", "jobs cannot be woken here; `torpor doctor` says why")


def _tracking(config: Mapping[str, str]) -> Iterator[Advice]:
    plugin = config.get("ProctrackType", "").removeprefix("proctrack/")
    if plugin == "cgroup":
        yield Advice("proctrack", "ProctrackType", "ok", "cgroup: only the supervisor hears the end of a grace time")
    else:
        yield Advice(
            "proctrack",
            "ProctrackType",
            "limited",
            f"{plugin or 'unknown'}: the application hears SIGTERM itself at the end of a grace time; where there is"
            " no grace time, it is killed before it can be saved, and goes on from its last --every",
            "ProctrackType=proctrack/cgroup",
        )


def _requeue(config: Mapping[str, str]) -> Iterator[Advice]:
    mode = config.get("PreemptMode", "OFF")
    if "SUSPEND" in mode or "GANG" in mode:
        means = f"{mode}: a suspended job stands still and cannot be saved; it stays in this node's memory"
        yield Advice("preempt_mode", "PreemptMode", "no", means, "PreemptMode=REQUEUE")
    elif mode == "OFF":
        yield Advice("preempt_mode", "PreemptMode", "info", "OFF: nothing is preempted here; time limits are")
    else:
        yield Advice("preempt_mode", "PreemptMode", "ok", f"{mode}: a job that has saved itself requeues itself")
    if config.get("JobRequeue", "1") == "0":
        yield Advice(
            "job_requeue", "JobRequeue", "limited", "0: jobs must be submitted with --requeue (`torpor sbatch` does)"
        )


def _signals(config: Mapping[str, str]) -> Iterator[Advice]:
    parameters = config.get("PreemptParameters", "") + config.get("SlurmctldParameters", "")
    if "send_user_signal" in parameters:
        means = "the batch process hears --signal at the start of a grace time"
        yield Advice("user_signal", "send_user_signal", "ok", f"{means}, steps nothing: submit with --signal=B:USR1")
    else:
        means = "not set: the start of a grace time is heard by the supervisor's sentinel step"
        yield Advice("user_signal", "send_user_signal", "info", means)


def _window(name: str, fields: Mapping[str, str], config: Mapping[str, str], rate: float) -> Advice:
    grace = int(fields.get("GraceTime", "0"))
    kill_wait = int(config.get("KillWait", "30").partition("sec")[0] or 30)
    title = f"partition {name}"
    if fields.get("PreemptMode", config.get("PreemptMode", "OFF")) == "OFF":
        return Advice("window", title, "ok", "its jobs are not preempted")
    window = grace + kill_wait
    size = readable(int(SAFETY * window * rate))
    means = f"{grace} s of grace and {kill_wait} s until KILL: jobs of up to {size} of memory are saved in half of that"
    if grace:
        return Advice("window", title, "ok", means)
    return Advice("window", title, "limited", f"no grace time, {means}", f"PartitionName={name} GraceTime=120")


def partitions() -> dict[str, dict[str, str]]:
    """Every partition's settings.

    Raises:
        SlurmError, NotFound: no controller, no Slurm.
    """
    lines = controller.call(["scontrol", "show", "partition", "-o"]).splitlines()
    found = [controller.fields_of(line) for line in lines if line.strip()]
    return {fields["PartitionName"]: fields for fields in found}


def measure(store: str, size: int = SAMPLE) -> float:
    """Bytes a second at which the file system of a store takes new data, to the disk.

    Raises:
        StoreError: it cannot be written.
    """
    piece = os.urandom(PIECE)
    with as_store_errors(store, "cannot measure it"):
        os.makedirs(store, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=store) as file:
            began = time.monotonic()
            for _ in range(size // PIECE):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            return size / (time.monotonic() - began)
