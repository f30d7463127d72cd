"""Frameworks that submit jobs, or requeue them, below Torpor: preempted at random, they leave what they leave alone.

Each finds as `sbatch` a script that calls `torpor sbatch` (docs/slurm.md). $TORPOR_SLURM_SEED: other moments.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import PACKAGES, Cluster, missing
from tests.integration.slurm_jobs import Submitted
from tests.integration.slurm_preemptions import SOAK_PYTHON, has, shake
from tests.users import BIN

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is missing here: install {PACKAGES}"),
    pytest.mark.timeout(600),
]
SEED = int(os.environ.get("TORPOR_SLURM_SEED", "1"))
PREEMPTIONS = 6
STEPS = 100
NUMBERS = [str(number) for number in range(STEPS)]
SBATCH = """#!/bin/bash
# What a framework finds as sbatch. Without this directory PATH leads to Slurm's own.
PATH=${{PATH#*:}} exec {torpor} sbatch --store {store} -- "$@"
"""


@pytest.fixture
def framework(work: Submitted) -> Submitted:
    """A job's place, with `sbatch` in its directory bin."""
    (work.folder / "bin").mkdir()
    sbatch = work.folder / "bin" / "sbatch"
    sbatch.write_text(SBATCH.format(torpor=BIN / "torpor", store=work.store))
    sbatch.chmod(0o755)
    return work


def need(*modules: str) -> None:
    if lacking := [module for module in modules if not has(module)]:
        pytest.skip(f"missing here: {' '.join(lacking)} (make soak installs it)")


def drive(work: Submitted, *command: str | Path, times: int = PREEMPTIONS) -> str:
    """Run a framework to its end while its jobs are preempted. Return what it says."""
    path = f"{work.folder}/bin:{work.user.env['PATH']}"
    log = work.folder / "driver"
    with log.open("wb") as out:
        process = work.user.popen(
            command, env={**work.cluster.env, "PATH": path}, cwd=work.folder, stdout=out, stderr=subprocess.STDOUT
        )
        chance = random.Random(f"{SEED} {command}")
        try:
            story = shake(work.cluster, work.user, chance, lambda: process.poll() is None, times)
            work.cluster.wait_for(lambda: not work.cluster.ask("squeue", "-h", "-p", "low"), "the end of all its jobs")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    told = log.read_text()
    print(story)
    logs = "\n".join(path.read_text() for path in work.store.glob("slurm/*/log"))
    assert process.returncode == 0, f"{story}\n{told}\n{logs}"
    assert story, told
    return f"{story}\n{told}\n{logs}"


SUBMITIT = """
import sys, time
from pathlib import Path
import submitit
from submitit.helpers import Checkpointable, DelayedSubmission

class Counter(Checkpointable):
    def __call__(self, path, steps):
        done = Path(path)
        done.touch()
        for n in range(len(done.read_text().split()), steps):
            with done.open("a") as file:
                file.write(f"{n}\\n")
            time.sleep(0.1)
        return done.read_text().split()

def count(path, steps):
    lines = []
    for n in range(steps):
        lines.append(str(n))
        with open(path, "a") as file:
            file.write(f"{n}\\n")
        time.sleep(0.1)
    return lines

if __name__ == "__main__":
    sys.modules["counting"] = sys.modules["__main__"]
    executor = submitit.SlurmExecutor(folder="logs", max_num_timeout=5)
    executor.update_parameters(partition="low", time=60, ntasks_per_node=1, mem="100MB")
    jobs = [executor.submit(count, "plain", 100), executor.submit(Counter(), "itself", 100)]
    until = time.monotonic() + 60
    while not Path("itself").exists() or len(Path("itself").read_text().split()) < 20:
        assert time.monotonic() < until, jobs[1].state
        time.sleep(0.1)
    jobs[1]._interrupt()
    for job in jobs:
        assert job.result() == [str(n) for n in range(100)], job.result()
    with executor.batch():
        jobs = [executor.submit(count, f"array{n}", 100) for n in range(2)]
    for job in jobs:
        assert job.result() == [str(n) for n in range(100)], job.result()
"""


def test_submitit(framework: Submitted) -> None:
    need("submitit")
    (framework.folder / "counting.py").write_text(SUBMITIT)
    told = drive(framework, SOAK_PYTHON, "counting.py", times=2 * PREEMPTIONS)
    for name in ("plain", "itself", "array0", "array1"):
        assert (framework.folder / name).read_text().split() == NUMBERS, f"{name}\n{told}"


def submit(work: Submitted, text: str, *options: str) -> None:
    """Submit a script, and preempt it at random until it is over."""
    (work.folder / "job.sh").write_text(text)
    drive(work, "sbatch", "--wait", "-p", "low", "-o", "out", *options, "job.sh")


PAPERMILL = """
import papermill, nbformat
cell = "import time\\nfor n in range(20):\\n    print(%d + n)\\n    time.sleep(0.1)"
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell % (20 * number)) for number in range(5)])
nbformat.write(book, "in.ipynb")
papermill.execute_notebook("in.ipynb", "out.ipynb", kernel_name="python3", progress_bar=False)
"""


def test_papermill(framework: Submitted) -> None:
    need("papermill", "ipykernel")
    (framework.folder / "book.py").write_text(PAPERMILL)
    submit(framework, f"#!/bin/sh\nexec {SOAK_PYTHON} book.py\n")
    book = json.loads((framework.folder / "out.ipynb").read_text())
    texts = ["".join(output["text"]) for cell in book["cells"] for output in cell["outputs"]]
    assert "".join(texts).split() == NUMBERS


LIGHTNING = """
import os, sys, time
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.environments import SLURMEnvironment

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
    def training_step(self, batch, index):
        time.sleep(float(sys.argv[1]))
        return (self.layer(batch) ** 2).mean()
    def on_train_epoch_end(self):
        print("epoch", self.current_epoch, f"{self.layer.weight.sum().item():.17g}", flush=True)
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)

seed_everything(7, verbose=False)
torch.set_num_threads(1)
data = torch.utils.data.DataLoader(torch.randn(40, 8), batch_size=4)
there = [SLURMEnvironment(auto_requeue=True)] if "SLURM_JOB_ID" in os.environ else []
trainer = Trainer(max_epochs=15, accelerator="cpu", devices=1, logger=False, plugins=there, enable_progress_bar=False,
                  enable_model_summary=False, default_root_dir=os.getcwd(), enable_checkpointing=True)
trainer.fit(Model(), data)
print("steps", trainer.global_step, flush=True)
"""


def epochs(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("epoch ", "steps "))]


def undisturbed(work: Submitted) -> list[str]:
    (work.folder / "alone").mkdir()
    work.user.own(work.folder / "alone")
    command: list[str | Path] = [SOAK_PYTHON, work.folder / "train.py", "0"]
    return epochs(work.user.run(command, cwd=work.folder / "alone", check=True).stdout)


def test_lightning(framework: Submitted) -> None:
    need("lightning")
    (framework.folder / "train.py").write_text(LIGHTNING)
    submit(framework, f"#!/bin/sh\nsrun {SOAK_PYTHON} train.py 0.1\n", "-n1")
    assert epochs(framework.out) == undisturbed(framework), framework.out


def test_lightning_requeues_itself(slurm: Cluster, framework: Submitted) -> None:
    """SIGUSR1, as `#SBATCH --signal=SIGUSR1@90` sends it: Lightning saves its own checkpoint and requeues the job."""
    need("lightning")
    (framework.folder / "train.py").write_text(LIGHTNING)
    sent: list[str] = []

    def send(process_over: Callable[[], bool]) -> bool:
        if not sent and framework.out.count("epoch") >= 3:
            number = slurm.ask("squeue", "-h", "-p", "low", "-o", "%i")
            sent.append(slurm.ask("scancel", "--signal=USR1", number))
        return process_over()

    (framework.folder / "job.sh").write_text(f"#!/bin/sh\nsrun {SOAK_PYTHON} train.py 0.1\n")
    options = ["--wait", "-p", "low", "-o", "out", "-n1", "job.sh"]
    process = framework.user.popen(
        [framework.folder / "bin/sbatch", *options],
        env={**slurm.env, "PATH": f"{framework.folder}/bin:{framework.user.env['PATH']}"},
        cwd=framework.folder,
    )
    shake(slurm, framework.user, random.Random(SEED), lambda: send(lambda: process.poll() is None), 0)
    where = framework.out + "".join(path.read_text() for path in framework.store.glob("slurm/*/log"))
    assert process.returncode == 0, where
    assert "requeued by itself" in where, where
    assert "Restoring states from the checkpoint path" in framework.out, where
    said = epochs(framework.out)
    assert [line.split()[1] for line in said[:-1]] == [str(epoch) for epoch in range(15)], where


SNAKEFILE = """
rule all:
    input: expand("counted{{n}}", n=range(2)), "sum"
rule count:
    output: "counted{{n}}"
    shell: "n=0; while [ $n -lt {steps} ]; do echo $n; n=$((n+1)); sleep 0.05; done >{{output}}"
rule sum:
    input: expand("counted{{n}}", n=range(2))
    output: "sum"
    shell: "cat {{input}} >{{output}}"
"""


@pytest.mark.parametrize("way", ["its jobs", "within a job"])
def test_snakemake(framework: Submitted, way: str) -> None:
    need("snakemake", "snakemake_executor_plugin_slurm")
    (framework.folder / "Snakefile").write_text(SNAKEFILE.format(steps=STEPS))
    snakemake: list[str | Path] = [SOAK_PYTHON, "-m", "snakemake", "--nocolor"]
    if way == "its jobs":
        slurm = ["--executor", "slurm", "--jobs", "2", "--slurm-status-command", "squeue"]
        slurm += ["--default-resources", "slurm_partition=low", "runtime=60", "mem_mb=100"]
        told = drive(framework, *snakemake, *slurm, "--latency-wait", "10")
    else:
        words = " ".join(map(str, snakemake))
        submit(framework, f"#!/bin/sh\nexec {words} --cores 2\n")
        told = framework.out
    for number in range(2):
        assert (framework.folder / f"counted{number}").read_text().split() == NUMBERS, told
    assert (framework.folder / "sum").read_text().split() == NUMBERS + NUMBERS, told


NEXTFLOW = """#!/bin/bash
#SBATCH -J nf-count
#SBATCH -o {folder}/.command.log
#SBATCH --no-requeue
#SBATCH --signal B:USR2@30
#SBATCH -p low
cd {folder}
at_end() {{
    code=${{1:-$?}}; trap - EXIT; wait $tees 2>/dev/null
    echo -n $code >.exitcode; rm -f fifo.out fifo.err; exit $code
}}
at_signal() {{ kill -TERM $task 2>/dev/null; wait $task; at_end 143; }}
trap at_end EXIT
trap at_signal TERM INT USR2
echo begin >>.command.begin
mkfifo fifo.out fifo.err
tee .command.out <fifo.out & tees=$!
tee .command.err <fifo.err >&2 & tees="$tees $!"
( exec bash -ue .command.sh ) >fifo.out 2>fifo.err & task=$!
wait $task
"""


def test_a_script_like_nextflows(framework: Submitted) -> None:
    """What Nextflow's .command.run does: --no-requeue, traps, its task in the background, tees behind named pipes, and
    its exit code in a file."""
    (framework.folder / ".command.run").write_text(NEXTFLOW.format(folder=framework.folder))
    (framework.folder / ".command.sh").write_text(
        f"n=0; while [ $n -lt {STEPS} ]; do echo $n; echo $n >&2; n=$((n+1)); sleep 0.05; done\n"
    )
    told = drive(framework, "sbatch", "--wait", ".command.run")
    assert (framework.folder / ".exitcode").read_text() == "0", told
    assert (framework.folder / ".command.begin").read_text().split() == ["begin"], told
    for name in (".command.out", ".command.err"):
        assert (framework.folder / name).read_text().split() == NUMBERS, told
