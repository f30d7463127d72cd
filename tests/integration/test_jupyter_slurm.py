"""A Jupyter server as a batch job of a real Slurm: preempted, requeued, and its kernel as it was."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.integration.slurm_cluster import PACKAGES, Cluster, cluster, missing
from tests.jupyter import TOKEN, Answer, Notebook, Server, wait_until
from tests.users import BIN, User

GRACE, KILL_WAIT = 12, 10
# As docs/jupyter.md has it.
SCRIPT = """#!/bin/bash
#SBATCH --requeue --open-mode=append --signal=B:TERM@120
exec {command}
"""


# As batchspawner has it, with req_srun = ''.
NOT_EXECUTED = """#!/bin/bash
set -euo pipefail
trap 'echo SIGTERM received' TERM
{command}
echo "ended gracefully"
"""
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}"),
]


class JobServer(Server):
    """The server of a job; asked as any other."""

    def answers(self) -> bool:
        try:
            return bool(self.get("api/status"))
        except (OSError, Answer):
            return False


@dataclass
class Work:
    """A server that answers in a job, with a kernel that is noted and a step that listens."""

    slurm: Cluster
    server: JobServer
    number: str
    session: str
    kernel: str


@contextmanager
def serving(user: User, script: str) -> Iterator[Work]:
    server = JobServer(user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/"
    command = [
        BIN / "jupyter", "server", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={server.root}",
    ]  # fmt: skip
    path, log = user.tmp / "job.sh", user.tmp / "out"
    path.write_text(script.format(command=shlex.join(map(str, command))))
    environment = {
        **user.env, "TORPOR_STORE": str(server.store), "JUPYTER_RUNTIME_DIR": str(server.runtime),
        "IPYTHONDIR": str(user.tmp / "ipython"),
    }  # fmt: skip
    with cluster(grace=GRACE, kill_wait=KILL_WAIT) as slurm:
        number = slurm.submit(user, "sbatch", "-p", "low", "-o", log, path, env=environment)
        try:
            wait_until(server.answers, "the server answers", 150)
            session, kernel = server.new_session("work.ipynb")
            with Notebook(server, kernel) as notebook:
                notebook.run("x = 5")
            folder = server.store / "jupyter" / "kernels"
            wait_until(lambda: any("work.ipynb" in f.read_text() for f in folder.glob("*.json")), "it is noted")
            wait_until(lambda: "torpor-sentinel" in slurm.ask("squeue", "-h", "-s", "-o", "%j"), "a step listens")
            yield Work(slurm, server, number, session, kernel)
        finally:
            print(log.read_text(errors="replace")[-6000:] if log.exists() else "no log")
            slurm.release()


def is_parked(work: Work) -> bool:
    """Whether its kernel is, by what the server has left."""
    return '"snapshot": "2' in (work.server.store / "jupyter" / "kernels" / f"{work.kernel}.json").read_text()


def test_a_preempted_server_parks_its_kernels(ordinary_account: User) -> None:
    user = ordinary_account
    with serving(user, SCRIPT) as work:
        slurm, server, number, kernel = work.slurm, work.server, work.number, work.kernel
        before = slurm.job(number)["NodeList"]
        taker = slurm.preempt(user)
        wait_until(lambda: server.kernel(kernel)["state"] == "parked", "it is parked", GRACE)
        assert slurm.job(number)["JobState"] == "RUNNING"  # the server goes on until Slurm ends it
        made = server.get(f"api/torpor/kernels/{kernel}/checkpoints")
        assert [(c["reason"], c["automatic"]) for c in made] == [("preempted", True)]
        slurm.hurry(number, before)
        slurm.release(taker)
        wait_until(server.answers, "the requeued job's server answers", 150)
        assert slurm.job(number)["Restarts"] == "1"
        told = server.kernel(kernel)
        assert (told["state"], told["sessions"][0]["id"]) == ("parked", work.session)
        with Notebook(server, kernel) as notebook:
            asked = notebook.start("print(x)")
            server.torpor(kernel, "/resume")
            assert notebook.finish(asked) == "5\n"
        # Whatever ends the job with a signal to the batch process is a server's end like any other.
        slurm.ask("scancel", "--batch", "--signal=TERM", number)
        slurm.wait_gone(number)
        assert is_parked(work)


def test_a_server_that_its_script_waits_for_parks_its_kernels_when_the_job_is_cancelled(
    ordinary_account: User,
) -> None:
    with serving(ordinary_account, NOT_EXECUTED) as work:
        work.slurm.ask("scancel", work.number)
        work.slurm.wait_gone(work.number)
        assert is_parked(work)
        assert work.slurm.job(work.number)["JobState"] == "CANCELLED"
