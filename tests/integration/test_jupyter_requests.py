"""What jupyter_server itself may ask of a kernel, in every state that Torpor knows: no dead end, no state that stays.

An operation is held where the engine tells its progress: a kernel that is being parked stands frozen then, and one that
is being woken is half built.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.jupyter import Answer, Notebook, Server, running, wait_until
from tests.users import BIN, User

TABLE = """
                      running  saving   parking  parked   waking   going-back  forking  lost
restart               new      new      new      new      new      new         new      new
restart-and-run       new      new      new      new      new      new         new      new
process-killed        new      new      parked   -        -        -           new      -
interrupt             same     same     same     given-up same     same        same     same
rename                same     same     same     same     same     same        same     same
second-session        same     same     same     same     same     same        same     same
cull                  parked   same     same     same     same     same        same     same
shutdown              ended    ended    ended    ended    ended    ended       ended    ended
delete-session        ended    ended    ended    ended    ended    ended       ended    ended
other-kernel          ended    ended    ended    ended    ended    ended       ended    ended
"""
"""For each request and state what becomes of the kernel:

new     a new process; nothing of the old one is there, and cells that it has not run are aborted
same    the operation ends as it would have, and the state is what it would have been
parked  it is parked, and goes on when it is woken; a process that is killed while it is parked was saved by then
given-up  the same, and cells that have waited are aborted
ended   neither Jupyter nor Torpor have it any more; its checkpoints stay, and it can come back from one
-       there is no process

`lost` is a kernel parked in a checkpoint that is gone: a wake is refused, and it can go back to another one. What a
stop of the server makes of each state is a test of its own.
"""
STATES, *ROWS = (line.split() for line in TABLE.strip().splitlines())
CELLS = [
    pytest.param(row[0], state, outcome, id=f"{row[0]}-{state}")
    for row in ROWS
    for state, outcome in zip(STATES, row[1:], strict=True)
    if outcome != "-"
]
HELD = {
    "saving": "checkpoint",
    "parking": "checkpoint",
    "waking": "restore",
    "going-back": "restore",
    "forking": "restore",
}

CONFIG = """
import time
from datetime import datetime, timezone
from pathlib import Path
import torpor
from jupyter_server.services.kernels.kernelmanager import MappingKernelManager

folder = Path({folder!r})

def held(name):
    act = getattr(torpor, name)
    def wait(*arguments, progress, **options):
        def told(done, total):
            progress(done, total)
            if (folder / name).exists():
                (folder / "reached").touch()
            while (folder / name).exists():
                progress(done, total)
                time.sleep(0.005)
        return act(*arguments, progress=told, **options)
    setattr(torpor, name, wait)

held("checkpoint")
held("restore")

async def cull_kernels(self):
    for asked in folder.glob("cull-*"):
        kernel_id = asked.name.removeprefix("cull-")
        self.get_kernel(kernel_id).last_activity = datetime(2020, 1, 1, tzinfo=timezone.utc)
        await self.cull_kernel_if_idle(kernel_id)
        asked.unlink()

MappingKernelManager.cull_kernels = cull_kernels
c.MappingKernelManager.cull_idle_timeout = 3600
c.MappingKernelManager.cull_interval = 1
c.MappingKernelManager.cull_connected = True
c.KernelRestarter.time_to_dead = 0.1
c.KernelRestarter.random_ports_until_alive = False
"""


class Stage:
    """A server in which operations can be held."""

    def __init__(self, account: User) -> None:
        self.user = account
        self.folder = account.tmp / "hold"
        self.folder.mkdir()
        account.own(self.folder)
        self.config = account.tmp / "config.py"
        self.config.write_text(CONFIG.format(folder=str(self.folder)))
        self._install()
        self.server = Server(account, f"--config={self.config}")
        self.pool = ThreadPoolExecutor(8)
        self.numbers = count()

    def _install(self) -> None:
        program = self.user.tmp / "small_kernel.py"
        program.write_text((Path(__file__).parent / "small_kernel.py").read_text())
        spec = self.user.home / ".local" / "share" / "jupyter" / "kernels" / "small" / "kernel.json"
        spec.parent.mkdir(parents=True)
        argv = [str(BIN / "python"), str(program), "{connection_file}"]
        spec.write_text(json.dumps({"argv": argv, "display_name": "small", "language": "python"}))
        for path in (program, self.user.home / ".local", *(self.user.home / ".local").rglob("*")):
            self.user.own(path)

    def hold(self, what: str) -> None:
        (self.folder / "reached").unlink(missing_ok=True)
        (self.folder / what).touch()

    def let_go(self) -> None:
        for name in ("checkpoint", "restore"):
            (self.folder / name).unlink(missing_ok=True)

    def until_held(self, doing: Future[Any]) -> None:
        def reached() -> bool:
            if doing.done():
                doing.result()
            return (self.folder / "reached").exists()

        wait_until(reached, "the operation is in its middle")


@pytest.fixture(scope="module")
def stage(file_account: User) -> Iterator[Stage]:
    stage = Stage(file_account)
    with running(stage.server):
        yield stage
        stage.let_go()
    stage.pool.shutdown()


class Case:
    """A kernel in a state: 2 is in its variable x, and 1 in its first checkpoint."""

    def __init__(self, stage: Stage, state: str) -> None:
        self.stage, self.server, self.state = stage, stage.server, state
        # Only a kernel of IPython can be forked.
        spec = "python3" if state == "forking" else "small"
        self.session, self.kernel = self.server.new_session(f"{state}-{next(stage.numbers)}.ipynb", spec)
        self.page = Notebook(self.server, self.kernel)
        self.page.run("x = 1")
        self.first = self.server.torpor(self.kernel, "/checkpoints")["id"]
        self.page.run("x = 2")
        self.pid = self.server.kernel(self.kernel)["pid"]
        self.doing: Future[Any] | None = None
        self.waiting = ""
        self.fork = ""
        self._enter()

    def _enter(self) -> None:
        if self.state in ("parked", "lost", "waking"):
            snapshot = self.server.torpor(self.kernel, "/park")["snapshot"]
            if self.state == "lost":
                command = [BIN / "torpor", "rm", "--force", f"--store={self.server.store}", snapshot]
                self.server.user.run(command, check=True)
        paths = {
            "saving": "/checkpoints",
            "parking": "/park",
            "waking": "/resume",
            "going-back": f"/checkpoints/{self.first}/restore",
            "forking": f"/checkpoints/{self.first}/fork",
        }
        if path := paths.get(self.state):
            self.stage.hold(HELD[self.state])
            self.doing = self.stage.pool.submit(self.server.torpor, self.kernel, path)
            self.stage.until_held(self.doing)
        if self.state not in ("running", "forking"):
            self.waiting = self.page.start("ran = True; print(x)")

    def settle(self) -> Any:
        """Let the operation end; what it answered."""
        self.stage.let_go()
        if self.doing:
            try:
                return self.doing.result()
            except Answer as error:
                return error
            finally:
                self.doing = None
        return None

    def ask(self, request: str) -> None:
        server, kernel = self.server, self.kernel
        match request:
            case "restart":
                server.post(f"api/kernels/{kernel}/restart")
            case "restart-and-run":
                server.post(f"api/kernels/{kernel}/restart")
                self.is_answered()
                self.connect_anew()
                assert self.page.run("x = 7; print(x)") == "7\n"
                self.page.run("del x")
            case "process-killed":
                os.kill(self.pid, 9)
            case "interrupt":
                server.post(f"api/kernels/{kernel}/interrupt")
            case "rename":
                server.ask("PATCH", f"api/sessions/{self.session}", {"path": f"{self.state}-renamed.ipynb"})
            case "second-session":
                console = {"path": f"{self.state}-console", "name": "", "type": "console", "kernel": {"id": kernel}}
                server.post("api/sessions", **console)
            case "cull":
                asked = self.stage.folder / f"cull-{kernel}"
                asked.touch()
                wait_until(lambda: not asked.exists(), "the culler has been there")
            case "shutdown":
                server.ask("DELETE", f"api/kernels/{kernel}")
            case "delete-session":
                server.ask("DELETE", f"api/sessions/{self.session}")
            case "other-kernel":
                server.ask("PATCH", f"api/sessions/{self.session}", {"kernel": {"name": "small"}})

    def connect_anew(self) -> None:
        """As JupyterLab does after a restart; nothing waits for an answer any more."""
        self.waiting = ""
        self.page.close()
        self.page = Notebook(self.server, self.kernel, self.page.session)

    # ---------------------------------------------------------------------------------------------- what is then

    def is_new(self) -> None:
        def known() -> Any:
            told = self.server.kernel(self.kernel)
            living = told["state"] == "living" and not told["operation"]
            return told if living and told["pid"] not in (None, self.pid) else None

        self.settle()
        told = wait_until(known, "it is a new process")
        assert told["head"] is None
        self.is_answered()
        self.connect_anew()
        assert self.page.run("print('x' in globals(), 'ran' in globals())") == "False False\n"
        wait_until(lambda: self.server.get(f"api/kernels/{self.kernel}")["execution_state"] == "idle", "it is idle")

    def is_ended(self) -> None:
        self.settle()
        wait_until(lambda: self.kernel not in {k["id"] for k in self.server.get("api/kernels")}, "it has ended")
        with pytest.raises(Answer, match="404"):
            self.server.kernel(self.kernel)
        assert not (self.server.store / "jupyter" / "kernels" / f"{self.kernel}.json").exists()
        if self.state in ("saving", "parking", "going-back"):
            assert self.server.torpor(self.kernel, f"/checkpoints/{self.first}/restore")["state"] == "living"
            with Notebook(self.server, self.kernel) as page:
                assert page.run("print(x)") == "1\n"

    def is_parked(self) -> None:
        self.settle()
        wait_until(lambda: self.server.is_parked(self.kernel), "it is parked")
        self.waiting = self.waiting or self.page.start("print(x)")
        self.server.torpor(self.kernel, "/resume")
        assert self.page.finish(self.waiting) == "2\n"

    def is_given_up(self) -> None:
        self.is_answered()
        assert self.page.about(self.waiting, "execute_reply")[0]["status"] == "aborted"
        self.waiting = ""
        self.is_parked()

    def is_same(self) -> None:
        answer = self.settle()
        assert not isinstance(answer, Answer), answer
        if self.state == "forking":
            self.fork = answer["kernel"]["id"]
            with Notebook(self.server, self.fork) as page:
                assert page.run("print(x)") == "1\n"
        if self.state == "lost":
            with pytest.raises(Answer):
                self.server.torpor(self.kernel, "/resume")
            assert self.server.is_parked(self.kernel)
            self.server.torpor(self.kernel, f"/checkpoints/{self.first}/restore")
        if self.state in ("parking", "parked"):
            self.is_parked()
        wanted = "1\n" if self.state in ("going-back", "lost") else "2\n"
        assert self.page.run("print(x)") == wanted
        self.is_answered()
        told = self.server.kernel(self.kernel)
        assert (told["state"], told["operation"]) == ("living", None)

    def is_answered(self) -> None:
        """The cell that was sent meanwhile has run, or its sender knows that it has not."""
        if self.waiting:
            self.page.until(lambda: self.page.finished(self.waiting), "the cell that waited is answered")

    def end(self) -> None:
        self.stage.let_go()
        if self.doing:
            with suppress(Exception):
                self.doing.result()
        self.page.close()
        for kernel in self.server.get("api/kernels"):
            self.server.ask("DELETE", f"api/kernels/{kernel['id']}")


@contextmanager
def case(stage: Stage, state: str) -> Iterator[Case]:
    found = Case(stage, state)
    try:
        yield found
    finally:
        try:
            found.end()
        finally:
            print(stage.server.tail())


@pytest.mark.soak
@pytest.mark.parametrize(("request_", "state", "outcome"), CELLS)
def test_every_request_in_every_state(stage: Stage, request_: str, state: str, outcome: str) -> None:
    with case(stage, state) as found:
        found.ask(request_)
        outcomes = {
            "new": found.is_new,
            "ended": found.is_ended,
            "parked": found.is_parked,
            "given-up": found.is_given_up,
            "same": found.is_same,
        }
        outcomes[outcome]()
        if request_ == "rename":
            assert {s["path"] for s in found.server.kernel(found.kernel)["sessions"]} == {f"{state}-renamed.ipynb"}
        if request_ == "second-session":
            assert len(found.server.kernel(found.kernel)["sessions"]) == 2


@pytest.mark.soak
def test_a_stop_of_the_server_in_every_state(stage: Stage) -> None:
    """What runs is parked, what is parked stays so, and what is being done is done to its end; it comes last here."""
    server = stage.server
    parked, waking, living = Case(stage, "parked"), Case(stage, "parked"), Case(stage, "running")
    held = Case(stage, "parking")
    # One is woken when nothing is saved any more, the other is held as well.
    asked = [
        stage.pool.submit(server.torpor, waking.kernel, "/resume"),
        stage.pool.submit(server.torpor, living.kernel, "/checkpoints"),
    ]
    for kernel in (waking.kernel, living.kernel):
        wait_until(lambda kernel=kernel: server.kernel(kernel)["operation"], "it has begun")  # type: ignore[misc]
    os.kill(server.pid, 15)
    wait_until(lambda: "received signal 15" in server.tail(), "the server is to end")
    stage.let_go()
    server.process.wait(60)
    assert held.doing
    for doing in (*asked, held.doing):
        with suppress(Answer, OSError):  # the server may have gone before it could answer
            doing.result()
    server.start()
    for case_ in (parked, waking, living, held):
        assert server.is_parked(case_.kernel)
        server.torpor(case_.kernel, "/resume")
        with Notebook(server, case_.kernel) as page:
            assert page.run("print(x)") == "2\n"
        case_.page.close()
    server.end_kernels()
    server.stop()
