"""Jobs on a real cluster when things go wrong at odd moments: nothing is lost, or it is said and can be put right."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import PACKAGES, cluster, missing
from tests.integration.slurm_jobs import APP, Submitted, application, job, script, start, supervisor, unharmed, waiting
from tests.users import User

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}")
STEPS = 300


def test_a_warning_that_comes_before_anyone_listens(work: Submitted) -> None:
    start(work, waiting(script(work, application(work, STEPS))))
    work.cluster.wait_state(work.number, "RUNNING")
    before = work.node
    other = work.cluster.preempt(work.user, before)
    work.cluster.wait_for(lambda: work.cluster.job(work.number).get("PreemptTime", "None") != "None", "its preemption")
    (work.folder / "go").touch()
    work.wait_log("a warning came before the sentinel had started: preempted")
    work.hurry(before)
    work.wait_log("resumed")
    work.cluster.release(other)
    unharmed(work, STEPS)


def test_a_warning_that_overtakes_the_signal_before_it(work: Submitted) -> None:
    """Slurm sends SIGCONT first, and the job is SIGNALING until the node has answered."""
    start(work, script(work, application(work, STEPS)))
    work.wait_steps(5)
    before = work.node
    with work.cluster.slow_node(before):
        other = work.cluster.preempt(work.user, before)
        work.cluster.wait_state(work.number, "SIGNALING")
        os.kill(supervisor(work), signal.SIGUSR1)  # by another way: it is early
        work.wait_log("received SIGUSR1: preempted")
    work.hurry(before)
    work.wait_log("resumed")
    work.cluster.release(other)
    unharmed(work, STEPS)


def test_what_is_killed_goes_on_from_its_last_save(work: Submitted) -> None:
    start(work, script(work, application(work, STEPS), "--every=1s"))
    for saved, victim in ((2, application_of), (3, supervisor)):
        work.wait_log("saved 2", saved)
        before = work.node
        os.kill(victim(work), signal.SIGKILL)
        assert work.wait_code() == "0:9"
        work.cluster.wait_gone(work.number)  # and nothing of it is left running: the fixture looks
        work.cluster.ask("scontrol", "requeue", work.number)
        work.hurry(before)
        work.wait_log("resumed", saved - 1)
    unharmed(work, STEPS)


def application_of(made: Submitted) -> int:
    """The PID of a job's application; its workers, which have the same command line, are its children."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes().split(b"\0")[1:3] == [os.fsencode(APP), os.fsencode(made.folder)]:
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    (root,) = (pid for pid, parent in parents.items() if parent not in parents)
    return root


COUNTS = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
for count in range(1000):
    print("step", count, flush=True)
    told = signal.sigwait({signal.SIGUSR1, signal.SIGUSR2})
    if told == signal.SIGUSR2:
        sys.exit(count)
"""


def test_signals_for_the_application_while_it_is_being_saved(work: Submitted) -> None:
    program = work.folder / "counts.py"
    program.write_text(COUNTS)
    start(work, script(work, f"{sys.executable} {program}", "--every=1s"))
    work.wait_steps(1)
    for count in range(30):
        work.user.run(["scancel", "--batch", "--signal=USR1", work.number], env=work.cluster.env, check=True)
        work.wait_steps(count + 2)
    work.wait_log("saved 2")
    work.user.run(["scancel", "--batch", "--signal=USR2", work.number], env=work.cluster.env, check=True)
    assert work.wait_code() == "30:0", work.told()
    assert "left because" not in work.log


def test_two_supervisors_that_begin_at_once(work: Submitted) -> None:
    path = script(work, application(work, 10))
    *head, run = path.read_text().splitlines()
    run = run.removeprefix("exec ")
    waits = ["wait $first; one=$?", "wait $second; other=$?", "[ $one = 7 ] || exit $other", "exit $one"]
    path.write_text("\n".join([*head, f"{run} & first=$!", f"{run} & second=$!", *waits, ""]))
    start(work, path)
    refused = "it has a supervisor already"
    work.cluster.wait_for(lambda: refused in work.out, f"{refused!r}", 60, work.told)
    work.finish()
    assert work.wait_code() == "7:0", work.told()
    assert work.log.count("started on") == 1


@pytest.mark.soak
@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_requeues_itself_begins_anew(work: Submitted, code: int) -> None:
    program = work.folder / "again.sh"
    again = "[ $(wc -l <ran) -gt 1 ] || { scontrol requeue $SLURM_JOB_ID; exit " + str(code) + "; }"
    program.write_text(f"#!/bin/bash\ncd {work.folder}\necho ran >>ran\n{again}\necho second >>ran\nexit 7\n")
    program.chmod(0o755)
    start(work, script(work, str(program)))
    work.wait_log("because of requeued by itself")
    work.hurry(work.node)
    assert work.wait_code() == "7:0", work.told()
    assert (work.folder / "ran").read_text().split() == ["ran", "ran", "second"]


def test_a_store_that_comes_late(work: Submitted) -> None:
    start(work, script(work, application(work, STEPS)))
    work.wait_steps(5)
    away = work.folder / "away"
    work.send_away(lambda: work.store.rename(away))
    work.cluster.wait_state(work.number, "RUNNING")

    def waits() -> bool:
        with suppress(AssertionError):
            return supervisor(work) > 0
        return False

    work.cluster.wait_for(waits, "its supervisor", more=work.told)
    away.rename(work.store)
    work.wait_log("resumed", seconds=90)
    unharmed(work, STEPS)


@pytest.mark.soak
def test_a_store_that_does_not_come(work: Submitted) -> None:
    """The job waits in the queue for its user."""
    start(work, script(work, application(work, STEPS)))
    work.wait_steps(5)
    away = work.folder / "away"
    work.send_away(lambda: work.store.rename(away))
    work.cluster.wait_for(lambda: "`scontrol release" in work.out, "words about the store", 120, work.told)
    held = work.cluster.wait_state(work.number, "PENDING")
    assert held["Reason"] == "job_requeued_in_held_state", held
    away.rename(work.store)
    work.user.run(["scontrol", "release", work.number], env=work.cluster.env, check=True)
    work.cluster.ask("scontrol", "update", f"JobId={work.number}", "StartTime=now", "ExcNodeList=")
    work.wait_log("resumed", seconds=120)
    unharmed(work, STEPS)


@pytest.mark.soak
def test_a_controller_that_is_away(ordinary_account: User) -> None:
    with cluster() as slurm, job(slurm, ordinary_account) as work:
        start(work, script(work, application(work, STEPS)))
        work.wait_steps(5)
        controller = work.cluster.controller
        assert controller is not None
        controller.terminate()
        controller.wait()
        os.kill(supervisor(work), signal.SIGTERM)
        work.wait_log("Slurm does not say why")
        work.wait_log("saved 2")
        work.wait_steps(work.steps + 5)  # it goes on
        work.cluster.start_controller()
        work.cluster.wait_for(lambda: work.cluster.job(work.number).get("JobState") == "RUNNING", "the controller")
        work.preempt()
        unharmed(work, STEPS)


LEDGER = """
import sys, time
from pathlib import Path
with open("ledger", "r+b", buffering=0) as ledger:
    for count in range(1, 10**6):
        ledger.seek(0)
        at = int(ledger.read(8))
        if at != count - 1:
            sys.exit(f"the ledger is at {at}, and I at {count - 1}")
        ledger.seek(0)
        ledger.write(b"%8d" % count)
        print("step", count, flush=True)
        if Path("finish").exists():
            sys.exit(7)
        time.sleep(0.1)
"""


@pytest.mark.soak
def test_a_file_that_is_written_in_place_is_rolled_back(work: Submitted) -> None:
    """The job is killed in the middle between two saves: the file is newer than the snapshot, and brought back."""
    program, ledger = work.folder / "ledger.py", work.folder / "ledger"
    program.write_text(LEDGER)
    ledger.write_bytes(b"%8d" % 0 + bytes(1 << 20))
    work.user.own(ledger)
    options = ["--every=2s", "--files=rolled-back", f"--with-files={ledger}"]
    path = script(work, f"{sys.executable} {program}", *options)
    path.write_text(path.read_text().replace("exec", f"cd {work.folder}\nexec", 1))
    start(work, path)
    for resumed in (1, 2):
        work.wait_log("saved 2", work.log.count("saved 2") + 2)
        work.wait_steps(work.steps + 5)
        before = work.node
        os.kill(supervisor(work), signal.SIGKILL)
        assert work.wait_code() == "0:9"
        work.cluster.wait_gone(work.number)
        work.cluster.ask("scontrol", "requeue", work.number)
        work.hurry(before)
        work.wait_log("resumed", resumed)
        work.wait_steps(work.steps + 5)
    work.finish()
    assert work.wait_code() == "7:0", work.told()
    steps = [line for line in work.out.splitlines() if line.startswith("step")]
    assert steps == [f"step {count}" for count in range(1, len(steps) + 1)], work.told()
    assert int(ledger.read_bytes()[:8]) == len(steps)


@pytest.mark.soak
def test_a_container_without_slurms_commands(ordinary_account: User) -> None:
    """Nobody says why the job is warned, and no sentinel runs: it is saved, and Slurm's own requeue continues it."""
    with cluster(kill_wait=10) as slurm, job(slurm, ordinary_account) as work:
        programs = work.folder / "bin"
        programs.mkdir()
        for program in Path("/usr/bin").iterdir():
            if program.name not in ("scontrol", "srun", "sbatch", "squeue", "scancel", "sinfo"):
                (programs / program.name).symlink_to(program)
        path = script(work, application(work, STEPS))
        path.write_text(path.read_text().replace("exec", f"export PATH={programs}\nexec", 1))
        start(work, path, "-p", "abrupt")
        work.wait_steps(5)
        before = work.node
        other = slurm.preempt(ordinary_account, before)
        work.wait_log("there is no scontrol here")
        work.hurry(before)
        work.wait_log("resumed")
        slurm.release(other)
        work.finish()
        assert work.wait_code() == "7:0", work.told()
        assert "torpor: there is no scontrol here" in work.out
        assert [line for line in work.out.splitlines() if line.startswith("step")] == [
            f"step {n}" for n in range(STEPS)
        ]
        assert work.differences(STEPS) == ["out"], work.told()  # but for that line
        assert work.log.count("saved 2") == 1


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("bindfs") is None, reason="a store that hangs needs bindfs")
@pytest.mark.timeout(300)
def test_a_store_that_hangs(ordinary_account: User) -> None:
    """Its supervisor hangs with it, as on a hard NFS mount. Where Slurm itself would cancel the job, it is requeued."""
    folder = ordinary_account.tmp / "job"
    behind, store = folder / "behind", folder / "store"
    for directory in (folder, behind, store):
        directory.mkdir()
        ordinary_account.own(directory)
    file_system = subprocess.Popen(["bindfs", "-f", "-o", "allow_other", behind, store])
    try:
        # Before the cluster: its nodes have mounts of their own.
        while not os.path.ismount(store):
            time.sleep(0.05)
        with cluster(grace=60, kill_wait=10) as slurm:
            work = Submitted(slurm, ordinary_account, folder)
            start(work, script(work, application(work, STEPS), "--every=1s"), "-p", "cancel")
            work.wait_log("saved 2", 2)
            before = work.node
            file_system.send_signal(signal.SIGSTOP)
            try:
                slurm.preempt(ordinary_account, before)
                slurm.wait_state(work.number, "PENDING", "CANCELLED", "PREEMPTED", seconds=150)
                assert slurm.job(work.number)["JobState"] == "PENDING"
            finally:
                file_system.send_signal(signal.SIGCONT)
            slurm.hurry(work.number, before)
            work.wait_log("resumed")
            unharmed(work, STEPS)
            slurm.release()
    finally:
        subprocess.run(["umount", store], check=True)
        file_system.wait()
