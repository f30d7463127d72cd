"""Jobs of many kinds, preempted again and again at random moments of their lives: no line is lost or doubled.

What an event does in each state of a job is tried one by one in a model (tests/unit/slurm/test_slurm_model.py); this
samples a real cluster. $TORPOR_SLURM_LIVES: how many jobs of each kind; $TORPOR_SLURM_SEED: other moments.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import PACKAGES, Cluster, missing
from tests.integration.slurm_jobs import Submitted, job
from tests.integration.slurm_preemptions import OVER, PYTHON, disturb, has, wait_for
from tests.users import BIN, User

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}"),
]
LIVES = int(os.environ.get("TORPOR_SLURM_LIVES", "3"))
SEED = int(os.environ.get("TORPOR_SLURM_SEED", "1"))
EVENTS = 5
"""How often a job is preempted or requeued, unless it is over before."""
LINES = 60
NUMBERS = range(LINES)
COUNT = 'count() { n=0; while [ $n -lt 60 ]; do echo "$1$n"; n=$((n+1)); sleep 0.05; done; }\n'


def numbered(prefix: str = "") -> list[str]:
    return [f"{prefix}{number}" for number in NUMBERS]


@dataclass(frozen=True)
class Kind:
    """A kind of job."""

    body: str
    """What the job runs, in bash; COUNT before it."""
    wrap: bool = True
    """By `torpor sbatch`; otherwise the script itself calls $RUN: `torpor run` with its store."""
    code: int = 0
    out: Callable[[list[str]], bool] = lambda lines: lines == numbered()
    """Whether these lines are those of an undisturbed job. What a script says itself may come again in every run."""
    files: Mapping[str, list[str]] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Programs, or modules of PYTHON."""
    then: bool = False
    """Whether a job with --dependency=afterok waits for its end, and has to find its whole output."""


def by_task(prefixes: list[str]) -> Callable[[list[str]], bool]:
    """Lines of several tasks, which may be mixed, but not those of one task."""

    def check(lines: list[str]) -> bool:
        of_each = [[line for line in lines if line.startswith(prefix)] for prefix in prefixes]
        return len(lines) == len(prefixes) * LINES and of_each == [numbered(prefix) for prefix in prefixes]

    return check


POOL = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
def work(n):
    time.sleep(0.15)
    return n
if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool, open("buffered", "w") as file:
        for n in pool.map(work, range(60)):
            print(n, flush=True)
            file.write(f"{n}\\n")
    sys.exit(7)
"""
LOKY = """
import sys, time
from joblib import Parallel, delayed
def work(n):
    time.sleep(0.15)
    return n
with open("buffered", "w") as file:
    for n in Parallel(n_jobs=2, return_as="generator")(delayed(work)(n) for n in range(60)):
        print(n, flush=True)
        file.write(f"{n}\\n")
sys.exit(7)
"""
MPI4PY = """
import time
from mpi4py import MPI
world = MPI.COMM_WORLD
for step in range(60):
    total = world.allreduce(step + world.rank)
    assert total == 4 * step + 6, (step, total)
    if world.rank == 0:
        print("step", step, flush=True)
    time.sleep(0.05)
print(f"rank {world.rank} of {world.size}: the end", flush=True)
"""
PROGRAMS = {"pool.py": POOL, "loky.py": LOKY, "ranks.py": MPI4PY}
ITSELF = """
touch own
n=$(wc -l <own)
while [ $n -lt 60 ]; do
	echo $n >>own; n=$((n+1))
	case $n in 20|40) scontrol requeue $SLURM_JOB_ID; exit 0 ;; esac
	sleep 0.05
done
"""
RING = Path(__file__).with_name("slurm_ring.c")


def ring(lines: list[str], size: int = 2) -> bool:
    steps = [line for line in lines if line.startswith("step")]
    ranks = sorted(line.partition(":")[0] for line in lines if line.startswith("rank"))
    expected = [f"rank {rank} of {size}" for rank in range(size)]
    return steps == numbered("step ") and ranks == expected and len(lines) == LINES + size


MPI = "export OMPI_MCA_oob_tcp_if_include=lo\ntouch finish\nsrun ./ring 60 finish\n"
KINDS = {
    "script": Kind("count; exit 3\n", code=3),
    "pipeline": Kind("count x | while read line; do echo $line; echo $line >>own; done\n",
                     out=lambda lines: lines == numbered("x"), files={"own": numbered("x")}),
    "tee": Kind("exec > >(tee own)\ncount\n", files={"own": numbered()}),
    "run": Kind("exec $RUN bash -c \"$(declare -f count); count; exit 5\"\n", wrap=False, code=5),
    "run, not exec": Kind("trap exit TERM\n$RUN bash -c \"$(declare -f count); count >>own\"\necho code $?\n",
                          wrap=False, out=lambda lines: set(lines) == {"code 0"}, files={"own": numbered()}),
    "stages in": Kind("sleep 1.5\nexec $RUN bash -c \"$(declare -f count); count\"\n", wrap=False),
    "several commands": Kind(
        "trap exit TERM\nf=$(declare -f count)\n$RUN bash -c \"$f; count a\"\n$RUN bash -c \"$f; count b\"\n",
        wrap=False, out=lambda lines: lines == numbered("a") + numbered("b")),
    "ends on SIGTERM": Kind("trap 'exit 0' TERM\ncount\nexit 4\n", code=4),
    "python": Kind(f"exec {sys.executable} pool.py\n", code=7, files={"buffered": numbered()}),
    "srun": Kind("srun --label bash -c \"$(declare -f count); count\"\n", options=("-n2",),
                 out=by_task(["0: ", "1: "])),
    "srun, side by side": Kind(
        "for t in a b; do srun -n1 --exact bash -c \"$(declare -f count); count $t\" & done; wait\n",
        options=("-n2",), out=by_task(["a", "b"])),
    "parallel": Kind("export -f count\nparallel --will-cite -k -j2 count ::: a b c\n", needs=("parallel",),
                     out=lambda lines: lines == numbered("a") + numbered("b") + numbered("c")),
    "parallel, srun": Kind(
        "export -f count; export SHELL=/bin/bash\n"
        "parallel --will-cite -k -j3 srun -n1 --exclusive --quiet bash -c \"'count {}'\" ::: a b c\n",
        options=("-n2",), needs=("parallel",),
        out=lambda lines: lines == numbered("a") + numbered("b") + numbered("c")),
    "joblib": Kind(f"exec {sys.executable} loky.py\n", code=7, files={"buffered": numbered()}),
    "array": Kind("count $SLURM_ARRAY_TASK_ID-\n", options=("--array=3",),
                  out=lambda lines: lines == numbered("3-")),
    "afterok": Kind("count\n", then=True),
    "requeues itself": Kind(ITSELF, out=lambda lines: lines == [], files={"own": numbered()}),
    "mpi4py": Kind(f"export OMPI_MCA_oob_tcp_if_include=lo\nsrun --mpi=pmix {PYTHON} ranks.py\n", options=("-n4",),
                   needs=("mpirun.openmpi", "mpi4py"), out=lambda lines: ring(lines, 4)),
    "Open MPI": Kind(MPI, options=("-n2",), out=ring, needs=("mpicc.openmpi", "mpirun.openmpi")),
    "MPICH": Kind(MPI, options=("-n2",), out=ring, needs=("mpicc.mpich", "mpiexec.hydra")),
}  # fmt: skip


@pytest.mark.parametrize("life", range(LIVES))
@pytest.mark.parametrize("name", KINDS)
def test_preempted_at_random(slurm: Cluster, ordinary_account: User, name: str, life: int) -> None:
    kind, chance = KINDS[name], random.Random(f"{SEED} {name} {life}")
    if lacking := [what for what in kind.needs if not has(what)]:
        pytest.skip(f"missing here: {' '.join(lacking)}")
    began = time.monotonic()
    with job(slurm, ordinary_account) as made:
        submit(made, kind, chance.choice(["low", "abrupt", "cancel"]))
        after = slurm.submit(ordinary_account, "sbatch", *follower(made)) if kind.then else None
        story = [disturb(made, chance) for _ in range(EVENTS)]
        state = wait_for(made, *OVER, seconds=240)
        print(name, life, state["Restarts"], f"{time.monotonic() - began:.0f} s", story)
        where = f"{name}: {story}\n{made.told()}"
        assert state["ExitCode"] == f"{kind.code}:0", where
        lines = [line for line in made.out.splitlines() if not line.startswith(("slurmstepd", "srun: ", "torpor: "))]
        assert kind.out(lines), where
        if after is not None:
            assert slurm.wait_state(after, *OVER)["JobState"] == "COMPLETED", where
            assert (made.folder / "then").read_text() == made.out, where
        for file, content in kind.files.items():
            assert (made.folder / file).read_text().splitlines() == content, (file, where)


def submit(made: Submitted, kind: Kind, partition: str) -> None:
    run = shlex.join([str(BIN / "torpor"), "run", "--store", str(made.store), "--"])
    if not kind.wrap:
        made.store.mkdir()
        made.user.own(made.store)
    path = made.folder / "job.sh"
    head = "" if kind.wrap else "#SBATCH --open-mode=append --requeue\n"
    path.write_text(f'#!/bin/bash\n{head}cd {made.folder}\nRUN="{run}"\n{COUNT}{kind.body}')
    for file, text in PROGRAMS.items():
        (made.folder / file).write_text(text)
    if kind.needs and kind.needs[0].startswith("mpicc"):
        subprocess.run([kind.needs[0], "-O2", RING, "-o", made.folder / "ring"], check=True)
    below: list[str | Path] = [BIN / "torpor", "sbatch", "--store", made.store, "--"]
    ours: list[str | Path] = below if kind.wrap else ["sbatch"]
    options: list[str | Path] = ["-p", partition, "-o", made.folder / "out", *kind.options]
    made.number = made.cluster.submit(made.user, *ours, *options, path)


def follower(made: Submitted) -> list[str | Path]:
    """The arguments of sbatch for a job that begins when this one has ended with 0, and copies its output."""
    return ["-d", f"afterok:{made.number}", "-o", "/dev/null", "--wrap", f"cp {made.folder}/out {made.folder}/then"]
