"""A real srun below a supervisor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.slurm.supervisor_rig import Rig
from torpor.errors import Refused
from torpor_slurm import srun_wrapper


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
