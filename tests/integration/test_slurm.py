"""A real cluster of two nodes, and an application that must not notice what happens to its job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import GRACE, KILL_WAIT, PACKAGES, Cluster, cluster, missing
from tests.integration.slurm_jobs import (
    APP,
    CODE,
    Submitted,
    application,
    job,
    script,
    start,
    undisturbed,
    unharmed,
    waiting,
)
from tests.users import BIN, User
from torpor_slurm.job_directory import JobDirectory

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}")
STEPS = 300
LINES = 60
"""What each command of GNU parallel writes."""


def test_plain_jobs_run(slurm: Cluster, ordinary_account: User) -> None:
    number = slurm.submit(
        ordinary_account, "sbatch", "-N2", "-o", ordinary_account.tmp / "out", "--wrap", "srun hostname"
    )
    slurm.wait_state(number, "COMPLETED")
    slurm.release()
    assert sorted((ordinary_account.tmp / "out").read_text().split()) == ["n1", "n2"]


def test_an_undisturbed_job_is_as_without_torpor(work: Submitted) -> None:
    start(work, script(work, application(work, 10)))
    unharmed(work, 10)
    assert (work.folder / "namespaces").read_text() == (work.folder / "namespaces-of-script").read_text()


def test_a_preempted_job_goes_on_where_it_was(slurm: Cluster, work: Submitted) -> None:
    partition = "abrupt" if slurm.spares_the_application else "low"
    start(work, script(work, application(work, STEPS)), "-p", partition)
    work.wait_steps(5)
    work.preempt()
    unharmed(work, STEPS)


def test_a_job_that_was_preempted_and_then_requeued_goes_on_where_it_was(slurm: Cluster, work: Submitted) -> None:
    every = [] if slurm.spares_the_application else ["--every=1s"]
    start(work, script(work, application(work, STEPS), *every))
    work.wait_steps(5)
    work.preempt()
    work.wait_steps(work.steps + 5)
    if every:
        work.wait_log("saved 2", work.log.count("saved 2") + 1)
    before = work.node
    work.cluster.ask("scontrol", "requeue", work.number)
    work.hurry(before)
    unharmed(work, STEPS)
    assert "because of requeued" in work.log
    assert work.log.count("resumed") == 2
    if not every:
        only_slurms_words_were_cut(work)


@pytest.mark.soak
def test_many_preemptions(work: Submitted) -> None:
    start(work, script(work, application(work, STEPS)))
    for _ in range(8):
        work.wait_steps(work.steps + 5)
        work.preempt()
    unharmed(work, STEPS)
    only_slurms_words_were_cut(work)


def only_slurms_words_were_cut(made: Submitted) -> None:
    """Nothing that the application has written was cut off its output: it was saved when it was warned."""
    cut = [path.read_text() for path in (made.directory / "cut").iterdir()]
    assert all(line.startswith("slurmstepd") for text in cut for line in text.splitlines())


def test_scancel_does_not_requeue(work: Submitted) -> None:
    start(work, script(work, application(work, STEPS)))
    work.wait_steps(3)
    work.user.run(["scancel", work.number], env=work.cluster.env, check=True)
    work.wait_code()
    work.cluster.wait_gone(work.number)
    told = work.cluster.job(work.number)
    assert (told["JobState"], told["Restarts"]) == ("CANCELLED", "0")
    work.wait_log("the application was ended")
    assert "requeue" not in work.log
    assert not (work.directory / "finished").exists()


def test_the_time_limit(slurm: Cluster, work: Submitted) -> None:
    other = Submitted(slurm, work.user, work.folder / "other")
    other.folder.mkdir()
    work.user.own(other.folder)
    for made, choice in ((work, "requeue"), (other, "stop")):
        start(
            made, waiting(script(made, application(made, STEPS), f"--on-timeout={choice}")), "--time=2", "--exclusive"
        )
        slurm.wait_state(made.number, "RUNNING")
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 30))
        slurm.ask("scontrol", "update", f"JobId={made.number}", f"EndTime={end}")
        (made.folder / "go").touch()
    before, others = work.node, other.node
    work.wait_log("left because of time limit")
    assert other.wait_code() == "124:0", other.told()
    assert f"`scontrol requeue {other.number}` lets it go on" in other.out
    slurm.ask("scontrol", "requeue", other.number)
    for made, node in ((work, before), (other, others)):
        made.hurry(node)
    unharmed(work, STEPS)
    other.wait_log("resumed")


def test_a_node_that_dies_without_a_word(ordinary_account: User) -> None:
    with cluster() as slurm, job(slurm, ordinary_account) as work:
        start(work, script(work, application(work, STEPS), "--every=1s"))
        work.wait_log("saved", 2)
        work.wait_steps(work.steps + 3)
        lost = work.node
        slurm.kill_node(lost)
        slurm.ask("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=lost")  # what SlurmdTimeout would do
        work.hurry(lost)
        work.wait_log("resumed", seconds=90)
        assert "log from" in work.log  # lines of the log that were written after the snapshot
        unharmed(work, STEPS)


# --------------------------------------------------------------------------------------- torpor sbatch


def sbatch(made: Submitted, path: Path, *arguments: str, options: Sequence[str] = ()) -> Submitted:
    """Submit a script that knows nothing of Torpor."""
    torpor: list[str | Path] = [BIN / "torpor", "sbatch", "--store", made.store, *options, "--"]
    made.number = made.cluster.submit(made.user, *torpor, "-o", made.folder / "out", *arguments, path)
    return made


def test_a_whole_script_is_kept_with_its_pipeline_and_its_step(work: Submitted) -> None:
    path = work.folder / "pipeline.sh"
    path.write_text(
        f"""#!/bin/bash
#SBATCH --comment="of no matter"
export OPENBLAS_NUM_THREADS=1
first=$SLURMD_NODENAME
srun -n1 -c1 {application(work, STEPS)} | while read line; do echo "$line"; done
echo "code ${{PIPESTATUS[0]}}"
. "$TORPOR_ENV_FILE"
[ "$first" != "$SLURMD_NODENAME" ] && echo "run $SLURM_RESTART_COUNT, on another node"
exit 3
"""
    )
    sbatch(work, path, "-p", "cancel")
    work.wait_steps(5)
    work.preempt()
    work.finish()
    assert work.wait_code() == "3:0", work.told()
    assert work.cluster.job(work.number)["JobName"] == "pipeline.sh"
    lines = [line for line in work.out.splitlines() if not line.startswith("slurmstepd")]
    assert lines == [*(f"step {step}" for step in range(STEPS)), f"code {CODE}", "run 1, on another node"]
    assert work.differences(STEPS) == ["out"]


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is missing here: install parallel")
def test_gnu_parallel_and_what_it_runs_are_kept(slurm: Cluster, work: Submitted) -> None:
    path = work.folder / "parallel.sh"
    finish = f"[ -e {work.folder}/finish ]"
    pause = f"{finish} || sleep 0.05; [ $n != {LINES - 5} ] || until {finish}; do sleep 0.05; done"
    count = f"for n in $(seq {LINES}); do echo {{}} $n; echo step $n >>{work.folder}/{{}}.log; {pause}; done"
    path.write_text(f"#!/bin/sh\nparallel --will-cite -k -j2 '{count}' ::: a b c | tr a-c A-C\nexit 5\n")
    sbatch(work, path, "-p", "cancel-abrupt" if slurm.spares_the_application else "cancel")
    logs = [work.folder / f"{name}.log" for name in "abc"]
    work.cluster.wait_for(lambda: logs[1].exists() and logs[1].stat().st_size > 50, "parallel to be in the middle")
    work.preempt()
    work.finish()
    assert work.wait_code() == "5:0", work.told()
    steps = range(1, LINES + 1)
    assert [log.read_text() for log in logs] == ["".join(f"step {n}\n" for n in steps)] * 3
    lines = [line for line in work.out.splitlines() if not line.startswith("slurmstepd")]
    assert lines == [f"{name} {n}" for name in "ABC" for n in steps]


def told(tasks: list[Path], logs: Path) -> str:
    """What the tasks of an array and their supervisors have written."""
    paths = [*(task.with_suffix(".out") for task in tasks), *logs.glob("*/log")]
    return "\n".join(f"--- {path}\n{path.read_text()}" for path in paths if path.exists())


def test_an_array_goes_on_task_by_task(slurm: Cluster, work: Submitted) -> None:
    path = work.folder / "array.sh"
    path.write_text(
        f"""#!/bin/sh
export OPENBLAS_NUM_THREADS=1
mkdir {work.folder}/$SLURM_ARRAY_TASK_ID
exec {sys.executable} {APP} {work.folder}/$SLURM_ARRAY_TASK_ID {STEPS} 0.1
"""
    )
    out = str(work.folder / "%a.out")
    sbatch(work, path, "--array=0-2", "-x", "n2", "-o", out)
    tasks = [work.folder / str(task) for task in range(3)]
    slurm.wait_for(lambda: all((task / "log").exists() and (task / "log").stat().st_size > 200 for task in tasks), "3")
    other = slurm.preempt(work.user, "n1")
    logs = work.store / "slurm"
    slurm.wait_for(lambda: sum("left" in p.read_text() for p in logs.glob("*/log")) == 3, "three that have left")
    for task in tasks:
        slurm.hurry(f"{work.number}_{task.name}", "n1", lambda: told(tasks, logs))
    slurm.release(other)
    for task in tasks:
        (task / "finish").touch()
    answers = [task / "answer" for task in tasks]
    slurm.wait_for(
        lambda: all(path.exists() and path.stat().st_size for path in answers),
        "3 answers",
        90,
        lambda: told(tasks, logs),
    )
    expected = undisturbed(STEPS)
    for task in tasks:
        assert all((task / name).read_bytes() == expected[name] for name in ("answer", "buffered", "log"))
        text = task.with_suffix(".out").read_bytes()
        assert b"".join(line for line in text.splitlines(True) if line.startswith(b"step")) == expected["out"]


def test_a_step_is_kept(work: Submitted) -> None:
    path = script(work, application(work, STEPS))
    path.write_text(path.read_text().replace("exec ", "exec srun --ntasks=1 ", 1))
    start(work, path)
    work.wait_steps(5)
    work.preempt()
    unharmed(work, STEPS)


# --------------------------------------------------------------------------------------- what goes wrong


def test_a_store_that_is_full_for_a_while(ordinary_account: User) -> None:
    if os.geteuid():
        pytest.skip("needs root, to make a small file system")
    small = ordinary_account.tmp / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=777", "tmpfs", small], check=True)
    try:
        with cluster() as slurm, job(slurm, ordinary_account) as work:
            filler = small / "filler"
            filler.write_bytes(bytes(50 << 20))
            path = script(work, application(work, STEPS))
            path.write_text(path.read_text().replace(str(work.store), str(small)))
            start(work, path)
            work.wait_steps(5)
            before = work.node
            other = slurm.preempt(work.user, before)
            slurm.wait_for(lambda: "No space left on device" in work.out, "words about the disk", 60, work.told)
            work.wait_steps(work.steps + 5)  # it runs on meanwhile
            filler.unlink()
            work.hurry(before)
            slurm.release(other)
            work.finish()
            assert work.wait_code() == f"{CODE}:0", work.told()
            assert [name for name in work.differences(STEPS) if name != "out"] == []
    finally:
        subprocess.run(["umount", small], check=True)


COUNTER = """
import os, sys, time
held = None
for count in range(100000):
    print("step", count, flush=True)
    if os.path.exists("go"):
        held = held or open("data")
    if os.path.exists("end"):
        sys.exit(9)
    time.sleep(0.05)
"""


@pytest.mark.parametrize("choice", ["older", "anew", "stop"])
def test_a_snapshot_that_is_refused(work: Submitted, choice: str) -> None:
    (work.folder / "counter.py").write_text(COUNTER)
    (work.folder / "data").write_text("what the job reads\n")
    start(work, script(work, f"{sys.executable} counter.py", f"--on-refused={choice}"), "-D", str(work.folder))
    work.wait_steps(10)
    if choice == "older":
        work.send_away()
        work.wait_log("resumed")
    before = work.steps
    (work.folder / "go").touch()
    work.wait_steps(before + 10)

    def lose() -> None:
        for name in ("go", "data"):
            (work.folder / name).unlink()

    work.send_away(lose)
    if choice == "stop":
        assert work.wait_code() == "10:0"
    else:
        work.wait_log("run 2 resumed" if choice == "older" else "run 1 started")
        (work.folder / "end").touch()
        assert work.wait_code() == "9:0", work.told()
    assert f"{work.folder}/data: it cannot be opened: No such file or directory" in work.out
    steps = [int(line.split()[1]) for line in work.out.splitlines() if line.startswith("step")]
    if choice != "stop":
        assert steps == list(range(len(steps))), "the output is brought back to where the job goes on, or begins"


def test_a_copy_that_was_thought_dead_ends(work: Submitted) -> None:
    start(work, script(work, application(work, STEPS)))
    work.wait_steps(3)
    later = JobDirectory(work.store, work.number, "torpor")
    later.arrive(1, "n2", 2.0)  # on a node that can see the store
    assert work.wait_code() == "75:0", work.told()
    assert "found a later one: it ends" in work.log


def test_slurms_own_srun_below_the_supervisor_is_not_saved(work: Submitted) -> None:
    start(work, script(work, "/usr/bin/srun sleep 1000", "--every=1s"))
    work.wait_log("call it as srun, by name")
    assert "saved 2" not in work.log


def test_each_command_of_a_script_has_its_own_place(work: Submitted) -> None:
    """What has finished is not run again, and while the job leaves, the script does not go on."""
    path = script(work, application(work, STEPS))
    *head, run = path.read_text().replace("exec ", "").splitlines()
    began = f"{run.rpartition(' -- ')[0]} -- sh -c 'echo ran $0 >>{work.folder}/began; exit $0'"
    again, mark = f"{began} 3; {began} 4", f"echo $? >>{work.folder}/codes"
    path.write_text("\n".join([*head, f"{again}; {mark}", f"{run}; {mark}", f"{again}", ""]))
    start(work, path)
    work.wait_steps(5)
    work.preempt()
    work.finish()
    assert work.wait_code() == "4:0", work.told()
    assert work.differences(STEPS) == [], work.told()
    assert (work.folder / "began").read_text().split() == ["ran", "3", "ran", "4"] * 2
    assert (work.folder / "codes").read_text().split() == ["4", "4", str(CODE)]
    assert len([line for line in work.out.splitlines() if line.startswith("step")]) == STEPS


def test_status_tells_of_the_job(slurm: Cluster, work: Submitted) -> None:
    start(work, script(work, application(work, STEPS), "--every=1s"))
    work.wait_log("saved")
    command: list[str | Path] = [BIN / "torpor", "slurm", "status", "--store", work.store]
    told = work.user.run([*command, "--json", work.number], env=slurm.env, check=True)
    (row,) = json.loads(told.stdout)
    assert (row["job"], row["slurm"], row["phase"], row["window"], row["enough"]) == (
        work.number, "RUNNING", "running", GRACE + KILL_WAIT, True,
    )  # fmt: skip
    assert row["snapshots"]
    assert row["pause"] > 0
    table = work.user.run(command, env={**slurm.env, "COLUMNS": "200"}, check=True)
    assert f"of {GRACE + KILL_WAIT} s" in table.stdout


def test_the_doctor_says_how_large_a_job_can_be_saved(slurm: Cluster, ordinary_account: User) -> None:
    command: list[str | Path] = [BIN / "torpor", "doctor", "--slurm", "--store", ordinary_account.tmp / "store"]
    told = ordinary_account.run([*command, "--json"], env=slurm.env, check=True)
    found = {one["title"]: one for one in json.loads(told.stdout)["findings"]}
    assert f"{GRACE} s of GraceTime and {KILL_WAIT} s of KillWait: jobs of up to" in found["partition low"]["means"]
    assert found["partition abrupt"]["verdict"] == "limited"
    assert found["partition high"]["means"] == "its jobs are not preempted"
    assert found["ProctrackType"]["verdict"] == ("ok" if slurm.proctrack == "proctrack/cgroup" else "limited")
    words = ordinary_account.run([*command, "--nodes=2"], env={**slurm.env, "COLUMNS": "300"}, check=True)
    assert "PartitionName=abrupt GraceTime=120" in words.stdout
    assert "n1, n2 see it, as this host does" in words.stdout


def test_an_application_that_slurm_signals_itself(ordinary_account: User) -> None:
    """Without cgroups and without a grace time it is killed before it can be saved: it goes on from its last save."""
    with cluster(track="proctrack/linuxproc") as slurm, job(slurm, ordinary_account) as work:
        start(work, script(work, application(work, STEPS), "--every=1s"), "-p", "abrupt")
        work.wait_log("saved", 2)
        work.preempt()
        unharmed(work, STEPS)
