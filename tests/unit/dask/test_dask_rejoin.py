"""A woken worker asks to come back: when it does so, what it says that it has, and when it gives up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.core import Status
from distributed.diskutils import DIR_LOCK_EXT
from distributed.worker_state_machine import ComputeTaskEvent, ExecuteSuccessEvent, WorkerState

from torpor_dask import rejoin
from torpor_dask.rejoin import BROKEN, UNKNOWN, Rejoin


class Worker:
    """As much of a worker as coming back needs, around Dask's own state machine."""

    def __init__(self, folder: Path, *answers: dict[str, Any] | OSError) -> None:
        self.state = WorkerState(address="tcp://here:1", nthreads=1, validate=True)
        self.status, self.id, self.address = Status.running, "p", "tcp://here:1"
        self.local_directory = str(folder / "w")
        (folder / f"w{DIR_LOCK_EXT}").touch()
        self.answers, self.asked = list(answers), list[dict[str, Any]]()
        self.closed: list[str] = []
        self.removed: list[Any] = []
        self.stream_handlers = {"remove-replicas": lambda keys, **_: self.removed.extend(keys)}
        self.scheduler = SimpleNamespace(torpor_rejoin=self._answer)
        self.data: dict[Any, Any] = {}

    async def _answer(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def close(self, timeout: float, executor_wait: bool, nanny: bool, reason: str) -> str:
        self.closed.append(reason)
        return "OK"

    async def execute(self, key: str, *, stimulus_id: str) -> Any:
        return ExecuteSuccessEvent.dummy(key, run_id=self.state.tasks[key].run_id, stimulus_id=stimulus_id)

    def run(self, key: str, *, run_id: int = 1, inputs: tuple[str, ...] = ()) -> None:
        """Let Dask's state machine take a task."""
        who_has: dict[Any, Any] = {one: ["tcp://there:1"] for one in inputs}
        event = ComputeTaskEvent.dummy(key, who_has=who_has, run_id=run_id, stimulus_id="given")
        self.state.handle_stimulus(event)

    def finish(self, key: str) -> None:
        done = ExecuteSuccessEvent.dummy(key, 1, run_id=self.state.tasks[key].run_id, stimulus_id="done")
        self.state.handle_stimulus(done)
        self.data[key] = 1


def made(folder: Path, *answers: dict[str, Any] | OSError) -> tuple[Any, Rejoin]:
    worker: Any = Worker(folder, *answers)
    return worker, Rejoin(worker, "cluster", lambda _: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejoin, "PAUSE", 0.0)


def test_a_frozen_worker_has_no_lock_that_could_be_missed(tmp_path: Path) -> None:
    made(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("reason", "comes"), [(BROKEN, True), (UNKNOWN, True), ("worker-close", False)])
def test_only_a_worker_that_lost_its_scheduler_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, comes: bool
) -> None:
    worker, here = made(tmp_path)
    returned: list[bool] = []

    async def back() -> None:
        returned.append(True)

    monkeypatch.setattr(here, "_rejoin", back)
    asyncio.run(worker.close(reason=reason))
    assert (bool(returned), worker.closed) == (comes, [] if comes else [reason])


def test_a_worker_that_cannot_come_back_ends_as_without_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, here = made(tmp_path)

    async def fails() -> None:
        raise PermissionError("refused")

    monkeypatch.setattr(here, "_rejoin", fails)
    assert asyncio.run(worker.close(reason=BROKEN)) == "OK"
    worker.status = Status.closing
    monkeypatch.setattr(here, "_rejoin", lambda: pytest.fail("it is on its way out"))
    asyncio.run(worker.close(reason=BROKEN))
    assert worker.closed == [BROKEN, BROKEN]


def test_it_says_what_it_has_and_runs_but_not_what_others_must_bring(tmp_path: Path) -> None:
    worker, here = made(tmp_path)
    worker.run("done", run_id=3)
    worker.finish("done")
    worker.run("runs", run_id=4)
    worker.run("ready", run_id=5)
    worker.run("waits", run_id=6, inputs=("elsewhere",))
    worker.state.validate_state()
    assert [worker.state.tasks[key].state for key in ("done", "runs", "ready", "waits")] == [
        "memory", "executing", "ready", "waiting",
    ]  # fmt: skip
    assert here._has() == [("done", 3), ("runs", 4), ("ready", 5)]
    del worker.data["done"]  # spilled, to the disk of the node where it was frozen
    worker.data.update(slow=1)
    assert here._has() == [("runs", 4), ("ready", 5)]


def test_it_asks_until_it_is_let_in_and_counts_how_often(tmp_path: Path) -> None:
    later, welcome = {"answer": "later"}, {"answer": "welcome", "keep": ["runs", "forgotten"]}
    worker, here = made(tmp_path, later, OSError("no route"), welcome, welcome)
    worker.run("runs", run_id=4)
    for returns in range(2):
        assert asyncio.run(here._ask("tcp://old:1", "tcp://new:1")) == {"runs"}
        asked = worker.asked[-1]
        assert (asked["returns"], asked["old"], asked["new"]) == (returns, "tcp://old:1", "tcp://new:1")
        assert (asked["cluster"], asked["process"], asked["has"]) == ("cluster", "p", [("runs", 4)])
    assert len(worker.asked) == 4


def test_it_gives_up_what_does_not_want_it_or_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, here = made(tmp_path, {"answer": "refused"})
    with pytest.raises(PermissionError, match="refused"):
        asyncio.run(here._ask("a", "b"))
    monkeypatch.setattr(rejoin, "UNREACHABLE", -1.0)
    _, here = made(tmp_path, OSError("no route"))
    with pytest.raises(OSError, match="no route"):
        asyncio.run(here._ask("a", "b"))
    monkeypatch.setattr(rejoin, "LATER", -1.0)
    _, here = made(tmp_path, {"answer": "later"})
    with pytest.raises(PermissionError, match="later"):
        asyncio.run(here._ask("a", "b"))


def test_what_still_runs_keeps_its_inputs_and_gets_the_new_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, here = made(tmp_path)
    worker.run("input")
    worker.finish("input")
    worker.run("runs", run_id=4, inputs=("input",))

    async def assigned() -> None:
        here._running = {"runs": asyncio.Event()}
        worker.stream_handlers["remove-replicas"](["input", "other"], stimulus_id="")
        assert worker.removed == ["other"]
        running = asyncio.ensure_future(worker.execute("runs", stimulus_id="before"))
        await asyncio.sleep(0)
        worker.state.tasks["runs"].run_id = 9
        here.on_compute_task("runs")
        announced: list[Any] = []
        monkeypatch.setattr(here, "_announce", announced.extend)
        assert (await running).run_id == 9
        await asyncio.sleep(0)
        assert announced == ["input"] and here._running == {}

    asyncio.run(assigned())
