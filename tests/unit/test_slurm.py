"""Slurm, as far as it needs none: why a job was signalled, what is submitted, the fence, and the cut of output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.errors import NotFound, Refused, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.probe import probe
from torpor.scheduler_hooks.slurm import controller, rollback, site, step, submit
from torpor.scheduler_hooks.slurm.allocation import Allocation, is_supervised
from torpor.scheduler_hooks.slurm.clean import clean
from torpor.scheduler_hooks.slurm.controller import JobRecord, SlurmError
from torpor.scheduler_hooks.slurm.home import KEEP, RUN_TAG, JobHome
from torpor.scheduler_hooks.slurm.supervisor import Options, Supervisor
from torpor.scheduler_hooks.slurm.why import Answer, Cause, is_cancelled, why
from torpor.store import SnapshotInfo

LINE = (
    "JobId=1 JobName=job.sh UserId=u(1001) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0"
    " BatchFlag=1 ExitCode=0:0 RunTime=00:00:45 TimeLimit=01:00:00 StartTime=2026-11-23T05:44:26"
    " EndTime=2026-11-23T06:44:26 PreemptEligibleTime=2026-11-23T05:44:26 PreemptTime=None Partition=low NodeList=n1"
)


def judge(line: str, *, left: float = 3600, lead: float = 20, terminated: bool = True) -> Answer:
    record = JobRecord.parse(line)
    assert record.end is not None
    return why(record, restarts=0, now=record.end - left, lead=lead, terminated=terminated)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("", "", Cause.OTHER),
        ("PreemptTime=None", "PreemptTime=2026-11-23T06:00:00", Cause.PREEMPTED),
        ("JobState=RUNNING", "JobState=PREEMPTED", Cause.PREEMPTED),
        ("Restarts=0", "Restarts=1", Cause.REQUEUED),
        ("Reason=None", "Reason=TimeLimit", Cause.TIME_LIMIT),
        ("JobState=RUNNING", "JobState=TIMEOUT", Cause.TIME_LIMIT),
        ("JobState=RUNNING", "JobState=CANCELLED", Cause.OTHER),
    ],
)
def test_why_a_job_was_signalled(old: str, new: str, cause: Cause) -> None:
    assert judge(LINE.replace(old, new)).cause is cause


def test_a_job_that_was_requeued_after_its_preemption_is_not_requeued_twice() -> None:
    line = LINE.replace("PreemptTime=None", "PreemptTime=2026-11-23T06:00:00").replace("Restarts=0", "Restarts=1")
    assert judge(line).cause is Cause.REQUEUED


def test_a_signal_near_the_time_limit_is_its_warning() -> None:
    assert judge(LINE, left=19).cause is Cause.TIME_LIMIT
    assert judge(LINE, left=100).cause is Cause.OTHER
    assert judge(LINE, left=100, terminated=False).cause is Cause.TIME_LIMIT
    assert judge(LINE, left=200, terminated=False).cause is Cause.OTHER
    assert judge(LINE.replace("TimeLimit=01:00:00", "TimeLimit=UNLIMITED"), left=19).cause is Cause.OTHER


def test_what_ends_a_job_is_told_from_its_times() -> None:
    ending = LINE.replace("JobState=RUNNING", "JobState=COMPLETING")
    assert judge(ending).cause is Cause.OTHER, "scancel"
    preempted = ending.replace("PreemptTime=None", "PreemptTime=2026-11-23T06:44:26")
    assert judge(preempted).cause is Cause.PREEMPTED, "PreemptMode=CANCEL without a grace time"
    in_grace = JobRecord.parse(ending.replace("PreemptTime=None", "PreemptTime=2026-11-23T06:44:00"))
    assert in_grace.end is not None
    assert is_cancelled(in_grace, None)
    assert is_cancelled(in_grace, in_grace.end + 60), "scancel in the grace time"
    assert not is_cancelled(in_grace, in_grace.end), "its end"
    assert not is_cancelled(JobRecord.parse(ending.replace("Reason=None", "Reason=TimeLimit")), None)


@pytest.mark.parametrize("line", ["", "slurm_load_jobs error", LINE.replace("Restarts=0", "Restarts=x")])
def test_what_is_no_job_is_not_guessed_at(line: str) -> None:
    with pytest.raises(SlurmError):
        JobRecord.parse(line)


def test_a_command_that_is_not_there_or_fails_says_so() -> None:
    with pytest.raises(NotFound, match="there is no torpor-no-such-program here"):
        controller.call(["torpor-no-such-program"])
    with pytest.raises(SlurmError, match="sh -c failed: not today"):
        controller.call(["sh", "-c", "echo not today >&2; exit 3"])


def test_the_states_of_many_jobs_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\ncase $4 in --jobs=1,2) echo 1 RUNNING;; *) echo Invalid job id >&2; exit 1;; esac\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert controller.states(["1", "2"]) == {"1": "RUNNING"}
    assert controller.states(["2"]) == {}
    assert controller.states([]) == {}


# --------------------------------------------------------------------------------------- where


def environment(**more: str) -> dict[str, str]:
    return {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "c", "SLURMD_NODENAME": "n1", "ENVIRONMENT": "BATCH", **more}


def test_outside_of_a_job_there_is_no_allocation() -> None:
    assert Allocation.here({}) is None
    assert Allocation.here({"SLURM_JOB_ID": "12"}) is None, "salloc's shell on a login host"
    assert Allocation.here(environment(ENVIRONMENT="")) is None, "srun --pty bash"


def test_an_allocation_and_its_run() -> None:
    found = Allocation.here(environment(SLURM_RESTART_COUNT="3", HOME="/h"))
    assert found is not None
    assert (found.job, found.cluster, found.node, found.restarts, found.in_step) == ("12", "c", "n1", 3, False)
    assert "HOME" not in found.variables
    assert is_supervised({"TORPOR_ENV_FILE": "/s/slurm/c-12/env"}, found)
    assert not is_supervised({"TORPOR_ENV_FILE": "/s/slurm/c-11/env"}, found), "submitted from within another job"
    assert not is_supervised({}, found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"SLURM_JOB_NUM_NODES": "2"}, "2 nodes: a snapshot is of one node's processes"),
        ({"SLURM_JOB_GPUS": "0,1"}, "GPUs"),
        ({"SLURM_HET_SIZE": "2"}, "heterogeneous"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "it has 4 tasks"),
    ],
)
def test_what_cannot_be_kept_is_refused(more: dict[str, str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        Allocation.here(environment(**more))


# --------------------------------------------------------------------------------------- submitting


@pytest.fixture
def job_script(tmp_path: Path) -> Path:
    path = tmp_path / "job.sh"
    path.write_text("#!/bin/bash\n#SBATCH -c 4\n# a word\n\n#SBATCH --time=10\necho hello\n#SBATCH --nodes=9\n")
    return path


def test_the_script_is_found_among_the_arguments(job_script: Path) -> None:
    found = submit.parse(["-vHp", "low", "--time", "5", "--exclusive", "--mem=1G", str(job_script), "-x", "1"])
    assert found.options == ("-vHp", "low", "--time", "5", "--exclusive", "--mem=1G")
    assert (found.name, found.arguments) == ("job.sh", ("-x", "1"))
    assert found.values["time"] == "5", "the command line counts more than the script"
    assert found.values["c"] == "4"
    assert "nodes" not in found.values, "sbatch reads no further than the first command"


def test_a_wrapped_command_is_a_script() -> None:
    found = submit.parse(["-p", "low", "--wrap", "echo hello", "-n1"])
    assert (found.options, found.script) == (("-p", "low", "-n1"), b"#!/bin/sh\necho hello\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-N2"], "2 nodes"),
        (["--nodes", "1-4"], "4 nodes"),
        (["--gpus=1"], "GPUs"),
        (["-G", "2"], "GPUs"),
        (["--gres=shard:1,gpu:2"], "GPUs"),
        (["--no-requeue"], "--no-requeue"),
        (["--open-mode=truncate"], "--open-mode"),
    ],
)
def test_what_cannot_be_kept_is_not_submitted(job_script: Path, options: list[str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        submit.submit(submit.parse([*options, str(job_script)]), ["torpor", "run"])


def test_the_option_of_the_plugin_is_taken_out(job_script: Path) -> None:
    job_script.write_text("#!/bin/sh\n#SBATCH --torpor=5m\n#SBATCH -c 4 --torpor --time='1 2'\ntrue --torpor\n")
    found = submit.parse(["--torpor", "--torp=90s", "--parsable", str(job_script), "--torpor"])
    assert (found.every, found.options, found.arguments) == ("90s", ("--parsable",), ("--torpor",))
    assert submit.parse([str(job_script)]).every == "5m"
    head = submit.wrapped(found, ["torpor", "run"]).partition(b"exec")[0]
    assert head == b"#!/bin/sh\n#SBATCH -c 4 '--time=1 2'\n"
    assert submit.parse(["--torpor=3h", "--wrap=true"]).every == "3h"


def test_a_line_that_cannot_be_read_is_named(job_script: Path) -> None:
    job_script.write_text("#!/bin/sh\n#SBATCH --comment=it's\n")
    with pytest.raises(Refused, match="#SBATCH --comment=it's: No closing quotation"):
        submit.parse([str(job_script)])


def test_there_must_be_one_script(tmp_path: Path) -> None:
    for arguments in ([], ["-p", "low"], ["--wrap=true", "job.sh"]):
        with pytest.raises(Refused):
            submit.parse(arguments)
    with pytest.raises(NotFound):
        submit.parse([str(tmp_path / "none.sh")])


def test_what_is_submitted_holds_the_script_as_it_is(job_script: Path, tmp_path: Path) -> None:
    found = submit.parse([str(job_script)])
    batch = tmp_path / "slurm_script"
    batch.write_bytes(submit.wrapped(found, ["echo", "a b"]))
    assert batch.read_bytes().splitlines()[1:3] == [b"#SBATCH -c 4", b"#SBATCH --time=10"]
    assert submit.embedded_script(str(batch)) == ("job.sh", job_script.read_bytes())
    ran = subprocess.run(["sh", batch, "x"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"a b --script {batch} -- x\n"
    with pytest.raises(NotFound):
        submit.embedded_script(str(job_script))


@given(st.lists(st.text(max_size=8), max_size=8))
def test_no_arguments_confuse_it(words: list[str]) -> None:
    try:
        found = submit.parse(["--wrap=true", *words])
    except Refused:
        return
    assert found.name == "wrap"


# --------------------------------------------------------------------------------------- srun


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["./app", "-n", "4"], ["./app", "-n", "4"]),
        (["-N1", "-n", "1", "-c4", "--cpu-bind=cores", "-vu", "app"], ["app"]),
        (["--exact", "--mem", "1G", "--mpi=none", "-K", "--", "app", "x"], ["app", "x"]),
        (["--export=ALL", "-o", "out", "--open-mode=append", "-D", "/tmp", "app"], ["app"]),
    ],
)
def test_a_step_of_one_task_is_a_command(words: list[str], command: list[str]) -> None:
    values, rest = step.GRAMMAR.read(words)
    assert rest == command
    assert list(step.refusals(values, {"SLURM_NTASKS": "1"})) == []


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["-n4", "app"], "4 tasks"),
        (["--nodes=2", "app"], "--nodes=2"),
        (["--gpus=1", "app"], "--gpus"),
        (["-l", "app"], "--label"),
        (["-o", "out.%t", "app"], "out.%t"),
        (["--multi-prog", "-w", "n1", "conf"], "--multi-prog"),
    ],
)
def test_what_a_step_cannot_have_is_refused(words: list[str], refused: str) -> None:
    reasons = list(step.refusals(step.GRAMMAR.read(words)[0], {}))
    assert refused in "".join(map(str, reasons))


def test_a_step_has_as_many_tasks_as_its_job() -> None:
    assert "3 tasks" in "".join(map(str, step.refusals({}, {"SLURM_NTASKS": "3"})))
    assert list(step.refusals({"ntasks": "1"}, {"SLURM_NTASKS": "3"})) == []


def test_a_step_becomes_its_command(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text(step.SCRIPT)
    srun.chmod(0o700)
    (tmp_path / "out").write_text("before\n")
    words = [srun, "-D", tmp_path, "-o", "out", "--open-mode=append", "sh", "-c", "echo $$; echo 2 >&2; exit 9"]
    process = subprocess.Popen([*map(str, words)])
    assert process.wait() == 9
    assert (tmp_path / "out").read_text() == f"before\n{process.pid}\n2\n"
    told = subprocess.run([srun, "-n2", "true"], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "only a step of one task" in told.stderr


# --------------------------------------------------------------------------------------- the fence


def publish(home: JobHome, run: int) -> SnapshotInfo:
    with home.store.writer("tree", {RUN_TAG: str(run)}) as writer:
        return writer.publish(b"", "")


def ids(snapshots: list[SnapshotInfo]) -> list[str]:
    return [one.id for one in snapshots]


def test_the_next_run_finds_what_the_last_one_left(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    assert home.begin(0, "n1", 1.0) == []
    first, second = publish(home, 0), publish(home, 0)
    assert ids(home.begin(1, "n2", 2.0)) == ids([second, first])
    third = publish(home, 1)
    assert ids(home.begin(3, "n1", 3.0)) == ids([third, second, first])


def test_what_a_dead_run_publishes_late_is_never_woken(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    home.begin(0, "n1", 1.0)
    good = publish(home, 0)
    found = home.begin(1, "n2", 2.0)
    assert home.is_fenced(0)
    assert not home.is_fenced(1)
    late = publish(home, 0)
    assert ids(home.begin(2, "n1", 3.0)) == ids([good])
    later = [publish(home, 2) for _ in range(KEEP)]
    home.prune(2, found)
    assert late.id not in ids(home.store.snapshots())
    assert ids(home.store.snapshots()) == ids(later)


def test_a_dead_run_that_goes_on_takes_nothing_from_the_next(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    found = home.begin(0, "n1", 1.0)
    publish(home, 0)
    home.begin(1, "n2", 2.0)
    good = publish(home, 1)
    own = [publish(home, 0) for _ in range(KEEP)]
    home.prune(0, found)
    assert ids(home.store.snapshots()) == ids([good, *own])
    home.finish(0, 0)
    assert ids(home.store.snapshots()) == ids([good])


def test_of_two_supervisors_that_begin_at_once_one_gets_the_run(tmp_path: Path) -> None:
    homes = [JobHome(tmp_path, "12", "c") for _ in range(8)]
    barrier = threading.Barrier(len(homes))

    def begin(home: JobHome) -> bool:
        barrier.wait()
        try:
            home.begin(0, "n1", 1.0)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(len(homes)) as pool:
        assert sum(pool.map(begin, homes)) == 1


def test_a_store_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"on n2 there is no store .*is it mounted there"):
        JobHome(tmp_path / "unmounted", "12", "c").begin(1, "n2", 2.0)
    assert not (tmp_path / "unmounted").exists()


def test_one_supervisor_per_run(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    home.begin(1, "n1", 1.0)
    for run in (1, 0):
        with pytest.raises(Refused, match="it has a supervisor already"):
            home.begin(run, "n1", 1.0)


def test_an_id_that_is_used_again_is_another_job(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    home.begin(0, "n1", 1.0)
    publish(home, 0)
    assert JobHome(tmp_path, "12", "c").begin(0, "n1", 2.0) == []
    assert len(list(tmp_path.glob("slurm/c-12.until-*/snapshots/*"))) == 1


def test_a_finished_job_keeps_its_code_and_no_snapshots(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    assert home.finished is None
    home.begin(0, "n1", 1.0)
    publish(home, 0)
    home.finish(0, -9)
    assert home.finished is not None
    assert home.finished.code == -9
    assert home.store.snapshots() == []


def test_the_environment_file_is_what_a_shell_reads(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "c")
    home.begin(0, "n1", 1.0)
    home.write_environment({"SLURM_A": "it's\n$HOME", "SLURM_B": "2"})
    told = subprocess.run(
        ["sh", "-c", '. "$0"; printf %s "$SLURM_A$SLURM_B"', home.environment_file], check=True, capture_output=True
    )
    assert told.stdout == b"it's\n$HOME2"


# --------------------------------------------------------------------------------------- output files


def image_of(path: Path, flags: int, position: int, size: int, ino: int | None = None) -> pb.Tree:
    image = pb.Tree()
    description = image.descriptions.add(flags=flags)
    description.file.path = os.fsencode(path)
    description.file.position, description.file.size = position, size
    description.file.ino = path.stat().st_ino if ino is None else ino
    return image


def test_output_is_brought_back_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthree\n")
    (tail,) = rollback.tails(image_of(path, os.O_WRONLY | os.O_APPEND, 0, 4))
    aside = rollback.cut(tail, tmp_path, "run1")
    assert path.read_text() == "one\n"
    assert aside.read_text() == "two\nthree\n"


@pytest.mark.parametrize(
    ("flags", "position", "size", "found"),
    [
        (os.O_WRONLY | os.O_APPEND, 0, 4, 1),
        (os.O_WRONLY, 4, 4, 1),
        (os.O_RDWR, 2, 4, 0),
        (os.O_RDONLY, 4, 4, 0),
        (os.O_WRONLY | os.O_APPEND, 0, 9, 0),
        (os.O_WRONLY | os.O_APPEND, 0, 8, 0),
    ],
)
def test_only_what_is_written_at_its_end_is_cut(
    tmp_path: Path, flags: int, position: int, size: int, found: int
) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    assert len(list(rollback.tails(image_of(path, flags, position, size)))) == found
    assert list(rollback.tails(image_of(path, flags, position, size, ino=1))) == []


def test_output_that_cannot_be_kept_aside_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    (tail,) = rollback.tails(image_of(path, os.O_WRONLY | os.O_APPEND, 0, 4))
    with pytest.raises(RestoreFailed, match="cannot be brought back to its 4 bytes"):
        rollback.cut(tail, tmp_path / "nowhere", "run1")
    assert path.read_text() == "one\ntwo\n"


# --------------------------------------------------------------------------------------- the site


def test_a_site_is_judged_in_words() -> None:
    config = {"ProctrackType": "proctrack/linuxproc", "PreemptMode": "REQUEUE", "KillWait": "30", "JobRequeue": "0"}
    partitions = {"low": {"GraceTime": "120", "PreemptMode": "REQUEUE"}, "top": {"PreemptMode": "OFF"}}
    found = {one.title: one for one in site.examine(config, partitions, probe(), 100 * 2**20)}
    assert found["ProctrackType"].verdict == "limited"
    assert found["JobRequeue"].verdict == "limited"
    assert "jobs of up to 7.3 GiB of memory" in found["partition low"].means
    suspending = site.examine({**config, "PreemptMode": "GANG,SUSPEND"}, {}, probe(), 1.0)
    assert [one.verdict for one in suspending if one.name == "preempt_mode"] == ["no"]


def test_a_store_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert site.measure(str(tmp_path / "store"), 16 << 20) > 0
    assert list((tmp_path / "store").iterdir()) == []


def test_the_state_of_a_job_is_read_by_programs(tmp_path: Path) -> None:
    home = JobHome(tmp_path, "12", "my-cluster")
    home.begin(0, "n1", 1.0)
    home.tell(phase="running")
    home.tell(node="n1")
    assert json.loads((home.path / "state").read_text()) == {"phase": "running", "node": "n1"}
    assert [one.path for one in JobHome.all(tmp_path)] == [home.path]
    shutil.rmtree(home.path)
    assert JobHome.all(tmp_path) == []


# --------------------------------------------------------------------------------------- a silent controller


def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str) -> Supervisor:
    """One of a job on a cluster whose scontrol is made up."""
    path = tmp_path / "bin/scontrol"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\necho $1 >>asked\n{scontrol}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    monkeypatch.setattr("torpor.scheduler_hooks.slurm.supervisor.RETRY", 0.01)
    allocation = Allocation.here(environment())
    assert allocation is not None
    home = JobHome(tmp_path / "store", "12", "c")
    home.begin(0, "n1", 1.0)
    return Supervisor(["true"], allocation, home, Options())


SILENT_THRICE = "[ $(wc -l <asked) -gt 3 ] || { echo 'Unable to contact slurm controller' >&2; exit 1; }"


def test_a_run_begins_when_the_controller_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = supervisor(tmp_path, monkeypatch, f"{SILENT_THRICE}\necho '{LINE}'")
    assert tried._first_record().name == "job.sh"


def test_a_requeue_waits_for_the_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor(tmp_path, monkeypatch, f"{SILENT_THRICE}\n[ $1 = requeue ] || echo '{LINE}'")._requeue(None)
    assert (tmp_path / "asked").read_text().split() == ["show", "show", "show", "show", "requeue"]


def test_a_requeue_that_is_refused_says_where_the_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = f"[ $1 = show ] && exec echo '{LINE}'\necho 'Requested operation is disabled' >&2; exit 1"
    with pytest.raises(SlurmError, match=r"is disabled.*torpor restore latest --store"):
        supervisor(tmp_path, monkeypatch, refusing)._requeue(None)


def test_what_the_user_cancels_meanwhile_is_not_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = LINE.replace("JobState=RUNNING", "JobState=CANCELLED")
    supervisor(tmp_path, monkeypatch, f"[ $1 = show ] && echo '{cancelled}'")._requeue(None)
    assert "requeue" not in (tmp_path / "asked").read_text()


# --------------------------------------------------------------------------------------- cleaning


def test_only_jobs_that_are_over_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n[ $2 = config ] && exec echo ClusterName = c\n"
        f"[ $4 = 1 ] && exec echo '{LINE}'\n"
        "[ $4 = 3 ] && echo 'Unable to contact slurm controller' >&2 || echo 'Invalid job id specified' >&2\nexit 1\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    homes = {name: JobHome(tmp_path, name[-1], name[:-2]) for name in ("c-1", "c-2", "c-3", "d-2", "d-4", "c-5")}
    for home in homes.values():
        home.begin(0, "n1", 1.0)
        home.tell(phase="running")
        publish(home, 0)
    homes["d-4"].finish(0, 0)
    assert clean(str(tmp_path), 3600) == [], "all are young"
    for home in homes.values():
        for path in home.path.glob("[sf]*"):
            os.utime(path, (1, 1))
    assert JobHome(tmp_path, "5", "c").begin(0, "n1", 2.0) == []  # the id is used again
    removed = clean(str(tmp_path), 3600)
    assert sorted(path.name.partition(".until")[0] for path in removed) == ["c-2", "c-5", "d-4"]
    assert sorted(path.name for path in tmp_path.glob("slurm/*")) == ["c-1", "c-3", "c-5", "d-2"]
