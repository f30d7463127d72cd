"""The tour of the README and the first programs of the pages run as they stand there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests import pages
from tests.conformance.harness import wait_until
from tests.users import BIN, User

PID = "4711"
"""As the pages call the process that is saved."""
JOB = "echo begun > begun; until [ -e end ]; do sleep 0.01; done"


@contextmanager
def job(user: User) -> Iterator[str]:
    """Run a job that ends when there is a file `end`."""
    process: subprocess.Popen[Any] = user.popen(
        ["sh", "-c", JOB], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until((user.tmp / "begun").exists, "the job runs")
        yield str(process.pid)
    finally:
        process.kill()
        process.wait()


def test_the_tour_of_the_readme(as_user: User) -> None:
    """Of Slurm, Jupyter and Dask their own tests tell."""
    lines = [
        line.removeprefix("$ ")
        for one in pages.snippets()
        if one.page == "README.md" and one.kind == "shell"
        for line in one.text.splitlines()
        if line.startswith("$ ") and "sbatch" not in line
    ]
    assert len(lines) == 7
    (as_user.tmp / "train.py").write_text("print('trained')\n")
    with job(as_user) as pid:
        script = "set -e\n" + "\n".join("touch end\n" * ("restore" in line) + line for line in lines)
        done = as_user.run(["sh", "-c", script.replace(PID, pid)])
    notes = done.stderr.splitlines()  # of a wake in a capsule, say
    assert (done.returncode, [line for line in notes if not line.startswith("torpor: note: ")]) == (0, [])
    assert done.stdout.splitlines()[-2:] == ["trained", "0 B freed"]


@pytest.mark.parametrize("page", ["README.md", "python.md"])
def test_the_first_program(as_user: User, page: str) -> None:
    (text,) = (one.text for one in pages.snippets() if one.page == page and one.text.startswith("import torpor\n"))
    save, wake = text.split("job = ")
    with job(as_user) as pid:
        program = f"{save.replace(PID, pid)}open('end', 'w')\njob = {wake}\nassert job.wait() == 0"
        done = as_user.run([BIN / "python", "-c", program])
    assert (done.returncode, done.stderr) == (0, "")
