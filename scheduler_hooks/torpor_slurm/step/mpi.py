"""MPI programs: their ranks need a PMI server. In a real step that is slurmstepd, outside of the job's process tree.

So the step brings its own server: the launcher (mpirun) of the MPI library that the program is linked with. It runs as
the only child of the stand-in srun, and starts the ranks. Each rank then becomes a task of the step (rank.py).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torpor
from torpor.errors import Reason, Refused
from torpor_slurm.step.job_files import ask_once
from torpor_slurm.step.options import Step
from torpor_slurm.step.tasks import Binding, Task

PLAN = "TORPOR_STEP_PLAN"
"""The environment variable by which srun passes to the ranks what they become (rank.py); JSON."""


@dataclass(frozen=True)
class Launcher:
    """The launcher of an MPI implementation."""

    mpi: str
    programs: tuple[str, ...]
    """The names it may have, the least ambiguous first."""
    version: str
    """A regular expression that its --version output matches."""
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
    """Choose the launcher by the MPI library that the programs are linked with; return its part of the command line.

    An interpreter is not linked with what its script loads. For it, --mpi or Slurm's MpiDefault says whether to use
    MPI.

    Returns:
        None if the step needs no MPI launcher.

    Raises:
        Refused: the programs need a launcher, and this node has none that fits.
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
    raise _refused(f"srun --mpi={wanted or _default(environment)}", why, "load the program's MPI module first")


class Ranks:
    """The tasks of a step, to be started as MPI ranks."""

    def __init__(self, launcher: Sequence[str], tasks: Sequence[Task], variables: Mapping[str, str], bound: Binding):
        """Plan them.

        Args:
            launcher: the launcher's command line, up to the program.
            tasks: the tasks, with stdout and stderr; the launcher decides which rank gets its stdin, as with MPI.
            variables: the environment of all tasks.
            bound: their processors.
        """
        self._launcher = launcher
        self._environment = {name: value for name, value in variables.items() if not name.startswith("SLURM")}
        """Without Slurm's variables: with them, a launcher would start its ranks by srun."""
        self.pipes = [fd for task in tasks for fd in task.pipes]
        """Kept open until the launcher has ended: the ranks open them by this process's /proc/PID/fd."""
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
        words = [*self._launcher, sys.executable, *torpor.isolation(), "-m", "torpor_slurm.step.rank"]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
        environment = {**root, **self._environment, PLAN: json.dumps(self._plan)}
        return Task(0, words, [0, 1, 2]).start(environment, Binding([cpus], None, {}))


def _linked(path: str) -> tuple[Launcher, str] | None:
    """The MPI that a program is linked with, and the path of its library."""
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
    why = f"it is linked with {kind.mpi}, whose {kind.programs[-1]} must start the ranks here, but is not in PATH"
    raise _refused(program, why, f"load the {kind.mpi} module first")


def _which(name: str) -> str | None:
    """Like shutil.which(), without the modules that shutil imports."""
    folders = os.get_exec_path() if os.path.dirname(name) == "" else [""]
    paths = (os.path.join(folder, name) for folder in folders)
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def _refused(what: str, why: str, way: str) -> Refused:
    return Refused("this step cannot be a part of the snapshot", [Reason(what, why, way)])


def _default(environment: Mapping[str, str]) -> str:
    """Slurm's MpiDefault; a job asks the controller once."""

    def ask() -> str:
        found = re.search(r"^MpiDefault\s*=\s*(\S+)", output(["scontrol", "show", "config"]), re.MULTILINE)
        return found[1] if found else "none"

    return ask_once("mpi-default", environment, ask)


def output(command: Sequence[str]) -> str:
    """Run a command and return its stdout and stderr; empty if it cannot be started."""
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
