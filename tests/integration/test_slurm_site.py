"""What an administrator may add for a site, on a real cluster: plugins of Slurm in lua and C, Prolog and Epilog."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import torpor_slurm
from tests.integration.slurm_cluster import PACKAGES, Cluster, cluster, missing
from tests.integration.slurm_jobs import Submitted, application, job, script, unharmed
from tests.users import BIN, User

ADMIN = Path(torpor_slurm.__path__[0], "admin")
HEADER = Path("/usr/include/slurm/spank.h")
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
STEPS = 300

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}"),
    pytest.mark.skipif(not HEADER.exists(), reason="Slurm's headers are missing here: install libslurm-dev"),
]


@pytest.fixture(scope="module")
def site() -> Iterator[Cluster]:
    """A cluster with everything that docs/slurm-admin.md describes."""
    folder = Path(tempfile.mkdtemp(prefix="torpor-test-slurm-site-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        subprocess.run(["gcc", *FLAGS, "-o", folder / "torpor.so", ADMIN / "torpor.c"], check=True)
        files = {path.name: path.read_text() for path in ADMIN.iterdir() if path.suffix != ".c"}
        files["plugstack.conf"] = f"optional {folder}/torpor.so command={BIN}/torpor\n"
        more = "JobSubmitPlugins=lua\nCliFilterPlugins=lua\nPlugStackConfig={dir}/plugstack.conf\n"
        more += "SlurmctldParameters=preempt_send_user_signal\n"
        more += "GresTypes=gpu\nProlog={dir}/prolog\nEpilog={dir}/epilog\n"
        with cluster(more=more, files=files) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def work(site: Cluster, ordinary_account: User) -> Iterator[Submitted]:
    with job(site, ordinary_account) as made:
        yield made


def plain(made: Submitted, *arguments: str | Path) -> Submitted:
    """Submit by plain sbatch, with nothing that a user of Torpor must know."""
    options = ["-o", made.folder / "out", *arguments]
    made.number = made.cluster.submit(made.user, "sbatch", *options, env={"TORPOR_STORE": str(made.store)})
    return made


def refused(made: Submitted, *arguments: str | Path) -> str:
    """What sbatch says of a job that it does not take."""
    told = made.user.run(["sbatch", "-o", "/dev/null", *map(str, arguments)], env=made.cluster.env)
    assert told.returncode != 0, told.stdout
    return told.stderr


# --------------------------------------------------------------------------------------- lua


def test_a_script_with_torpor_run_needs_no_options(work: Submitted) -> None:
    plain(work, "--signal=B:USR1@60", script(work, application(work, STEPS)))
    work.wait_steps(5)
    work.preempt()
    unharmed(work, STEPS)  # without --open-mode=append the first part of its output would be gone
    assert "received SIGUSR1: preempted" in work.log  # preempt_send_user_signal: at the start of the grace time


def test_other_jobs_are_left_alone(work: Submitted) -> None:
    other = work.folder / "other.sh"
    other.write_text("#!/bin/sh\n# torpor run -- ./app\necho torpor; scontrol show job -o $SLURM_JOB_ID\n")
    plain(work, "--no-requeue", "-N2", other)
    assert work.wait_code() == "0:0"
    assert "Requeue=0" in work.out
    assert "NumNodes=2" in work.out


def test_what_cannot_be_kept_is_refused_at_submission(work: Submitted) -> None:
    path = script(work, "true")
    told = refused(work, "-N2", "--no-requeue", path)
    assert "2 nodes: a snapshot holds the processes of one node" in told
    assert "--no-requeue: a preempted job can only go on if it is requeued" in told
    assert "GPUs (gres:gpu:1)" in refused(work, "--gres=gpu:1", path)


# --------------------------------------------------------------------------------------- SPANK


def test_sbatch_has_an_option(work: Submitted) -> None:
    path = work.folder / "job.sh"
    path.write_text(
        f"#!/bin/sh\n#SBATCH --torpor=1s --comment=mine\nexport OPENBLAS_NUM_THREADS=1\n{application(work, STEPS)}\n"
    )
    plain(work, "--torpor=2s", "--signal=USR1@60", path)
    assert work.cluster.job(work.number)["Comment"] == "mine"
    work.wait_steps(5)
    work.preempt()
    unharmed(work, STEPS)
    assert "the sentinel step was ended: preempted" in work.log  # --signal without B: is for steps


def test_the_option_refuses_what_cannot_be_kept(work: Submitted) -> None:
    told = refused(work, "--torpor", "-N2", "--wrap", "hostname")
    assert "2 nodes: a snapshot holds the processes of one node" in told
    assert "'soon' is not a time span" in refused(work, "--torpor=soon", "--wrap", "hostname")


def test_the_option_never_submits_a_job_that_is_not_kept(work: Submitted) -> None:
    conf = work.cluster.directory / "plugstack.conf"
    before = conf.read_text()
    conf.write_text(before.replace(f"{BIN}/torpor", "/nowhere/torpor"))
    try:
        assert "nothing was submitted: /nowhere/torpor cannot be run" in refused(work, "--torpor", "--wrap", "hostname")
    finally:
        conf.write_text(before)


# --------------------------------------------------------------------------------------- Prolog and Epilog


def hooks_for(made: Submitted) -> None:
    """Tell the hooks where the users of this site keep their stores."""
    text = f"STORES='/nowhere/%u {made.store}'\nTORPOR={BIN}/torpor\nKEEP=1d\n"
    (made.cluster.directory / "hooks.conf").write_text(text)


def test_the_prolog_reads_the_images_of_a_job_that_comes_back(work: Submitted) -> None:
    hooks_for(work)
    path = script(work, application(work, STEPS))
    waits = f'[ "$SLURM_RESTART_COUNT" ] && until [ -e {work.folder}/go ]; do sleep 0.05; done\nexec'
    path.write_text(path.read_text().replace("exec", waits))
    plain(work, path)
    work.wait_steps(5)
    before = work.node
    other = work.cluster.preempt(work.user, before)
    work.cluster.wait_state(work.number, "PENDING")
    last = work.directory / "packs/zz"  # after all packs: whoever opens it has read them
    os.mkfifo(last)
    work.user.own(last)
    work.hurry(before)
    work.cluster.wait_for(lambda: owner_of_reader(last), "the prolog to read the images")
    assert owner_of_reader(last) == work.user.uid
    os.close(os.open(last, os.O_WRONLY))
    last.unlink()
    (work.folder / "go").touch()
    work.wait_log("resumed")
    work.cluster.release(other)
    unharmed(work, STEPS)


def owner_of_reader(path: Path) -> int | None:
    """Who runs the `cat` that has this file among its arguments."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[0] == b"cat" and os.fsencode(path) in words:
                return process.stat().st_uid
    return None


def test_the_epilog_removes_what_is_over(work: Submitted) -> None:
    hooks_for(work)
    path = script(work, "true")
    plain(work, path)
    assert work.wait_code() == "0:0"
    finished, work.number = work.directory, ""
    places = {name: work.store / "slurm" / name for name in ("torpor-99999", "elsewhere-99998", "torpor-99997")}
    for place in places.values():
        shutil.copytree(finished, place)
        (place / "finished").unlink()
    for place in (finished, places["torpor-99999"], places["elsewhere-99998"]):
        for file in place.iterdir():
            os.utime(file, (time.time() - 2 * 86400,) * 2)
    for file in work.store.rglob("*"):
        work.user.own(file)
    plain(work, path)
    assert work.wait_code() == "0:0"
    gone = (finished, places["torpor-99999"])
    work.cluster.wait_for(lambda: not any(place.exists() for place in gone), "the epilog to clean")
    assert (work.directory / "finished").exists(), "it is young"
    assert places["torpor-99997"].exists(), "it is young"
    assert places["elsewhere-99998"].exists(), "this cluster does not know what becomes of it"
