"""Jobs that leave their nodes at random moments, and begin on the other one."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.slurm_cluster import NODES, Cluster
from tests.integration.slurm_jobs import Submitted
from tests.users import User

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
PYTHON = "/usr/bin/python3"
"""Debian's, which has its mpi4py."""
SOAK_PYTHON = Path(__file__).parents[2] / "build/programs/bin/python"
"""What `make soak` installs."""


def has(what: str) -> bool:
    """Whether there is such a program, or such a module of the Pythons that jobs use."""
    finds = ["-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec({what!r}) is None)"]
    pythons = [python for python in (PYTHON, SOAK_PYTHON) if os.access(python, os.X_OK)]
    codes = (subprocess.run([python, *finds], check=False).returncode for python in pythons)
    return shutil.which(what) is not None or 0 in codes


def wait_for(made: Submitted, *states: str, seconds: float = 60) -> dict[str, str]:
    """Wait until the job is in one of these states. If it waits in the queue, as after a requeue of its own, let it
    begin at once, on the other node."""
    last = ""

    def there() -> bool:
        nonlocal last
        now = made.cluster.job(made.number)
        last = now["NodeList"] if now["NodeList"] in NODES else last
        if now["JobState"] == "PENDING" and now["Restarts"] != "0":
            away = [f"ExcNodeList={last}"] if last else []
            made.cluster.ask("scontrol", "update", f"JobId={made.number}", "StartTime=now", *away)
        return now["JobState"] in states

    made.cluster.wait_for(there, f"job {made.number} in {states}", seconds, made.told)
    return made.cluster.job(made.number)


def disturb(made: Submitted, chance: random.Random) -> str:
    """Have the job leave its node at a random moment, and let it begin on the other. Return what was done."""
    slurm, number = made.cluster, made.number
    told = wait_for(made, "RUNNING", *OVER)
    before, restarts = told["NodeList"], told["Restarts"]
    moment = chance.choice([chance.uniform(0, 1), chance.uniform(0, 4)])
    time.sleep(moment)  # nothing is waited for: the moment is what is sampled
    if slurm.job(number)["JobState"] in OVER:
        return "over"
    way = chance.choice(["preempted", "preempted", "requeued", "preempted and requeued"])
    others = [slurm.preempt(made.user, before)] if "preempted" in way else []
    if "requeued" in way:
        slurm.ask("scontrol", "requeue", number)

    def away() -> bool:
        now = slurm.job(number)
        return now["JobState"] in OVER or (now["JobState"] == "PENDING" and now["Restarts"] != restarts)

    slurm.wait_for(away, f"job {number} to leave {before}", 90, made.told)
    slurm.ask("scontrol", "update", f"JobId={number}", "StartTime=now", f"ExcNodeList={before}")
    wait_for(made, "RUNNING", *OVER)
    if others:
        slurm.release(*others)
    return f"{way} after {moment:.2f} s"


def shake(slurm: Cluster, user: User, chance: random.Random, busy: Callable[[], bool], times: int) -> list[str]:
    """While a framework is busy, take the nodes of its jobs from it, up to so many times. Return when and where.

    Its jobs are those of the partition low. One that waits after a preemption begins on the other node at once.
    """
    last: dict[str, str] = {}
    story: list[str] = []
    other, due, began = "", time.monotonic() + chance.uniform(0, 3), time.monotonic()
    while busy():
        running = set()
        for number, state, *nodes in _listed(slurm, "-p", "low"):
            if state == "RUNNING":
                last[number] = nodes[0]
                running.add(nodes[0])
            elif state == "PENDING" and number in last:
                slurm.ask("scontrol", "update", f"JobId={number}", "StartTime=now", f"ExcNodeList={last[number]}")
        if other and slurm.job(other)["JobState"] == "RUNNING":
            slurm.release(other)
            other, due = "", time.monotonic() + chance.uniform(0, 3)
        elif not other and running and len(story) < times and time.monotonic() >= due:
            node = chance.choice(sorted(running))
            other = slurm.preempt(user, node)
            story.append(f"{node} at {time.monotonic() - began:.1f} s")
        time.sleep(0.1)
    if other:
        slurm.release(other)
    return story


def _listed(slurm: Cluster, *options: str) -> list[list[str]]:
    return [line.split() for line in slurm.ask("squeue", "-h", *options, "-o", "%i %T %N").splitlines()]
