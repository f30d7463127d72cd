"""MPI programs: their ranks need a PMI server, and that of a real step stands outside of the job's tree.

So the tree brings its own: the ranks are started by the launcher of the MPI that the program is linked with, which runs
below srun as its only child. Each rank becomes what its task would be (rank.py).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.errors import Reason, Refused
from torpor_slurm.step.options import Step
from torpor_slurm.step.place import kept
from torpor_slurm.step.tasks import Binding, Task

PLAN = "TORPOR_STEP_PLAN"
"""The environment variable in which srun tells the ranks what they are to become (rank.py); JSON."""


@dataclass(frozen=True)
class Launcher:
    """What starts the ranks of one kind of MPI."""

    mpi: str
    programs: tuple[str, ...]
    """Its names, the surest first."""
    version: str
    """What it says of itself with --version."""
    options: tuple[str, ...]


_OPEN_MPI = Launcher(
    "Open MPI",
    ("orterun", "mpirun.openmpi", "mpirun"),
    "Open MPI|OpenRTE|PRRTE",
    ("--oversubscribe", "--bind-to", "none"),
)
_MPICH = Launcher(
    "MPICH",
    ("mpiexec.hydra", "mpiexec.mpich", "mpiexec"),
    "HYDRA|Hydra|Intel",
    ("-launcher", "fork", "-rmk", "user"),
)


def launcher(step: Step, programs: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """The command that starts ranks before their own words, by what the programs are linked with; None: plain tasks do.

    An interpreter does not show what it loads: for one, --mpi says that MPI is meant, or Slurm's MpiDefault.

    Raises:
        Refused: there is no launcher for them here.
    """
    wanted = step.values.get("mpi")
    if wanted == "none" or (step.tasks == 1 and wanted is None):
        return None
    for program in dict.fromkeys(programs):
        path = _which(program)
        if path and (found := _linked(path)):
            return _command(*found, step, program)
    if (wanted or _default(environment)) == "none":
        return None
    for one in (_OPEN_MPI, _MPICH):
        if (path := _which("mpirun")) and re.search(one.version, output([path, "--version"])):
            return [path, "-np", str(step.tasks), *one.options]
    why = "its PMI server would not be in the snapshot, and there is no mpirun of Open MPI or MPICH in PATH"
    raise _refused(f"srun --mpi={wanted or _default(environment)}", why, "load the module of its MPI before")


class Ranks:
    """The tasks of a step as the ranks of MPI."""

    def __init__(self, launcher: Sequence[str], tasks: Sequence[Task], variables: Mapping[str, str], bound: Binding):
        """Plan them.

        Args:
            launcher: what starts them.
            tasks: with their output and errors; its launcher gives them their input, as MPI has it.
            variables: of all tasks.
            bound: their processors.
        """
        self._launcher = launcher
        self._environment = {name: value for name, value in variables.items() if not name.startswith("SLURM")}
        """Without Slurm's, by which a launcher would start its ranks with srun."""
        self.pipes = [fd for task in tasks for fd in task.pipes]
        """Kept open until the launcher has ended: its ranks open them here."""
        self._plan = {
            "srun": os.getpid(),
            "commands": [task.command for task in tasks],
            "stdio": [[None, *(fd if fd > 2 else None for fd in task.stdio)] for task in tasks],
            "variables": {name: value for name, value in variables.items() if name not in self._environment},
            "holds": bound.holds,
            "masks": None if bound.masks is None else [sorted(mask) for mask in bound.masks],
            "bound": bound.variables,
            "shares": bound.shares,
        }

    def start(self, cpus: Sequence[int]) -> int:
        """Start the launcher, which holds the step's processors; its PID."""
        words = [*self._launcher, sys.executable, "-E", "-m", "torpor_slurm.step.rank"]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
        environment = {**root, **self._environment, PLAN: json.dumps(self._plan)}
        return Task(0, words, [0, 1, 2]).start(environment, Binding([cpus], None, {}))


def _linked(path: str) -> tuple[Launcher, str] | None:
    """The MPI that a program is linked with, and where its library is."""
    text = output(["ldd", path])
    libraries = dict(re.findall(r"^\s*(lib\S+) => (\S+)", text, re.MULTILINE))
    if any(name.startswith("libopen-pal.so") for name in libraries):
        return _OPEN_MPI, next((place for name, place in libraries.items() if name.startswith("libmpi.so")), "")
    for name, place in libraries.items():
        if name.startswith(("libmpich.so", "libmpi.so")):
            return _MPICH, place
        if re.match(r"libmpi_\w+\.so", name):
            why = f"it is linked with {name}, whose ranks only Slurm's own PMI server starts, outside of the job's tree"
            raise _refused(path, why, "link it with MPICH or Open MPI (Cray: cray-mpich-abi)")
    return None


def _command(kind: Launcher, library: str, step: Step, program: str) -> list[str]:
    beside = Path(library).parents[1] / "bin" if library else Path()
    for name in kind.programs:
        for path in (str(beside / name), _which(name) or ""):
            if os.access(path, os.X_OK) and re.search(kind.version, output([path, "--version"])):
                return [path, "-np", str(step.tasks), *kind.options]
    why = f"it is linked with {kind.mpi}, whose {kind.programs[-1]} starts its ranks here, and is not in PATH"
    raise _refused(program, why, f"load the module of {kind.mpi} before")


def _which(name: str) -> str | None:
    """As shutil.which(), which brings much along."""
    folders = os.get_exec_path() if os.path.dirname(name) == "" else [""]
    paths = (os.path.join(folder, name) for folder in folders)
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def _refused(what: str, why: str, way: str) -> Refused:
    return Refused("this step cannot be a part of the snapshot", [Reason(what, why, way)])


def _default(environment: Mapping[str, str]) -> str:
    """Slurm's MpiDefault, asked once in a job."""

    def ask() -> str:
        found = re.search(r"^MpiDefault\s*=\s*(\S+)", output(["scontrol", "show", "config"]), re.MULTILINE)
        return found[1] if found else "none"

    return kept("mpi-default", environment, ask)


def output(command: Sequence[str]) -> str:
    """What a short command prints, also as errors; empty if it cannot be started."""
    source, target = os.pipe2(os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, target, 1), (os.POSIX_SPAWN_DUP2, target, 2)]
    try:
        pid = os.posix_spawnp(command[0], [*command], os.environ, file_actions=actions)
    except OSError:
        os.close(source)
        return ""
    finally:
        os.close(target)
    with open(source, errors="replace") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text
