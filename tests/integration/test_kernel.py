"""A real Jupyter kernel with numpy and pandas: frozen, killed, woken, on its old ports, with all it held.

The client stays what it was: its ZMQ sockets connect again by themselves when the kernel listens again.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests import jupyter
from tests.conformance.harness import Actor, Job, Stage, Subject, reborn, restored, wait_until
from tests.jupyter import PATIENCE

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

END = "os._exit(0)"
"""Not by client.shutdown(): one kernel in ten hangs then, with or without Torpor (ipykernel 7.4: its control thread
flushes what its main thread has closed)."""


class Kernel:
    """A kernel under test and a client of it."""

    def __init__(self, subject: Subject, client: BlockingKernelClient) -> None:
        self.subject, self.client = subject, client

    def run(self, code: str) -> dict[str, Any]:
        """Execute code; the reply's content."""
        reply = self.client.execute(code, reply=True, timeout=PATIENCE)
        content: dict[str, Any] = reply["content"]
        return content

    def ask(self, expression: str) -> Any:
        """The value of an expression, which JSON can carry."""
        code = f"import json as _json; _answer = _json.dumps({expression})"
        reply = self.client.execute(code, user_expressions={"answer": "_answer"}, reply=True, timeout=PATIENCE)
        assert reply["content"]["status"] == "ok", reply["content"]
        told = reply["content"]["user_expressions"]["answer"]["data"]["text/plain"]
        return json.loads(eval(told))  # the repr of a str of JSON, from our own kernel

    def answers(self) -> None:
        """Wait until it answers on the shell and the iopub channel: reconnecting takes them a moment each."""
        wait_until(lambda: jupyter.answers(self.client), "the kernel to answer", PATIENCE)


@contextmanager
def kernel(stage: Stage, actor: Actor) -> Iterator[Kernel]:
    """An ipykernel of this user, as a Jupyter server starts one: it ends itself when its parent changes."""
    with (
        stage.play(PROGRAMS / "start.py", actor, environment={"IPYTHONDIR": "ipython"}) as subject,
        jupyter.connected(subject.directory / "connection.json") as client,
    ):
        yield Kernel(subject, client)


def has_it_all(kernel: Kernel, before: dict[str, Any]) -> None:
    """Everything is as it was, and goes on."""
    assert kernel.ask(ASK) == before
    ticks = kernel.ask("ticks")
    assert kernel.run(f"while ticks < {ticks} + 50: time.sleep(0.01)")["status"] == "ok"


@pytest.mark.parametrize("who", ["user", "root"])
def test_freeze_kill_wake(stage: Stage, who: str, request: pytest.FixtureRequest) -> None:
    """The story of the issue, three times over: the second time from an image of a restored kernel."""
    with kernel(stage, request.getfixturevalue(who)) as started:
        assert started.run(PREPARE)["status"] == "ok"
        before = started.ask(ASK)
        subject = started.subject
        for generation in range(3):
            job = reborn(stage, subject)
            started.answers()
            has_it_all(started, before)
            assert started.ask("(next(squares), counter())") == [(2 + generation) ** 2, 3 + generation]
            assert jupyter.printed(started.client, f"print('generation', {generation})") == f"generation {generation}\n"
            started.run(f"print('line of', {generation}, file=log); log.flush()")
            started.run("database.execute('insert into t values (2)'); database.commit()")
        lines = (subject.directory / "log").read_text().splitlines()
        assert lines == ["first line", "line of 0", "line of 1", "line of 2"]

        # A new client finds it, too, and an interrupt reaches it through the job's own PID.
        with jupyter.connected(subject.directory / "connection.json") as fresh:
            loop = "print('in the loop', flush=True)\nwhile True: pass"
            message = fresh.execute(loop, stop_on_error=False)  # else what comes right after an error is not executed
            while fresh.get_iopub_msg(timeout=PATIENCE)["msg_type"] != "stream":
                pass
            os.kill(job.pid, signal.SIGINT)
            while (reply := fresh.get_shell_msg(timeout=PATIENCE))["parent_header"]["msg_id"] != message:
                pass
            assert reply["content"]["ename"] == "KeyboardInterrupt"
            fresh.execute(END)
            assert job.status(PATIENCE) == 0, subject.output()


def test_left_running(stage: Stage, user: Actor) -> None:
    """A checkpoint of a living kernel loses no request and no output, and its image wakes after the kernel is gone."""
    with kernel(stage, user) as started:
        assert started.run(PREPARE)["status"] == "ok"
        before = started.ask(ASK)
        subject, store = started.subject, started.subject.directory / "store"
        printing = "for number in range(300):\n    print(number, flush=True)\n    time.sleep(0.002)"
        message = started.client.execute(printing)
        snapshots: list[str] = []
        lines = ""
        while True:
            told = started.client.get_iopub_msg(timeout=PATIENCE)
            if told["parent_header"].get("msg_id") != message:
                continue
            if told["msg_type"] == "stream":
                lines += told["content"]["text"]
            if told["msg_type"] == "status" and told["content"]["execution_state"] == "idle":
                break
            if told["msg_type"] == "stream" and len(snapshots) < 3:
                snapshots.append(stage.driver(user).checkpoint(subject.pid, store, "run"))
        assert lines.split() == [str(number) for number in range(300)]
        assert started.client.get_shell_msg(timeout=PATIENCE)["content"]["status"] == "ok"
        has_it_all(started, before)
        started.client.execute(END)
        assert subject.exited(PATIENCE) == 0
        job = restored(stage, subject, snapshots[0])
        started.answers()
        has_it_all(started, before)
        started.client.execute(END)
        assert job.status(PATIENCE) == 0, subject.output()


def test_in_the_middle_of_a_cell(stage: Stage, user: Actor) -> None:
    """A cell that computes while the kernel is frozen and killed comes to its end, with the right result."""
    with kernel(stage, user) as started:
        assert started.run(PREPARE)["status"] == "ok"
        started.client.execute(
            "total, number, progress = 0.0, 0, open('progress', 'w', buffering=1)\n"
            "while not os.path.exists('enough'):\n"
            "    total += float(np.linalg.norm(np.full((200, 200), number) @ np.eye(200)))\n"
            "    print(number, file=progress)\n"
            "    number += 1\n"
            "    time.sleep(0.01)\n"
            "print('end', file=progress)\n"
        )
        progress = started.subject.directory / "progress"

        def lines() -> int:
            return progress.read_text().count("\n") if progress.exists() else 0

        wait_until(lambda: lines() > 10, "the cell to get on", PATIENCE)
        job: Job = reborn(stage, started.subject)
        before = lines()
        wait_until(lambda: lines() > before + 10, "the cell to go on", PATIENCE)
        (started.subject.directory / "enough").touch()
        wait_until(lambda: progress.read_text().endswith("end\n"), "the cell's end", PATIENCE)
        started.answers()
        *numbers, _ = progress.read_text().split()
        assert numbers == [str(number) for number in range(len(numbers))]
        assert started.ask("total") == pytest.approx(sum(200.0 * number for number in range(len(numbers))))
        begun = time.monotonic()
        while time.monotonic() - begun < 2.5:  # ipykernel looks every second whether its parent is still the same
            assert started.ask("1 + 1") == 2
        started.client.execute(END)
        assert job.status(PATIENCE) == 0, started.subject.output()
