"""A real Jupyter kernel with numpy and pandas: frozen, killed, woken, on its old ports, with all it held.

The client stays what it was: its ZMQ sockets connect again by themselves when the kernel listens again.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests.conformance.harness import Actor, Job, Stage, Subject, reborn, restored, wait_until

PROGRAMS = Path(__file__).parents[1] / "conformance" / "kernel"
PREPARE = """
import collections, os, random, sqlite3, threading, time
import numpy as np, pandas as pd
generator = np.random.default_rng(7)
array = generator.standard_normal((500, 1000))
frame = pd.DataFrame({"key": np.arange(10_000) % 7, "value": np.arange(10_000) ** 0.5}).set_index("key")
squares = (number * number for number in range(10))
next(squares), next(squares)
Point = collections.namedtuple("Point", "x y")
point = Point(1, 2)
def make_counter():
    count = 0
    def increment():
        nonlocal count
        count += 1
        return count
    return increment
counter = make_counter(); counter(); counter()
log = open("log", "w+", buffering=1)
print("first line", file=log)
database = sqlite3.connect("data.sqlite")
database.execute("create table if not exists t (x)")
database.execute("insert into t values (1)")
database.commit()
ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.005)
        ticks += 1
thread = threading.Thread(target=tick, daemon=True, name="ticker")
thread.start()
random.seed(5)
_ = random.random()
pid, ppid = os.getpid(), os.getppid()
"""
ASK = """{
    "pid": os.getpid() == pid, "ppid": os.getppid() == ppid,
    "array": float(array.sum()), "next": float(np.random.default_rng(3).random()),
    "frame": frame.groupby("key")["value"].sum().round(6).tolist(),
    "point": tuple(point), "thread": thread.is_alive(), "threads": sorted(t.name for t in threading.enumerate()),
    "log": log.tell() > 0, "rows": database.execute("select count(*) from t").fetchone()[0] > 0,
    "linear": float(np.linalg.norm(np.linalg.inv(array[:100, :100] + 100 * np.eye(100)))),
}"""


class Kernel:
    """A kernel under test and a client of it."""

    def __init__(self, subject: Subject, client: BlockingKernelClient) -> None:
        self.subject, self.client = subject, client

    def run(self, code: str, seconds: float = 30) -> dict[str, Any]:
        """Execute code; the reply's content."""
        reply = self.client.execute(code, reply=True, timeout=seconds)
        content: dict[str, Any] = reply["content"]
        return content

    def ask(self, expression: str) -> Any:
        """The value of an expression, which JSON can carry."""
        code = f"import json as _json; _answer = _json.dumps({expression})"
        reply = self.client.execute(code, user_expressions={"answer": "_answer"}, reply=True, timeout=30)
        assert reply["content"]["status"] == "ok", reply["content"]
        told = reply["content"]["user_expressions"]["answer"]["data"]["text/plain"]
        return json.loads(eval(told))  # the repr of a str of JSON, from our own kernel

    def answers(self) -> None:
        """Wait until it answers on the shell and the iopub channel: reconnecting takes them a moment each."""

        def reply() -> bool:
            self.client.kernel_info()
            with suppress(Empty):
                return bool(self.client.get_shell_msg(timeout=0.5) and self.client.get_iopub_msg(timeout=0.5))
            return False

        wait_until(reply, "the kernel to answer", 20)
        while True:  # drop the answers to requests that were repeated
            with suppress(Empty):
                self.client.get_shell_msg(timeout=0.2)
                continue
            return

    def printed(self, code: str) -> str:
        """What a cell prints on the iopub channel."""
        message = self.client.execute(code)
        text = ""
        while True:
            told = self.client.get_iopub_msg(timeout=20)
            if told["parent_header"].get("msg_id") != message:
                continue
            if told["msg_type"] == "stream":
                text += told["content"]["text"]
            if told["msg_type"] == "status" and told["content"]["execution_state"] == "idle":
                return text


@contextmanager
def kernel(stage: Stage, actor: Actor) -> Iterator[Kernel]:
    """An ipykernel of this user, as a Jupyter server starts one: it ends itself when its parent changes."""
    with stage.play(PROGRAMS / "start.py", actor, environment={"IPYTHONDIR": "ipython"}) as subject:
        connection = subject.directory / "connection.json"
        wait_until(lambda: connection.exists() and connection.read_text().endswith("}"), "the connection file")
        client = BlockingKernelClient(connection_file=str(connection))
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=40)
            yield Kernel(subject, client)
        finally:
            client.stop_channels()


def has_it_all(kernel: Kernel, before: dict[str, Any]) -> None:
    """Everything is as it was, and goes on."""
    assert kernel.ask(ASK) == before
    ticks = kernel.ask("ticks")
    assert kernel.run(f"while ticks < {ticks} + 50: time.sleep(0.01)")["status"] == "ok"


@pytest.mark.parametrize("who", ["user", "root"])
def test_freeze_kill_wake(stage: Stage, who: str, request: pytest.FixtureRequest) -> None:
    """The story of the issue, three times over: the second time from an image of a restored kernel."""
    with kernel(stage, request.getfixturevalue(who)) as jupyter:
        assert jupyter.run(PREPARE)["status"] == "ok"
        before = jupyter.ask(ASK)
        subject = jupyter.subject
        for generation in range(3):
            job = reborn(stage, subject)
            jupyter.answers()
            has_it_all(jupyter, before)
            assert jupyter.ask("(next(squares), counter())") == [(2 + generation) ** 2, 3 + generation]
            assert jupyter.printed(f"print('generation', {generation})") == f"generation {generation}\n"
            jupyter.run(f"print('line of', {generation}, file=log); log.flush()")
            jupyter.run("database.execute('insert into t values (2)'); database.commit()")
        lines = (subject.directory / "log").read_text().splitlines()
        assert lines == ["first line", "line of 0", "line of 1", "line of 2"]

        # A new client finds it, too, and an interrupt reaches it through the job's own PID.
        fresh = BlockingKernelClient(connection_file=str(subject.directory / "connection.json"))
        fresh.load_connection_file()
        fresh.start_channels()
        fresh.wait_for_ready(timeout=20)
        message = fresh.execute("print('in the loop', flush=True)\nwhile True: pass")
        while fresh.get_iopub_msg(timeout=20)["msg_type"] != "stream":
            pass
        os.kill(job.pid, signal.SIGINT)
        while (reply := fresh.get_shell_msg(timeout=20))["parent_header"]["msg_id"] != message:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        fresh.shutdown()
        assert job.status() == 0, subject.output()
        fresh.stop_channels()  # not before: it drops what is not sent yet


def test_left_running(stage: Stage, user: Actor) -> None:
    """A checkpoint of a living kernel loses no request and no output, and its image wakes after the kernel is gone."""
    with kernel(stage, user) as jupyter:
        assert jupyter.run(PREPARE)["status"] == "ok"
        before = jupyter.ask(ASK)
        subject, store = jupyter.subject, jupyter.subject.directory / "store"
        printing = "for number in range(300):\n    print(number, flush=True)\n    time.sleep(0.002)"
        message = jupyter.client.execute(printing)
        snapshots: list[str] = []
        lines = ""
        while True:
            told = jupyter.client.get_iopub_msg(timeout=20)
            if told["parent_header"].get("msg_id") != message:
                continue
            if told["msg_type"] == "stream":
                lines += told["content"]["text"]
            if told["msg_type"] == "status" and told["content"]["execution_state"] == "idle":
                break
            if told["msg_type"] == "stream" and len(snapshots) < 3:
                snapshots.append(stage.driver(user).checkpoint(subject.pid, store, "run"))
        assert lines.split() == [str(number) for number in range(300)]
        assert jupyter.client.get_shell_msg(timeout=20)["content"]["status"] == "ok"
        has_it_all(jupyter, before)
        jupyter.client.shutdown()
        assert subject.exited() == 0
        job = restored(stage, subject, snapshots[0])
        jupyter.answers()
        has_it_all(jupyter, before)
        jupyter.client.shutdown()
        assert job.status() == 0, subject.output()


def test_in_the_middle_of_a_cell(stage: Stage, user: Actor) -> None:
    """A cell that computes while the kernel is frozen and killed comes to its end, with the right result."""
    with kernel(stage, user) as jupyter:
        assert jupyter.run(PREPARE)["status"] == "ok"
        jupyter.client.execute(
            "total, progress = 0, open('progress', 'w', buffering=1)\n"
            "for number in range(300):\n"
            "    total += float(np.linalg.norm(np.full((200, 200), number) @ np.eye(200)))\n"
            "    print(number, file=progress)\n"
            "    time.sleep(0.01)\n"
        )
        progress = jupyter.subject.directory / "progress"
        wait_until(lambda: progress.exists() and progress.read_text().count("\n") > 10, "the cell to get on")
        job: Job = reborn(stage, jupyter.subject)
        assert 10 < progress.read_text().count("\n") < 300
        wait_until(lambda: progress.read_text().count("\n") == 300, "the cell's end")
        jupyter.answers()
        assert jupyter.ask("total") == pytest.approx(sum(200.0 * number for number in range(300)))
        assert progress.read_text().split() == [str(number) for number in range(300)]
        begun = time.monotonic()
        while time.monotonic() - begun < 2.5:  # ipykernel looks every second whether its parent is still the same
            assert jupyter.ask("1 + 1") == 2
        jupyter.client.shutdown()
        assert job.status() == 0, jupyter.subject.output()
