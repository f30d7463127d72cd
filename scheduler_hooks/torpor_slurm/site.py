"""`torpor doctor --slurm`: check how a site's Slurm settings affect jobs under Torpor, and how large a job may be."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torpor.store import as_store_errors, readable
from torpor_slurm import controller
from torpor_slurm.job_directory import seen_on

SAMPLE = 256 << 20
"""Bytes that are written to measure a store."""
PIECE = 8 << 20
WAIT_FOR_NODES = 60.0
"""Seconds that the doctor's own job step may wait for its nodes."""
ATTRIBUTES_LAST = 60.0
"""Seconds for which an NFS client may cache the attributes of a directory (acdirmax of nfs(5))."""
_TRIAL = """
node=$SLURMD_NODENAME
if [ ! -d "$1" ]; then echo "$node does not see it"
elif [ "$(cat "$1/token" 2>/dev/null)" != "$2" ]; then echo "$node cannot read it"
elif ! (: >"$1/$node") 2>/dev/null; then echo "$node cannot write to it"
else echo "$node sees it"; fi
"""
SAFETY = 0.5
"""The share of the time that a job can count on: other jobs are saved to the same storage at the same time."""


@dataclass(frozen=True)
class Advice:
    """One line of the report, with the same fields as the findings of `torpor doctor`."""

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
    """Judge the settings of a site.

    Args:
        config: `scontrol show config`.
        partitions: `scontrol show partition`, by name of the partition.
        can_wake: whether a user may create the namespaces of a restored job (a capsule) on this host.
        rate: bytes per second that can be written to the store.
    """
    return [
        *_capsules(can_wake),
        *_tracking(config),
        *_requeue(config),
        *_signals(config),
        Advice(
            "store_rate",
            "the store",
            "info",
            f"takes {readable(int(rate))} per second with fsync, if no other host writes",
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
        yield Advice("proctrack", "ProctrackType", "ok", "cgroup: only the supervisor gets SIGTERM after a grace time")
    else:
        yield Advice(
            "proctrack",
            "ProctrackType",
            "limited",
            f"{plugin or 'unknown'}: the application itself gets SIGTERM at the end of a grace time; without a grace"
            " time it ends before it can be saved, and goes on from its last save by --every",
            "ProctrackType=proctrack/cgroup",
        )


def _requeue(config: Mapping[str, str]) -> Iterator[Advice]:
    mode = config.get("PreemptMode", "OFF")
    if "SUSPEND" in mode or "GANG" in mode:
        means = f"{mode}: a suspended job is stopped and cannot be saved; it stays in the memory of its node"
        yield Advice("preempt_mode", "PreemptMode", "no", means, "PreemptMode=REQUEUE")
    elif mode == "OFF":
        yield Advice(
            "preempt_mode",
            "PreemptMode",
            "info",
            "OFF: no job is preempted; time limits still count",
        )
    else:
        yield Advice("preempt_mode", "PreemptMode", "ok", f"{mode}: a preempted job is saved and requeued")
    if config.get("JobRequeue", "1") == "0":
        yield Advice(
            "job_requeue", "JobRequeue", "limited", "0: jobs must be submitted with --requeue (`torpor sbatch` does so)"
        )


def _signals(config: Mapping[str, str]) -> Iterator[Advice]:
    parameters = config.get("PreemptParameters", "") + config.get("SlurmctldParameters", "")
    if "send_user_signal" in parameters:
        means = "the batch process gets the signal of --signal when a grace time starts"
        yield Advice("user_signal", "send_user_signal", "ok", f"{means}, steps get none: submit with --signal=B:USR1")
    else:
        means = "not set: the sentinel step of the supervisor notices the start of a grace time"
        yield Advice("user_signal", "send_user_signal", "info", means)


def _window(name: str, fields: Mapping[str, str], config: Mapping[str, str], rate: float) -> Advice:
    notice = controller.Notice.of(fields, config)
    title = f"partition {name}"
    if fields.get("PreemptMode", config.get("PreemptMode", "OFF")) == "OFF":
        return Advice("window", title, "ok", "its jobs are not preempted")
    size = readable(int(SAFETY * notice.window * rate))
    time_given = f"{notice.grace} s of GraceTime and {notice.kill_wait} s of KillWait"
    means = f"{time_given}: jobs of up to {size} of memory are saved in half of that"
    if notice.grace:
        return Advice("window", title, "ok", means)
    return Advice("window", title, "limited", f"no GraceTime: {means}", f"PartitionName={name} GraceTime=120")


def partitions() -> dict[str, dict[str, str]]:
    """Every partition's settings.

    Raises:
        SlurmError, NotFound: the controller does not answer, or there is no Slurm.
    """
    lines = controller.call(["scontrol", "show", "partition", "-o"]).splitlines()
    found = [controller.fields_of(line) for line in lines if line.strip()]
    return {fields["PartitionName"]: fields for fields in found}


def used_on(store: str) -> list[Advice]:
    """Report the nodes on which jobs have used a store."""
    nodes = seen_on(store)
    return [Advice("store_used_on", "the store", "info", f"jobs have used it on {', '.join(nodes)}")] if nodes else []


def try_from_nodes(store: str, nodes: int) -> Advice:
    """Check by a step on `nodes` nodes that each can read what this host writes to a store, and can write there itself.

    Raises:
        SlurmError, NotFound: srun failed, or got no nodes in time.
        StoreError: the store cannot be written here.
    """
    title = f"the store on {nodes} nodes"
    with as_store_errors(store, "cannot try it"):
        os.makedirs(store, mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store, prefix="doctor-") as folder:
            Path(folder, "token").write_text(token := secrets.token_hex())
            step = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--immediate={WAIT_FOR_NODES:.0f}"]
            command = ["srun", *step, "--quiet", "--chdir=/", "--input=none", "sh", "-c", _TRIAL, "sh", folder, token]
            answer = controller.call(command, patience=2 * WAIT_FOR_NODES)
            words = dict(line.partition(" ")[::2] for line in answer.splitlines())
            for node, word in words.items():
                if word == "sees it" and not _appears(Path(folder, node)):
                    words[node] = "writes to it, which is not seen here"
    if set(words.values()) == {"sees it"}:
        return Advice("store_nodes", title, "ok", f"{', '.join(sorted(words))} see it, as this host does")
    bad = ", ".join(f"{node} {word}" for node, word in sorted(words.items()) if word != "sees it")
    means = f"{bad}: a job that is woken there finds nothing, and begins anew"
    return Advice("store_nodes", title, "no", means, f"a file system that all nodes share for {store}")


def _appears(path: Path) -> bool:
    until = time.monotonic() + ATTRIBUTES_LAST
    while not path.exists():
        if time.monotonic() > until:
            return False
        os.listdir(path.parent)
        time.sleep(0.1)
    return True


def measure(store: str, size: int = SAMPLE) -> float:
    """Bytes per second at which new data is written to the file system of a store, and synced.

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
