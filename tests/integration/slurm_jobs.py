"""Jobs for the tests of Slurm: a folder each, a script, what they left, and what an undisturbed run leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.integration.slurm_cluster import Cluster
from tests.users import BIN, User

APP = Path(__file__).with_name("slurm_app.py")
CODE = 7
"""What the application exits with."""
OUTPUTS = ("answer", "buffered", "log", "out")


@cache
def undisturbed(steps: int) -> dict[str, bytes]:
    """What the application leaves when nothing disturbs it."""
    with TemporaryDirectory(prefix="torpor-test-reference-") as folder:
        with open(f"{folder}/out", "wb") as out:
            command: list[str | Path] = [sys.executable, APP, folder, str(steps)]
            told = subprocess.run(command, stdout=out, env={"OPENBLAS_NUM_THREADS": "1"}, check=False)
        assert told.returncode == CODE
        return {name: Path(folder, name).read_bytes() for name in OUTPUTS}


@dataclass
class Submitted:
    """A job in the cluster, and its files."""

    cluster: Cluster
    user: User
    folder: Path
    number: str = ""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def directory(self) -> Path:
        """Its directory in the store."""
        return self.store / "slurm" / f"torpor-{self.number}"

    @property
    def log(self) -> str:
        """What its supervisor did."""
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    @property
    def out(self) -> str:
        path = self.folder / "out"
        return path.read_text() if path.exists() else ""

    @property
    def node(self) -> str:
        return self.cluster.job(self.number)["NodeList"]

    @property
    def steps(self) -> int:
        """How many steps it has done."""
        return self.out.count("step ")

    def finish(self) -> None:
        """Let the application come to its end."""
        (self.folder / "finish").touch()

    def told(self) -> str:
        """What its supervisor and the application have written."""
        return self.log + self.out

    def wait_steps(self, count: int, seconds: float = 60) -> None:
        """Wait until it has done so many."""
        self.cluster.wait_for(lambda: self.steps >= count, f"step {count} of job {self.number}", seconds, self.told)

    def wait_log(self, words: str, count: int = 1, seconds: float = 60) -> None:
        """Wait until its supervisor has written so."""
        self.cluster.wait_for(
            lambda: self.log.count(words) >= count, f"{words!r} of job {self.number}", seconds, self.told
        )

    def wait_code(self, seconds: float = 90) -> str:
        """Wait for its end; ``CODE:SIGNAL`` as Slurm tells it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        return self.cluster.wait_state(self.number, *over, seconds=seconds)["ExitCode"]

    def differences(self, steps: int) -> list[str]:
        """The outputs that are not as an undisturbed run leaves them."""
        expected = undisturbed(steps)
        found = {name: (self.folder / name).read_bytes() for name in OUTPUTS}
        # What Slurm itself says there: it does so before the job is told to go, and thus between two lines of the job.
        found["out"] = re.sub(rb"^(slurmstepd|srun).*\n", b"", found["out"], flags=re.MULTILINE)
        return [name for name in OUTPUTS if found[name] != expected[name]]

    def preempt(self) -> None:
        """Take its node from it, and give that back when it has resumed on the other one."""
        before, resumed = self.node, self.log.count("resumed")
        other = self.cluster.preempt(self.user, before)
        self.hurry(before)
        self.wait_log("resumed", resumed + 1)
        assert self.node != before
        self.cluster.release(other)

    def send_away(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Have it leave, for the other node; `meanwhile` is called when it has left.

        By scontrol requeue, or, where that would signal the application as well, by a preemption.
        """
        before, left, others = self.node, self.log.count("left because of"), []
        if self.cluster.spares_the_application:
            self.cluster.ask("scontrol", "requeue", self.number)
        else:
            others.append(self.cluster.preempt(self.user, before))
        self.wait_log("left because of", left + 1)
        meanwhile()
        self.hurry(before)
        for other in others:
            self.cluster.release(other)

    def hurry(self, before: str) -> None:
        """When it waits in the queue again, let it start at once, on another node."""
        self.cluster.hurry(self.number, before, self.told)


@contextmanager
def job(cluster: Cluster, user: User) -> Iterator[Submitted]:
    """A folder for a job; what is in the queue in the end, its own or another's, is cancelled."""
    folder = user.tmp / "job"
    folder.mkdir()
    user.own(folder)
    made = Submitted(cluster, user, folder)
    try:
        yield made
    finally:
        cluster.release()


def script(made: Submitted, command: str, *options: str) -> Path:
    """A batch script that ends in `torpor run`."""
    path = made.folder / "job.sh"
    run = shlex.join([str(BIN / "torpor"), "run", "--store", str(made.store), *options])
    namespaces = "readlink /proc/self/ns/user /proc/self/ns/pid /proc/self/ns/mnt"
    path.write_text(
        f"#!/bin/sh\nexport OPENBLAS_NUM_THREADS=1\n{namespaces} >{made.folder}/namespaces-of-script\n"
        f"exec {run} -- {command}\n"
    )
    path.chmod(0o755)
    return path


def waiting(path: Path) -> Path:
    """The same script, which does not start `torpor run` before there is a file `go` beside it."""
    path.write_text(path.read_text().replace("exec", f"until [ -e {path.parent}/go ]; do sleep 0.05; done\nexec", 1))
    return path


def application(made: Submitted, steps: int, seconds: float = 0.1) -> str:
    """The command of the application, which does not end before `Submitted.finish`, but for `seconds` of 0."""
    return shlex.join([sys.executable, str(APP), str(made.folder), str(steps), str(seconds)])


def start(made: Submitted, path: Path, *arguments: str) -> Submitted:
    """Submit a script by plain sbatch, with what a user of it must know: append."""
    options = ["--open-mode=append", "-o", str(made.folder / "out"), *arguments]
    made.number = made.cluster.submit(made.user, "sbatch", *options, path)
    return made


def unharmed(made: Submitted, steps: int) -> None:
    """Let the job come to its end: it ends as it does when left alone, and leaves the same, to the byte."""
    made.finish()
    assert made.wait_code() == f"{CODE}:0", made.told()
    assert made.differences(steps) == [], made.told()
    assert json.loads((made.directory / "finished").read_text())["code"] == CODE
    assert list(made.directory.glob("packs/*")) == []


def supervisor(made: Submitted) -> int:
    """The PID of a job's supervisor: the process of `torpor run` whose child is the capsule's init."""
    wanted = os.fsencode(made.store)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if wanted in words and b"run" in words:
                return int(process.name)
    raise AssertionError("no supervisor")
