"""Real programs, frozen and woken at random moments, compute what they compute undisturbed.

Every program of real/ works in cycles that each end in one line, the same every time (real/cycles.py). An undisturbed
run says which line. `make soak` installs what is needed (.ci/soak-packages) and takes twenty moments of each.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.building import PYTHON
from tests.conformance.harness import (
    Actor,
    EngineError,
    Failed,
    Job,
    Stage,
    Subject,
    belonging,
    restored,
    wait_until,
)
from tests.conformance.test_refusals import NOT_PERMITTED, REFUSED

HERE = Path(__file__).parent
REAL = HERE / "real"
SOAK_PYTHON = HERE.parents[1] / "build" / "programs" / "bin" / "python"
"""Has what no other test needs: .ci/needs soak makes it."""
CYCLE = 120.0
"""Seconds that a cycle may take on a machine that has other things to do."""
LONGEST_PAUSE = 0.5
"""Seconds between two moments, at most."""


def _python(source: Path, _: Path) -> list[str]:
    return [str(SOAK_PYTHON if SOAK_PYTHON.exists() else PYTHON), str(source)]


def _go(source: Path, folder: Path) -> list[str]:
    program = folder / source.stem
    if not program.exists():
        caches = {"GOCACHE": str(folder / "go-cache"), "GOPATH": str(folder / "go"), "CGO_ENABLED": "0"}
        subprocess.run(["go", "build", "-o", program, source], check=True, env={**os.environ, **caches})
        program.chmod(0o755)
    return [str(program)]


def _java(source: Path, folder: Path) -> list[str]:
    if not (folder / source.with_suffix(".class").name).exists():
        subprocess.run(["javac", "-d", folder, source], check=True)
    return ["java", "-Xmx128m", "-XX:-UsePerfData", "-cp", str(folder), source.stem]


def _mpi(source: Path, folder: Path) -> list[str]:
    program = folder / source.stem
    if not program.exists():
        subprocess.run(["mpicc", "-O2", "-Wall", "-Wextra", "-Werror", source, "-o", program], check=True)
        program.chmod(0o755)
    return [
        "mpirun",
        "--mca",
        "plm",
        "isolated",
        "--mca",
        "oob_tcp_if_include",
        "lo",
        "--bind-to",
        "none",
        "--oversubscribe",
        "-n",
        "4",
        str(program),
    ]


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    ".py": _python,
    ".sh": lambda source, _: ["bash", str(source)],
    ".js": lambda source, _: ["node", str(source)],
    ".R": lambda source, _: ["Rscript", str(source)],
    ".m": lambda source, _: ["octave-cli", "--norc", str(source)],
    ".go": _go,
    ".java": _java,
    ".c": _mpi,
}


@dataclass(frozen=True)
class Program:
    """A program of real/, and what it needs of the machine."""

    file: str
    arguments: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join((self.file, *self.arguments))

    def argv(self, folder: Path) -> list[str]:
        """How it is run; skips the test where the machine cannot."""
        for name in self.commands:
            if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
                pytest.skip(f"needs {name}: `make soak` installs it (.ci/soak-packages)")
        source = REAL / self.file
        argv = [*COMMANDS[source.suffix](source, folder), *self.arguments]
        for name in self.modules:
            if subprocess.run([argv[0], "-c", f"import {name}"], check=False, capture_output=True).returncode:
                pytest.skip(f"needs the Python module {name}: `make soak` installs it")
        return argv


PROGRAMS = [
    Program("numpy_blas.py"),
    Program("worker_pool.py"),
    Program("tcp_streams.py"),
    Program("tcp_streams.py", ("uvloop",), modules=("uvloop",)),
    Program("sqlite_wal.py"),
    Program("pipelines.sh"),
    Program("gnu_parallel.sh", commands=("parallel",)),
    Program("redis_clients.py", commands=("redis-server",)),
    Program("postgres_clients.py", commands=("pg_ctlcluster",)),
    Program("ring.c", commands=("mpirun", "mpicc")),
    Program("server.js", commands=("node",)),
    Program("Threads.java", commands=("java", "javac")),
    Program("routines.go", commands=("go",)),
    Program("forks.R", commands=("Rscript",)),
    Program("simulation.m", commands=("octave-cli",)),
    Program("sklearn_joblib.py", modules=("sklearn",)),
    Program("torch_training.py", modules=("torch",)),
]

every_program = pytest.mark.parametrize("program", PROGRAMS, ids=str)


def lines(subject: Subject) -> list[str]:
    """What its cycles said so far."""
    path = subject.directory / "lines"
    return path.read_text().splitlines() if path.exists() else []


def wait_lines(subject: Subject, count: int) -> None:
    """Wait until `count` cycles are over."""
    try:
        wait_until(lambda: subject.still_there() and len(lines(subject)) >= count, f"{count} cycles", CYCLE)
    except Failed as failure:
        raise Failed(f"{failure}\n{subject.picture()}\n{subject.output()}") from None


def enough(subject: Subject, job: Job | None = None) -> set[str]:
    """Let it finish its cycle and end; every different line it has said."""
    (subject.directory / "enough").touch()
    status = job.status(CYCLE) if job else subject.exited(CYCLE)
    assert status == 0, f"ended with {status}:\n{subject.output()}"
    return set(lines(subject))


def undisturbed(stage: Stage, actor: Actor, argv: list[str]) -> str:
    """The line of one cycle."""
    with stage.play(argv, actor) as subject:
        wait_lines(subject, 2)
        said = enough(subject)
    assert len(said) == 1, f"the program does not say the same in every cycle: {said}"
    return said.pop()


def disturbed(stage: Stage, actor: Actor, argv: list[str], hows: list[str], chance: random.Random) -> set[str]:
    """Take a snapshot at as many moments as there are `hows`, after which it runs on or is killed and woken."""
    job = None
    with stage.play(argv, actor) as subject:
        wait_lines(subject, 1)
        for how in hows:
            time.sleep(chance.uniform(0, LONGEST_PAUSE))  # the moment is to be a random one
            snapshot = stage.driver(actor).checkpoint(subject.root(), subject.directory / "store", how)
            before = len(lines(subject))
            if how == "kill":
                wait_until(lambda: not belonging(subject.directory), "the end of all that was killed")
                if job:
                    job.talk.close()
                job = restored(stage, subject, snapshot)
            wait_lines(subject, before + chance.randint(1, 2))
        return enough(subject, job)


@pytest.mark.parametrize(
    # Its workers take half a minute to begin, and are a pool of processes as worker_pool.py's.
    "program",
    [pytest.param(one, marks=[pytest.mark.soak] if one.file == "sklearn_joblib.py" else []) for one in PROGRAMS],
    ids=str,
)
def test_a_few_moments(stage: Stage, user: Actor, program: Program) -> None:
    """Three moments: it is woken from a snapshot, runs on from another, and is woken once more."""
    argv = program.argv(stage.programs)
    expected = undisturbed(stage, user, argv)
    assert disturbed(stage, user, argv, ["kill", "run", "kill"], random.Random(str(program))) == {expected}


@pytest.mark.soak
@every_program
def test_many_moments(stage: Stage, user: Actor, program: Program) -> None:
    """Twenty moments, others in each run."""
    argv = program.argv(stage.programs)
    expected = undisturbed(stage, user, argv)
    seed = int(os.environ.get("TORPOR_TEST_SEED", random.randrange(1 << 32)))
    print(f"TORPOR_TEST_SEED={seed}")
    chance = random.Random(seed)
    hows = [chance.choice(["kill", "run"]) for _ in range(20)]
    assert disturbed(stage, user, argv, hows, chance) == {expected}


@pytest.mark.parametrize("then", ["run", "kill"])
def test_under_gdb(stage: Stage, user: Actor, then: str) -> None:
    """A program that gdb runs is refused, with gdb's name, and goes on under it."""
    program = Program("pipelines.sh", commands=("gdb",))
    argv = ["gdb", "-nx", "-q", "-batch", "-ex", "run", "--args", *program.argv(stage.programs)]
    with stage.play(argv, user) as subject:
        wait_lines(subject, 1)
        traced = next(pid for pid in observe.descendants(subject.pid) if pid != subject.pid)
        for pid in (subject.pid, traced):
            with pytest.raises(EngineError, match=r"traced by process \d+ \(gdb\)") as caught:
                stage.driver(user).checkpoint(pid, subject.directory / "store", then)
            assert caught.value.exit_code in (REFUSED, NOT_PERMITTED), caught.value
        wait_lines(subject, len(lines(subject)) + 1)
        assert len(enough(subject)) == 1
