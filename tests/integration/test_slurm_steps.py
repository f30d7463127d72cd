"""Steps of several tasks below `torpor sbatch`: as under Slurm's own srun, and saved with the job."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from pprint import pformat

import pytest

from tests.integration.slurm_cluster import Cluster, missing
from tests.integration.slurm_jobs import Submitted
from tests.users import BIN

pytestmark = pytest.mark.skipif(bool(missing()), reason="Slurm is missing here")

SCRIPT = Path(__file__).with_name("slurm_steps.sh")
OWN = re.compile(
    "PATH|PWD|OLDPWD|_|SHLVL|TORPOR_.*|OMPI_.*|PRTE_.*|UCX_.*"  # the supervisor's, and the shell's
    "|SLURM_(LAUNCH_NODE_IPADDR|SRUN_COMM_.*|STEP_LAUNCHER_PORT|JOB_CPUS_PER_NODE_PACK_GROUP_0)"  # srun's sockets
    "|SLURM_(TASK_PID|JOB_?ID|STEP_?ID|JOB_NAME|GET_USER_ENV|OPEN_MODE|WORKING_CLUSTER)"
)
"""Variables that differ between any two jobs, or that docs/slurm.md says are missing."""
SLURMS = re.compile(
    r"^(slurmstepd-\w+: error: \*\*\*.*|srun: (Step created|Job \d+ step|Job step aborted|StepId=).*"
    r"|srun: Force Terminated.*|srun: cluster configuration lacks support for cpu binding)\n",
    re.MULTILINE,
)
"""What slurmstepd says of a step that it ends, and what srun says as the controller is quick or slow."""


def variables(path: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in path.read_text().splitlines())
    return {name: value for name, _, value in pairs if not OWN.fullmatch(name)}


def lines(path: Path) -> list[str]:
    """What a file holds, in no order: tasks run side by side. Which of them end together is chance, too."""
    text = re.sub(r"(StepId=|job )[\d.]+", r"\1", SLURMS.sub("", path.read_text()))
    found = []
    for line in text.splitlines():
        ends = re.fullmatch(r"(srun: error: \w+): tasks? ([-,\d]+): (.*)", line)
        if ends is None:
            found.append(line)
            continue
        for part in ends[2].split(","):
            first, _, last = part.partition("-")
            found += [f"{ends[1]}: task {task}: {ends[3]}" for task in range(int(first), int(last or first) + 1)]
    return sorted(found)


def read(path: Path) -> object:
    is_environment = "SLURM_PROCID=" in path.read_text()
    return variables(path) if is_environment else lines(path)


def below(work: Submitted) -> list[str | Path]:
    return [BIN / "torpor", "sbatch", "--store", work.store, "--"]


def test_tasks_get_and_give_what_slurms_do(slurm: Cluster, work: Submitted) -> None:
    found: list[dict[str, object]] = []
    for name, command in (("plain", ["sbatch"]), ("torpor", below(work))):
        folder = work.folder / name
        folder.mkdir()
        work.user.own(folder)
        path = folder / "steps.sh"
        path.write_text(f"#!/bin/sh\n#SBATCH -n4 -J steps\ncd {folder} || exit\n{SCRIPT.read_text()}")
        work.number = slurm.submit(work.user, *command, "-o", folder / "job", path)
        assert work.wait_code() == "0:0", work.told()
        names = {path.name for path in folder.iterdir()} - {"steps.sh", "job"}
        found.append({name: read(folder / name) for name in sorted(names)})
        assert (folder / "job").read_text() == ""
    plain, ours = found
    differing = {name: (value, plain[name]) for name, value in ours.items() if value != plain[name]}
    assert not differing, pformat(differing, width=200)
    assert ours.keys() == plain.keys()


def test_several_tasks_are_kept(work: Submitted) -> None:
    """With their labels and files, and with a step that waits for room: it begins on the node where the job is then."""
    path, folder = work.folder / "tasks.sh", work.folder
    count = "until [ -e finish ]; do echo $n; n=$((n + 1)); sleep 0.1; done; exit $SLURM_PROCID"
    path.write_text(
        f"#!/bin/sh\n#SBATCH -n4\ncd {folder}\n"
        f"srun -n4 -l sh -c 'n=0; echo $n >>begun; {count}' &\n"
        "until [ $(wc -l <begun) = 4 ]; do sleep 0.1; done\n"
        "srun -n2 -o second.%t sh -c 'echo $SLURM_RESTART_COUNT $SLURMD_NODENAME' 2>waited\n"
        "wait %1\nexit $?\n"
    )
    (folder / "begun").touch()
    work.user.own(folder / "begun")
    work.number = work.cluster.submit(work.user, *below(work), "-o", folder / "out", path)
    waited = folder / "waited"
    work.cluster.wait_for(
        lambda: work.out.count("3: ") > 5 and waited.exists() and "temporarily disabled" in waited.read_text(),
        "tasks, and a step that waits for room",
        more=work.told,
    )
    work.preempt()
    work.finish()
    assert work.wait_code() == "3:0", work.told()
    told = [line for line in work.out.splitlines() if not line.startswith(("slurmstepd", "srun"))]
    for task in range(4):
        steps = [line.partition(": ")[2] for line in told if line.startswith(f"{task}: ")]
        assert steps == [str(step) for step in range(len(steps))], work.told()
    assert len(told) == sum(line[1] == ":" for line in told), work.told()
    assert [(folder / f"second.{task}").read_text() for task in range(2)] == [f"1 {work.node}\n"] * 2


RING = Path(__file__).with_name("slurm_ring.c")
RING_STEPS = 200
LOOPBACK = "OMPI_MCA_oob_tcp_if_include=lo"
"""Open MPI's launcher looks for an interface that is not the loopback, and a machine without a network has none."""


@pytest.mark.parametrize(
    ("compiler", "launcher"), [("mpicc.openmpi", "mpirun.openmpi"), ("mpicc.mpich", "mpiexec.hydra")]
)
def test_ranks_of_mpi_are_kept(work: Submitted, compiler: str, launcher: str) -> None:
    """By the launcher of what the program is linked with; woken on a node that has nothing of its shared memory."""
    if not (shutil.which(compiler) and shutil.which(launcher)):
        pytest.skip(f"{compiler} and {launcher} are missing here: install openmpi-bin, mpich and their -dev")
    ring, finish, path = work.folder / "ring", work.folder / "finish", work.folder / "ring.sh"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", RING, "-o", ring], check=True)
    path.write_text(
        f"#!/bin/sh\n#SBATCH -n2\ncd {work.folder} || exit\nexport {LOOPBACK}\n"
        f"srun -o ranks.%t {ring} {RING_STEPS} {finish}\n"
    )
    work.number = work.cluster.submit(work.user, *below(work), "-o", work.folder / "out", path)
    first = work.folder / "ranks.0"
    work.cluster.wait_for(lambda: first.exists() and "step 5\n" in first.read_text(), "ranks", more=work.told)

    def clear() -> None:
        for segment in Path("/dev/shm").glob(f"vader_segment.n?.{work.user.uid}.*"):
            segment.unlink()

    work.send_away(clear)
    work.finish()
    assert work.wait_code() == "0:0", work.told()
    assert not list(Path("/tmp").glob(f"ompi.n?.{work.user.uid}"))
    told = [(work.folder / f"ranks.{rank}").read_text().splitlines() for rank in range(2)]
    assert told[0][:-1] == [f"step {step}" for step in range(RING_STEPS)]
    sums = {line.partition(": ")[2].partition(",")[0] for line in (lines[-1] for lines in told)}
    undisturbed = [launcher, *(["--oversubscribe"] if "openmpi" in launcher else []), "-np", "2"]
    expected = work.user.run(["env", LOOPBACK, *undisturbed, ring, str(RING_STEPS), finish], check=True).stdout
    assert sums == {expected.splitlines()[-1].partition(": ")[2].partition(",")[0]}
    assert [lines[-1].partition(":")[0] for lines in told] == [f"rank {rank} of 2" for rank in range(2)]
    assert [lines[-1].rpartition(" ")[2] for lines in told] == ["0", "1"]


def sentinels(work: Submitted) -> set[int]:
    """The processes of the step that hears what is for steps."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "environ").read_bytes().split(b"\0")
            if (
                process / "cmdline"
            ).read_bytes() == b"sleep\0infinity\0" and f"SLURM_JOB_ID={work.number}".encode() in words:
                found.add(int(process.name))
    return found


def test_a_signal_for_the_steps_reaches_what_srun_has_started(work: Submitted) -> None:
    """And again: what hears it for them is back at once."""
    path = work.folder / "hears.sh"
    hears = 'trap "echo heard" USR1; echo up; until [ -e finish ]; do sleep 0.1; done'
    path.write_text(f"#!/bin/sh\n#SBATCH -n2\ncd {work.folder}\nsrun -n2 sh -c '{hears}'\n")
    work.number = work.cluster.submit(work.user, *below(work), "-o", work.folder / "out", path)
    work.cluster.wait_for(lambda: work.out.count("up") == 2, "two tasks", more=work.told)
    before: set[int] = set()

    def signals(count: int) -> None:
        work.cluster.wait_for(lambda: bool(sentinels(work) - before), "a sentinel", more=work.told)
        before.update(sentinels(work))
        work.user.run(["scancel", "--signal=USR1", work.number], env=work.cluster.env, check=True)
        work.cluster.wait_for(lambda: work.out.count("heard") == count, "all that hear", more=work.told)

    signals(2)
    signals(4)
    work.finish()
    assert work.wait_code() == "0:0", work.told()
