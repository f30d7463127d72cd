"""The tree: whose job a torpor-init stands for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from torpor import procfs
from torpor.capsule import INIT, init_arguments
from torpor.errors import NotFound
from torpor.objects import tree


def test_the_job_of_an_init_that_an_upgrade_has_replaced(tmp_path: Path) -> None:
    program = shutil.copy(INIT, tmp_path / "torpor-init")
    reader, writer = os.pipe()
    arguments = init_arguments(0, writer, ("/bin/sleep", "sleep", "1000"))
    init = subprocess.Popen(arguments, executable=program, pass_fds=[writer])
    os.close(writer)
    try:
        os.unlink(program)
        while not (found := procfs.children(init.pid, [init.pid])) or procfs.stat(found[0]).comm != b"sleep":
            assert init.poll() is None
        assert tree.job_of(init.pid) == found[0]
        os.kill(found[0], signal.SIGKILL)
        os.waitid(os.P_PID, init.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NotFound, match="has ended"):
            tree.job_of(init.pid)
    finally:
        os.close(reader)
        init.kill()
        init.wait()
