"""srun below a supervisor: a step of one task becomes a part of the job; what cannot is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.slurm.supervisor_rig import Rig
from torpor.errors import Refused
from torpor_slurm import srun_wrapper


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["./app", "-n", "4"], ["./app", "-n", "4"]),
        (["-N1", "-n", "1", "-c4", "--cpu-bind=cores", "-vu", "app"], ["app"]),
        (["--exact", "--mem", "1G", "--mpi=none", "-K", "--", "app", "x"], ["app", "x"]),
        (["--export=ALL", "-o", "out", "--open-mode=append", "-D", "/tmp", "app"], ["app"]),
    ],
)
def test_a_step_of_one_task_is_a_command(words: list[str], command: list[str]) -> None:
    values, rest = srun_wrapper.GRAMMAR.read(words)
    assert rest == command
    assert list(srun_wrapper.refusals(values, {"SLURM_NTASKS": "1"})) == []


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["-n4", "app"], "4 tasks"),
        (["--nodes=2", "app"], "--nodes=2"),
        (["--gpus=1", "app"], "--gpus"),
        (["-l", "app"], "--label"),
        (["-o", "out.%q", "app"], "%q"),
        (["-e", "100%", "app"], "100%"),
        (["--multi-prog", "-w", "n1", "conf"], "--multi-prog"),
    ],
)
def test_what_a_step_cannot_have_is_refused(words: list[str], refused: str) -> None:
    reasons = list(srun_wrapper.refusals(srun_wrapper.GRAMMAR.read(words)[0], {}))
    assert refused in "".join(map(str, reasons))


def test_a_step_has_as_many_tasks_as_its_job() -> None:
    assert "3 tasks" in "".join(map(str, srun_wrapper.refusals({}, {"SLURM_NTASKS": "3"})))
    assert list(srun_wrapper.refusals({"ntasks": "1"}, {"SLURM_NTASKS": "3"})) == []


def test_a_step_becomes_its_command(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text(srun_wrapper.SCRIPT)
    srun.chmod(0o700)
    (tmp_path / "out").write_text("before\n")
    words = [srun, "-D", tmp_path, "-o", "out", "--open-mode=append", "sh", "-c", "echo $$; echo 2 >&2; exit 9"]
    process = subprocess.Popen([*map(str, words)])
    assert process.wait() == 9
    assert (tmp_path / "out").read_text() == f"before\n{process.pid}\n2\n"
    told = subprocess.run([srun, "-n2", "true"], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "only a step of one task" in told.stderr


def test_patterns_of_file_names_are_replaced(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "13", "SLURM_JOB_NAME": "a name"}
    node = os.uname().nodename.partition(".")[0]
    for pattern, name in {
        "log_%j_%t.out": "log_12_0.out",
        "%A_%a.%n.%b": "10_13.0.3",
        "%5j-%x-100%%": "00012-a name-100%",
        "%3N": node,
        r"\100%": "100%",
        "plain": "plain",
    }.items():
        assert list(srun_wrapper.refusals({"output": pattern}, {})) == []
        assert srun_wrapper.file_names({"output": pattern}, job) == {"output": name}
    inside = {**job, "TORPOR_ENV_FILE": f"{tmp_path}/env"}
    two = {"output": "%J.out", "error": "%s.err"}
    found = [srun_wrapper.file_names(two, inside) for _ in range(2)]
    assert found == [{"output": f"12.{n}.out", "error": f"{n}.err"} for n in range(2)], "no step writes over another's"


def test_a_srun_of_slurms_own_is_not_saved(rig: Rig, tmp_path: Path) -> None:
    """What it runs are Slurm's children."""
    srun = tmp_path / "srun"
    shutil.copy(shutil.which("sleep") or "", srun)
    srun_wrapper.refuse_real_srun(os.getpid())
    with subprocess.Popen([srun, "60"]) as child:
        try:
            with pytest.raises(Refused, match=f"srun, process {child.pid}"):
                srun_wrapper.refuse_real_srun(os.getpid())
            assert not rig.tried._save("kill")
            assert rig.saves == []
        finally:
            child.kill()
