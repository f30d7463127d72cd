"""A kernel's process, held as the child of a torpor-init."""

from __future__ import annotations

import os
import subprocess

import torpor
from torpor_jupyter.kernels.process import KernelProcess


def started(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(torpor.below_init(command, os.environ), start_new_session=True)


def test_the_kernel_is_the_child_of_the_init_that_was_started() -> None:
    init = started("sleep", "1000")
    kernel = KernelProcess.below(init)
    assert kernel.pid != init.pid and os.getsid(init.pid) == init.pid
    assert kernel.poll() is None
    kernel.kill()
    while kernel.poll() is None:
        os.sched_yield()
    assert (kernel.poll(), init.returncode) == (-9, -9)


def test_a_kernel_that_has_ended_at_once_has_an_exit_code() -> None:
    init = started("sh", "-c", "exit 3")
    os.waitid(os.P_PID, init.pid, os.WEXITED | os.WNOWAIT)
    assert KernelProcess.below(init).poll() == 3
