"""LAMMPS and GROMACS with four ranks, preempted twenty times at random: the result is the same to the last digit.

$TORPOR_SLURM_PREEMPTIONS: how many; $TORPOR_SLURM_SEED: other moments.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import PACKAGES, Cluster, missing
from tests.integration.slurm_jobs import Submitted
from tests.integration.slurm_preemptions import OVER, disturb, wait_for
from tests.users import BIN

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}"),
]
PREEMPTIONS = int(os.environ.get("TORPOR_SLURM_PREEMPTIONS", "20"))
SEED = int(os.environ.get("TORPOR_SLURM_SEED", "1"))
RANKS = 4
SETTINGS = {"OMP_NUM_THREADS": "1", "OMPI_MCA_oob_tcp_if_include": "lo", "OMPI_MCA_mpi_yield_when_idle": "1"}
"""Four ranks share two processors, and there is no network but the loopback."""
LJ = """
units lj
atom_style atomic
lattice fcc 0.8442
region box block 0 8 0 8 0 8
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 1.44 87287 loop geom
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
neighbor 0.3 bin
fix 1 all nve
thermo 20
thermo_style custom step temp epair etotal press
thermo_modify format float %.17g
dump 1 all custom 100 trajectory id x y z vx vy vz
dump_modify 1 sort id format float %.17g
run 4000 every 20 "shell sleep 0.2"
shell "until [ -e finish ]; do sleep 0.1; done"
run 100
"""
TOPOLOGY = """
#include "oplsaa.ff/forcefield.itp"
#include "oplsaa.ff/spce.itp"
[ system ]
water
[ molecules ]
"""
RUN = """
integrator = md
nsteps = 6000
dt = 0.002
nstxout = 100
nstvout = 100
nstenergy = 50
cutoff-scheme = verlet
coulombtype = reaction-field
rcoulomb = 0.9
rvdw = 0.9
tcoupl = v-rescale
tc-grps = system
tau-t = 0.1
ref-t = 300
gen-vel = yes
gen-seed = 7
ld-seed = 7
constraints = none
"""


@dataclass(frozen=True)
class Program:
    """A program with ranks."""

    name: str
    command: str
    """What each rank runs."""
    prepare: Callable[[Path], object]
    """Makes its input in a folder."""
    result: Callable[[Path], dict[str, bytes]]
    """What it has computed there."""


def lammps(folder: Path) -> None:
    (folder / "in.lj").write_text(LJ)


def molecules(folder: Path) -> dict[str, bytes]:
    """LAMMPS: the trajectory, and the lines of numbers of the log (others tell times)."""
    numbers = re.findall(rb"^ +\d+(?: +[-+.e\d]+){4} *$", (folder / "log.lammps").read_bytes(), re.MULTILINE)
    assert len(numbers) > 200
    return {"trajectory": (folder / "trajectory").read_bytes(), "log": b"\n".join(numbers)}


def gromacs(folder: Path) -> None:
    def gmx(*words: str) -> None:
        subprocess.run(["gmx", "-quiet", *words], cwd=folder, check=True, capture_output=True)

    gmx("solvate", "-cs", "spc216", "-box", "2.5", "2.5", "2.5", "-o", "conf.gro")
    count = (folder / "conf.gro").read_text().count("OW")
    (folder / "topol.top").write_text(f"{TOPOLOGY}SOL {count}\n")
    (folder / "run.mdp").write_text(RUN)
    gmx("grompp", "-f", "run.mdp", "-c", "conf.gro", "-p", "topol.top", "-o", "run.tpr", "-maxwarn", "3")


def trajectories(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("md.trr", "md.edr", "md.gro")}


PROGRAMS = (
    Program("LAMMPS", "lmp -in in.lj", lammps, molecules),
    Program(
        "GROMACS", "gmx_mpi -quiet mdrun -s run.tpr -deffnm md -reprod -ntomp 1 -pin off", gromacs, trajectories
    ),
)  # fmt: skip


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_ranks_compute_the_same(slurm: Cluster, work: Submitted, program: Program) -> None:
    words = shlex.split(program.command)
    if lacking := [word for word in (words[0], "mpirun.openmpi") if shutil.which(word) is None]:
        pytest.skip(f"missing here: {' '.join(lacking)}")
    undisturbed, chance = work.folder / "undisturbed", random.Random(f"{SEED} {program.name}")
    undisturbed.mkdir()
    for folder in (work.folder, undisturbed):
        program.prepare(folder)
        work.user.own(folder)
    (undisturbed / "finish").touch()
    mpirun = ["mpirun.openmpi", "--oversubscribe", "-np", str(RANKS)]
    told = work.user.run([*mpirun, *words], env=SETTINGS, cwd=undisturbed)
    assert told.returncode == 0, told.stdout + told.stderr

    path = work.folder / "job.sh"
    settings = "".join(f"export {name}={value}\n" for name, value in SETTINGS.items())
    after = "until [ -e finish ]; do sleep 0.1; done\n"
    path.write_text(f"#!/bin/bash\nset -e\ncd {work.folder}\n{settings}srun {program.command}\n{after}")
    options: list[str | Path] = [f"-n{RANKS}", "-p", "low", "-o", work.folder / "out"]
    work.number = slurm.submit(work.user, BIN / "torpor", "sbatch", "--store", work.store, "--", *options, path)
    story = [disturb(work, chance) for _ in range(PREEMPTIONS)]
    work.finish()
    state = wait_for(work, *OVER, seconds=600)
    print(program.name, state["Restarts"], story)
    assert state["ExitCode"] == "0:0", (story, work.told())
    assert program.result(work.folder) == program.result(undisturbed), (story, work.told())
