"""A Jupyter server as a batch job of a real Slurm: preempted, requeued, and its kernel as it was."""

from __future__ import annotations

import shlex
import socket

import pytest

from tests.integration.slurm_cluster import PACKAGES, cluster, missing
from tests.jupyter import TOKEN, Answer, Notebook, Server, wait_until
from tests.users import BIN, User

GRACE, KILL_WAIT = 12, 10
# As docs/jupyter.md has it.
SCRIPT = """#!/bin/bash
#SBATCH --requeue --open-mode=append --signal=B:TERM@120
exec {command}
"""


class JobServer(Server):
    """The server of a job; asked as any other."""

    def answers(self) -> bool:
        try:
            return bool(self.get("api/status"))
        except (OSError, Answer):
            return False


@pytest.mark.soak
@pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}")
def test_a_preempted_server_parks_its_kernels(ordinary_account: User) -> None:
    user = ordinary_account
    server = JobServer(user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/"
    command = [
        BIN / "jupyter", "server", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={server.root}",
    ]  # fmt: skip
    script, log = user.tmp / "job.sh", user.tmp / "out"
    script.write_text(SCRIPT.format(command=shlex.join(map(str, command))))
    environment = {
        **user.env, "TORPOR_STORE": str(server.store), "JUPYTER_RUNTIME_DIR": str(server.runtime),
        "IPYTHONDIR": str(user.tmp / "ipython"),
    }  # fmt: skip
    with cluster(grace=GRACE, kill_wait=KILL_WAIT) as slurm:
        number = slurm.submit(user, "sbatch", "-p", "low", "-o", log, script, env=environment)
        try:
            wait_until(server.answers, "the server answers", 150)
            session, kernel = server.new_session("work.ipynb")
            with Notebook(server, kernel) as notebook:
                notebook.run("x = 5")
                folder = server.store / "jupyter" / "kernels"
                wait_until(lambda: any("work.ipynb" in f.read_text() for f in folder.glob("*.json")), "it is noted")
                wait_until(lambda: "torpor-sentinel" in slurm.ask("squeue", "-h", "-s", "-o", "%j"), "a step listens")
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
            assert (told["state"], told["sessions"][0]["id"]) == ("parked", session)
            with Notebook(server, kernel) as notebook:
                asked = notebook.start("print(x)")
                server.torpor(kernel, "/resume")
                assert notebook.finish(asked) == "5\n"
            # Whatever ends the job with a signal to the batch process is a server's end like any other.
            slurm.ask("scancel", "--batch", "--signal=TERM", number)
            slurm.wait_gone(number)
            made = server.store / "jupyter" / "kernels" / f"{kernel}.json"
            assert '"snapshot": "2' in made.read_text()
        finally:
            print(log.read_text(errors="replace")[-6000:] if log.exists() else "no log")
            slurm.release()
