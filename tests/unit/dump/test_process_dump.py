"""A process dump is taken in its steps, and in no other order."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from torpor.dump.process_dump import ProcessDump
from torpor.remote.code_stubs import CodeStubs
from torpor.remote.freeze import Frozen
from torpor.remote.tracer import in_own_thread
from torpor.remote.waits import Waits

STEPS: dict[str, Callable[[ProcessDump], object]] = {
    "begin": lambda dump: dump.begin(()),
    "listen": lambda dump: dump.listen(),
    "begin_snapshot": lambda dump: dump.begin_snapshot(),
    "finish_snapshot": lambda dump: dump.finish_snapshot(),
    "leave": lambda dump: dump.leave(),
}


@pytest.mark.parametrize("early", ["listen", "begin_snapshot", "finish_snapshot", "leave"])
def test_no_step_is_taken_before_its_time(early: str) -> None:
    order = list(STEPS)
    child = subprocess.Popen(["sleep", "100"])

    def work(_: object) -> None:
        with Frozen(child.pid, 5) as frozen:
            dump = ProcessDump(frozen.processes[child.pid], CodeStubs(), Waits())
            try:
                for step in order[: order.index(early) - 1]:
                    STEPS[step](dump)
                state = dump.state
                with pytest.raises(RuntimeError, match=f"{early}\\(\\) of a process dump that is {state.name}, not "):
                    STEPS[early](dump)
                for step in order[order.index(early) - 1 :]:  # nothing was done by it
                    STEPS[step](dump)
            finally:
                dump.abandon()

    try:
        in_own_thread(work)
    finally:
        child.kill()
        child.wait()
