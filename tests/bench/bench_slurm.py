"""Figures of Slurm jobs on a cluster of two nodes: `python -m tests.bench.bench_slurm [PREEMPTIONS]`, as root.

- a job preempted again and again with notice: iterations done twice, lines lost or doubled;
- from the warning to the requeue, and from the start of the supervisor to the woken job, for 1 GiB of random numbers;
- what running under the supervisor costs: the time of a fixed computation, as a ratio to the same without it, and the
  supervisor's own time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.slurm_cluster import PACKAGES, Cluster, cluster, missing
from tests.integration.slurm_jobs import CODE, application, job, script, start, supervisor, undisturbed
from tests.users import User, ordinary_user

LARGE = """
import os, sys, time
import numpy
block = numpy.random.default_rng(1).bytes(1 << 30)
print("step 0", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
"""
COMPUTE = """
import time
begin = time.process_time()
total = 0
for number in range(20_000_000):
    total += number * number % 7
print(time.process_time() - begin)
"""
ROUNDS = 7
SETTLED = 10
"""Seconds after which a job has begun for good: its sentinel listens."""
WATCHED = 30
"""Seconds over which the supervisor's time is taken."""


@contextmanager
def user() -> Iterator[User]:
    """An ordinary user with a directory, as the tests have one."""
    with ordinary_user() as account:
        folder = Path(tempfile.mkdtemp(prefix="torpor-bench-slurm-", dir="/tmp"))
        made = User(account.pw_name, account.pw_uid, account.pw_gid, folder, {})
        made.own(folder)
        try:
            yield made
        finally:
            shutil.rmtree(folder)


def seconds(pattern: str, log: str) -> list[float]:
    """The times that a supervisor's log tells."""
    return [float(found) for found in re.findall(pattern, log)]


def preempted(slurm: Cluster, account: User, times: int) -> dict[str, object]:
    """One job, preempted so many times, against an undisturbed one."""
    steps = times * 60
    with job(slurm, account) as work:
        start(work, script(work, application(work, steps)))
        for _ in range(times):
            work.wait_steps(work.steps + 5)
            work.preempt()
        work.finish()
        code = work.wait_code(300)
        expected = undisturbed(steps)
        lines = (work.folder / "log").read_bytes().splitlines()
        wanted = expected["log"].splitlines()
        return {
            "preemptions": times,
            "exit code as expected": code == f"{CODE}:0",
            "outputs that differ": work.differences(steps),
            "lines lost": len(set(wanted) - set(lines)),
            "lines doubled, iterations done twice": len(lines) - len(set(lines)),
            "warning to requeue, s (median)": statistics.median(seconds(r"gone after ([\d.]+) s", work.log)),
            "start to resumed, s (median)": statistics.median(seconds(r"resumed on \w+ in ([\d.]+) s", work.log)),
        }


def large(slurm: Cluster, account: User) -> dict[str, object]:
    """A job with 1 GiB of random numbers, preempted."""
    with job(slurm, account) as work:
        program = work.folder / "large.py"
        program.write_text(LARGE)
        end = work.folder / "end"
        start(work, script(work, f"{sys.executable} {program} {end}"))
        work.wait_steps(1, 120)
        work.preempt()
        end.touch()
        work.wait_code()
        return {
            "saved": seconds(r"saved in ([\d.]+) s", work.log),
            "warning to requeue, s": seconds(r"gone after ([\d.]+) s", work.log),
            "start to resumed, s": seconds(r"resumed on \w+ in ([\d.]+) s", work.log),
        }


def overhead(slurm: Cluster, account: User) -> dict[str, object]:
    """The same computation with and without a supervisor, in turn; processor time, which other jobs disturb least."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * ROUNDS):
        supervised = turn % 2 == 0
        with job(slurm, account) as work:
            program = work.folder / "compute.py"
            program.write_text(COMPUTE)
            path = script(work, f"{sys.executable} {program}")
            if not supervised:
                path.write_text(f"#!/bin/sh\nexec {sys.executable} {program}\n")
            start(work, path)
            work.wait_code(300)
            found[supervised].append(float(work.out.split()[-1]))
            shutil.rmtree(work.folder)
    with_it, without = statistics.median(found[True]), statistics.median(found[False])
    return {"with, s": with_it, "without, s": without, "ratio": with_it / without}


def idle(slurm: Cluster, account: User) -> dict[str, object]:
    """The supervisor's own processor time while the job just runs."""
    with job(slurm, account) as work:
        program = work.folder / "large.py"
        program.write_text(LARGE.replace("1 << 30", "1"))
        start(work, script(work, f"{sys.executable} {program} {work.folder / 'end'}"))
        work.wait_steps(1)
        time.sleep(SETTLED)
        stat = Path(f"/proc/{supervisor(work)}/stat")
        before = sum(map(int, stat.read_text().rpartition(")")[2].split()[11:15]))
        time.sleep(WATCHED)
        spent = sum(map(int, stat.read_text().rpartition(")")[2].split()[11:15])) - before
        return {"s of an hour": spent / os.sysconf("SC_CLK_TCK") / WATCHED * 3600}


def main() -> None:
    """Print all figures as JSON, one line each."""
    if os.geteuid():
        sys.exit("the bench of Slurm needs root, for proctrack/cgroup")
    if missing():
        sys.exit(f"the bench of Slurm needs {PACKAGES}")
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with user() as account:
        account.home.mkdir()
        account.own(account.home)
        with cluster() as slurm:
            for measured in (idle, overhead, large):
                print(json.dumps({measured.__name__: measured(slurm, account)}), flush=True)
                shutil.rmtree(account.tmp / "job", ignore_errors=True)
            print(json.dumps({"preempted": preempted(slurm, account, times)}), flush=True)


if __name__ == "__main__":
    main()
