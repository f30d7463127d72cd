"""srun below a supervisor: its options, files, processors and tasks. How Slurm's own is: test_slurm_steps.py."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from torpor_slurm import mpi_environment, srun_wrapper
from torpor_slurm.step import processors
from torpor_slurm.step.files import file_name, is_one_per_task, several_programs, unknown_patterns
from torpor_slurm.step.options import GRAMMAR, read, unsupported
from torpor_slurm.step.tasks import Binding, Task, binding


@pytest.mark.parametrize(
    ("words", "command", "tasks"),
    [
        (["./app", "-n", "4"], ["./app", "-n", "4"], 3),
        (["-N1", "-n", "1", "-c4", "--cpu-bind=cores", "-vu", "app"], ["app"], 1),
        (["--exact", "--mem", "1G", "--mpi=none", "-K", "--", "app", "x"], ["app", "x"], 3),
        (["--export=ALL", "-o", "out", "--open-mode=append", "-D", "/tmp", "-w", "n1", "app"], ["app"], 3),
        (["-ln2", "-I", "-K1", "-W9", "app"], ["app"], 2),
    ],
)
def test_a_step_is_read(words: list[str], command: list[str], tasks: int) -> None:
    step = read(words, {"SLURM_NTASKS": "3", "SLURMD_NODENAME": "n1"})
    assert step.command == tuple(command)
    assert step.tasks == tasks


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["-n", "1k", "app"], "--ntasks=1k"),
        (["--nodes=2", "app"], "--nodes=2"),
        (["--gpus=1", "app"], "--gpus"),
        (["--pty", "app"], "--pty"),
        (["-o", "out.%q", "app"], "%q"),
        (["-e", "100%", "app"], "100%"),
        (["--multi-prog", "-w", "n1", "conf"], "--nodelist"),
    ],
)
def test_what_a_step_cannot_have_is_refused(words: list[str], refused: str) -> None:
    reasons = list(unsupported(GRAMMAR.read(words)[0], {}))
    assert refused in "".join(map(str, reasons))


def test_the_environment_stands_for_options() -> None:
    step = read(["app"], {"SLURM_LABELIO": "1", "SLURM_OVERLAP": "0", "SLURM_WAIT": "3", "SRUN_CPUS_PER_TASK": "2"})
    assert (step.has("label"), step.has("overlap"), step.values["wait"]) == (True, False, "3")
    assert (step.tasks, step.cpus_per_task, step.exact) == (1, 2, True)
    assert read(["-W0", "app"], {"SLURM_WAIT": "3"}).values["wait"] == "0"


def test_patterns_of_file_names_are_replaced() -> None:
    job = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "13", "SLURM_JOB_NAME": "a name"}
    node = os.uname().nodename.partition(".")[0]
    for pattern, name in {
        "log_%j_%t.out": "log_12_7.out",
        "%A_%a.%n.%b": "10_13.0.3",
        "%5j-%x-100%%": "00012-a name-100%",
        "%3N": node,
        "%J-%s": "12.4-4",
        r"\100%": "100%",
        "plain": "plain",
    }.items():
        assert unknown_patterns(pattern) == []
        assert file_name(pattern, job, 4, 7) == name
    assert [is_one_per_task(one) for one in ("%t", "%2t", "%%t", "%n", r"\%t")] == [True, True, False, False, False]


def test_each_task_may_run_another_program(tmp_path: Path) -> None:
    path = tmp_path / "programs"
    path.write_text("# a remark\n\n0 first '%t %o' a\\ b \\\n c\n2-3 second %o %t\n* rest %o\n")
    assert several_programs(str(path), 4) == {
        0: ["first", "0 0", "a b", "c"],
        1: ["rest", "1"],
        2: ["second", "0", "2"],
        3: ["second", "1", "3"],
    }
    for text, why in {
        "0 a": "no record for task id 1",
        "0-1 a\n1 b": "Duplicate record for task 1",
        "0-2 a": "Line 1",
        "x a": "Line 1",
        "0": "Line 1",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=why):
            several_programs(str(path), 2)


# --------------------------------------------------------------------------------------- processors


@pytest.mark.parametrize(
    ("words", "cpus", "holds", "masks"),
    [
        (["-n4"], [0, 1, 2, 3], [[0], [1], [2], [3]], [{8}, {9}, {10}, {11}]),
        (["-n2"], [0, 1, 2, 3], [[0, 1], [2, 3]], [{8, 9}, {10, 11}]),
        (["-n3"], [0, 1, 2, 3], [[0, 3], [1], [2]], [{8}, {9}, {10}]),
        (["-n2", "--exact"], [1, 3], [[1], [3]], [{9}, {11}]),
        (["-n1", "-c2"], [2, 3], [[2, 3]], [{10, 11}]),
        (["-n1"], [0, 1, 2, 3], [[0, 1, 2, 3]], None),
        (["-n6", "-O"], [0, 1, 2, 3], [[0, 1, 2, 3], [], [], [], [], []], None),
        (["-n2", "--cpu-bind=none"], [0, 1, 2, 3], [[0, 1], [2, 3]], None),
        (["-n3", "--cpu-bind=v,map_cpu:4,0x5"], [0, 1, 2, 3], [[0, 3], [1], [2]], [{4}, {5}, {4}]),
        (["-n2", "--cpu-bind=mask_cpu:3,0xc"], [0, 1, 2, 3], [[0, 1], [2, 3]], [{0, 1}, {2, 3}]),
        (["-n2", "--overlap"], [0, 1, 2, 3], [[], []], [{8, 9}, {10, 11}]),
    ],
)
def test_processors_are_shared_out(
    words: list[str], cpus: list[int], holds: list[list[int]], masks: list[set[int]] | None
) -> None:
    bound = binding(read([*words, "app"], {}), cpus, 4, [8, 9, 10, 11])
    assert (bound.holds, bound.masks) == (holds, masks)


def test_nobody_is_bound_where_slurm_does_not_confine_jobs() -> None:
    assert binding(read(["-n2", "app"], {}), [0, 1], 2, list(range(64))).masks is None


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["-n2"], [0, 1, 2, 3]),
        (["-n2", "--exact"], [0, 1]),
        (["-n2", "-c2"], [0, 1, 2, 3]),
        (["--exclusive"], [0]),
        (["-n9", "-O"], [0, 1, 2, 3]),
        (["-n4", "--overlap"], [0, 1, 2, 3]),
    ],
)
def test_a_step_has_room(words: list[str], given: list[int]) -> None:
    with processors.reserved(read([*words, "app"], {}), {"SLURM_CPUS_ON_NODE": "4"}) as cpus:
        assert cpus == given


def test_room_that_a_job_does_not_have() -> None:
    for variables in ({"SLURM_CPUS_ON_NODE": "4"}, {"SLURM_JOB_CPUS_PER_NODE": "4(x2)"}):
        with (
            pytest.raises(processors.NoProcessors, match="More processors"),
            processors.reserved(read(["-n5", "app"], {}), variables),
        ):
            pass
    assert processors.count({}) == len(os.sched_getaffinity(0))


# --------------------------------------------------------------------------------------- tasks


class Job:
    """A job's directory, and srun in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.srun = folder / "srun"
        self.srun.write_text(srun_wrapper.SCRIPT)
        self.srun.chmod(0o700)
        (folder / "env").write_text("export SLURMD_NODENAME=there\nexport SLURM_CPUS_ON_NODE=2\n")
        self.env = {**os.environ, "SLURM_JOB_ID": "12", "TORPOR_ENV_FILE": str(folder / "env")}

    def step(self, *words: str, **more: str) -> Popen[str]:
        return Popen(
            [self.srun, *words], stdout=PIPE, stderr=PIPE, stdin=PIPE, text=True, cwd=self.folder, env=self.env | more
        )

    def told(self, *words: str, text: str = "") -> tuple[int, list[str], list[str]]:
        """The exit code of a step, and the lines of its output and errors."""
        with self.step(*words) as step:
            out, errors = step.communicate(text)
        return step.returncode, sorted(out.splitlines()), sorted(errors.splitlines())


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    yield Job(tmp_path)


def test_a_single_task_takes_the_place_of_srun(job: Job) -> None:
    (job.folder / "out").write_text("before\n")
    (job.folder / "json.py").write_text("raise SystemExit('a module of the job')")
    script = "echo $$ $SLURM_TASK_PID $SLURMD_NODENAME; echo 2 >&2; trap; grep SigIgn /proc/$$/status; exit 9"
    with job.step("-o", "out", "--open-mode=append", "sh", "-c", script) as step:
        pass
    assert step.returncode == 9
    before, pids, error, ignored = (job.folder / "out").read_text().splitlines()
    assert (before, pids, error) == ("before", f"{step.pid} {step.pid} there", "2")
    pythons = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    assert not int(ignored.split()[1], 16) & pythons, "what Python itself ignores is not forwarded"


def test_no_step_has_the_number_of_another(job: Job) -> None:
    for number in range(2):
        assert job.told("-o", "%J.%s", "-n2", "sh", "-c", "echo $SLURM_STEP_ID")[0] == 0
        assert (job.folder / f"12.{number}.{number}").read_text() == f"{number}\n" * 2


def test_files_of_tasks(job: Job) -> None:
    for name in "01":
        (job.folder / name).write_text(f"of {name}\n")
    assert job.told("-n2", "-l", "-i", "./%t", "cat") == (0, ["0: of 0", "1: of 1"], [])
    assert job.told("-n2", "-i", "none", "cat", text="x\n") == (0, [], [])
    assert job.told("-n2", "cat", text="x\n" * 100_000)[1] == ["x"] * 200_000
    assert job.told("-n2", "sh", "-c", "[ $SLURM_PROCID = 0 ] || cat", text="x\n" * 100_000)[1] == ["x"] * 100_000
    assert job.told("-n2", "-o", "none", "-u", "echo", "x") == (0, [], [])
    assert job.told("-n2", "-o", "/missing/x", "true")[2] == [
        "srun, in a job under torpor: [Errno 2] No such file or directory: '/missing/x'"
    ]


def test_signals_reach_every_task(job: Job) -> None:
    script = 'trap "echo told; exit 4" USR1; echo up; while :; do sleep 0.1; done'
    with job.step("-n2", "sh", "-c", script) as step:
        assert step.stdout
        assert [step.stdout.readline() for _ in range(2)] == ["up\n"] * 2
        step.send_signal(signal.SIGUSR1)
        assert step.communicate()[0] == "told\ntold\n"
    assert step.returncode == 4


def test_a_signal_reaches_a_task_that_has_just_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It still has the actions of srun itself then, which would swallow it."""
    come, go = os.pipe()

    def late(self: Task, *_: object) -> None:
        os.read(come, 1)
        become(self, dict(os.environ), Binding([[]], None, {}))

    become = Task.become
    monkeypatch.setattr(Task, "become", late)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        pid = Task(0, ["true"], [0, 1, 2]).start({}, Binding([[]], None, {}))
    finally:
        signal.signal(signal.SIGUSR1, before)
    os.kill(pid, signal.SIGUSR1)
    os.write(go, b"x")
    assert os.waitpid(pid, 0)[1] == signal.SIGUSR1
    os.close(come)
    os.close(go)


def test_what_tasks_leave_behind_goes_with_a_step_that_is_ended(job: Job) -> None:
    script = "sleep 1000 & [ $SLURM_PROCID = 0 ] && exit 3; wait"
    assert job.told("-K", "-n2", "sh", "-c", script)[0] == 143


def test_steps_wait_for_room(job: Job) -> None:
    with job.step("-n1", "sh", "-c", "echo up; read line") as first, job.step("-n1", "--overlap", "echo") as beside:
        assert first.stdout
        assert first.stdin
        assert first.stdout.readline() == "up\n"
        assert beside.wait() == 0
        assert job.told("-n1", "-I", "true")[::2] == (
            1,
            ["srun: error: Unable to create step for job 12: Requested nodes are busy"],
        )
        with job.step("-n2", "true") as second:
            assert second.stderr
            assert "retrying (Requested nodes are busy)" in second.stderr.readline()
            assert second.poll() is None
            first.stdin.close()
            assert second.wait() == 0


def test_a_task_may_call_srun_itself(job: Job) -> None:
    assert job.told("-n1", job.srun.as_posix(), "-n2", "echo", "x") == (0, ["x", "x"], [])


# --------------------------------------------------------------------------------------- MPI

LAUNCHER = """#!/bin/sh
[ "$1" = --version ] && { echo "mpirun (Open MPI) 4.1.4"; exit; }
env | grep ^SLURM_JOB_ID
[ "$1" = -np ] || exit 99
ranks=$2
while [ "$1" != "%s" ]; do shift; done
rank=0
while [ $rank -lt $ranks ]; do
	OMPI_COMM_WORLD_RANK=$rank "$@" &
	pids="$pids $!"
	rank=$((rank + 1))
done
for one in $pids; do wait $one || code=$?; done
exit $code
"""


@pytest.fixture
def mpi(job: Job) -> Job:
    """With an mpirun and an ldd of its own."""
    (job.folder / "orterun").write_text(LAUNCHER % sys.executable)
    (job.folder / "ldd").write_text('#!/bin/sh\ncase $1 in *cat) cat "${0%/*}/libraries" ;; esac\n')
    (job.folder / "scontrol").write_text("#!/bin/sh\necho 'MaxJobCount = 1'\necho 'MpiDefault              = pmix'\n")
    for name in ("orterun", "ldd", "scontrol"):
        (job.folder / name).chmod(0o700)
    job.env["PATH"] = f"{job.folder}:{os.environ['PATH']}"
    return job


def test_ranks_are_tasks(mpi: Job) -> None:
    (mpi.folder / "libraries").write_text(
        "\tlibmpi.so.40 => /no/lib/libmpi.so.40 (0x1)\n\tlibopen-pal.so.40 => /x (0x1)\n"
    )
    for task in range(2):
        (mpi.folder / str(task)).write_text(f"of {task}\n")
    (mpi.folder / "programs").write_text("* cat %t /proc/self/environ\n")
    code, _, errors = mpi.told("-n2", "-o", "out.%t", "--multi-prog", "programs")
    assert (code, errors) == (0, [])
    for task in range(2):
        first, _, rest = (mpi.folder / f"out.{task}").read_text().partition("\n")
        assert first == f"of {task}"
        variables = rest.split("\0")
        assert {f"SLURM_PROCID={task}", "SLURM_NTASKS=2", f"OMPI_COMM_WORLD_RANK={task}"} <= {*variables}
        assert not any(one.startswith("TORPOR_STEP_PLAN") for one in variables)
    assert mpi.told("-n2", "-l", "cat", "0", "missing") == (
        1,
        ["0: of 0", "1: of 0"],
        [
            *(f"{task}: cat: missing: No such file or directory" for task in range(2)),
            f"srun: error: {os.uname().nodename.partition('.')[0]}: tasks 0-1: Exited with exit code 1",
        ],
    )


def test_an_interpreter_is_started_by_the_mpi_in_path(mpi: Job) -> None:
    (mpi.folder / "orterun").rename(mpi.folder / "mpirun")
    script = ("sh", "-c", "echo $SLURM_PROCID $OMPI_COMM_WORLD_RANK")
    assert mpi.told("-n2", "--mpi=pmix", *script) == (0, ["0 0", "1 1"], [])
    assert mpi.told("-n2", *script) == (0, ["0 0", "1 1"], []), "by MpiDefault"
    assert mpi.told("-n2", "--mpi=none", *script) == (0, ["0", "1"], [])
    assert mpi.told(*script) == (0, ["0"], [])
    assert (mpi.folder / "mpi-default").read_text() == "pmix"


@pytest.mark.parametrize(
    ("library", "told"),
    [
        ("libmpi_cray.so.12", "only Slurm's own PMI server starts"),
        ("libmpich.so.12", "linked with MPICH, whose mpiexec must start the ranks here, but is not in PATH"),
    ],
)
def test_an_mpi_whose_ranks_cannot_be_started_is_refused(mpi: Job, library: str, told: str) -> None:
    (mpi.folder / "libraries").write_text(f"\t{library} => /no/lib/{library} (0x1)\n")
    mpi.env["PATH"] = f"{mpi.folder}:{mpi.folder / 'bin'}"
    (mpi.folder / "bin").mkdir()
    for name in ("sh", "cat", "env"):
        (mpi.folder / "bin" / name).symlink_to(shutil.which(name) or "")
    code, _, errors = mpi.told("-n2", "cat")
    assert code == 1
    assert told in errors[0]


def test_the_environment_of_mpi(tmp_path: Path) -> None:
    usual = mpi_environment.variables(tmp_path, tcp=False)
    assert usual["OMPI_MCA_orte_tmpdir_base"] == str(tmp_path)
    assert {"OMPI_MCA_pml": "ob1", "FI_PROVIDER": "tcp"}.items() <= mpi_environment.variables(
        tmp_path, tcp=True
    ).items()
    assert "OMPI_MCA_pml" not in usual


def test_little_is_held_in_memory(job: Job) -> None:
    """It is in every snapshot: not the engine, but for the words of its errors."""
    code = (
        "import sys, torpor_slurm.step.__main__; print(*(name for name in sys.modules if name.startswith('torpor.')))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["torpor.errors"]


STEP = """
import fcntl, os, sys, time
from pathlib import Path
from torpor_slurm.step.job_files import locked
if sys.argv[2] == "without":
    def none(*_):
        raise OSError(38, "no locks here")
    fcntl.flock = none
with locked({"TORPOR_ENV_FILE": sys.argv[1] + "/env"}):
    child = os.fork()
    if not child:
        time.sleep(0.01)
        os._exit(0)
    inside = os.open(sys.argv[1] + "/inside", os.O_CREAT | os.O_EXCL)
    time.sleep(0.02)
    os.waitpid(child, 0)
    os.unlink(sys.argv[1] + "/inside")
"""


@pytest.mark.parametrize("locks", ["with", "without"])
def test_one_step_at_a_time_chooses_processors(tmp_path: Path, locks: str) -> None:
    """Also in a directory whose file system has no locks."""
    steps = [Popen([sys.executable, "-c", STEP, str(tmp_path), locks]) for _ in range(6)]
    assert [step.wait() for step in steps] == [0] * 6
