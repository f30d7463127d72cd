"""A model of Slurm, of a job under a supervisor and of the world around both, with a clock of its own.

The supervisor and the job's directory are the real ones. The application counts, a line for each second, and the model
knows what becomes of it. `docs/slurm.md` and the notes in preemption_cause.py say what Slurm does when.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Literal

import pytest

import torpor
from tests.unit.slurm.slurm_job import environment
from torpor import image, processes
from torpor.errors import CheckpointFailed, StoreError, TorporError
from torpor.store import SnapshotInfo
from torpor_slurm import (
    another_run,
    beginning,
    controller,
    lifeline,
    rollback,
    saving,
    script_around,
    srun_wrapper,
    supervisor,
)
from torpor_slurm.allocation import Allocation
from torpor_slurm.controller import JobRecord, SlurmError
from torpor_slurm.guard import Guard
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.run_options import Options
from torpor_slurm.supervisor import Supervisor

STEPS, CODE = 40, 0
"""What the application counts to, and its exit code."""
GRACE, KILL_WAIT, LIMIT = 100.0, 30.0, 86400.0
SAVE, WAKE, LISTEN = 3.0, 2.0, 2.0
"""Seconds that a save and a wake take, and until a sentinel has started."""
RUNS = 12
"""Of more than so many runs something is wrong."""

Answer = Literal["dies", "goes on", "ends with 0", "ends with 3"]
"""What the application does when it is sent a signal that would end it."""


class Killed(BaseException):
    """The supervisor is killed."""


class Application:
    """A process that counts."""

    def __init__(self, world: World, steps: int) -> None:
        self.world, self.steps = world, steps
        self.code: int | None = None
        self.frozen = False
        self.tree_pid, self.warnings = 4711, ()

    def step(self) -> None:
        if self.code is not None or self.frozen:
            return
        if self.steps == STEPS:
            self.world.reach("ending")
            if self.code is None:
                self.code = CODE
                self.world.came_to_its_end = True
                self.world.reach("ended")
            return
        os.write(self.world.out, b"%d\n" % self.steps)
        self.steps += 1
        self.world.done += 1

    def send_signal(self, number: int) -> None:
        if self.code is not None:
            raise ProcessLookupError
        if number == signal.SIGKILL:
            self.code = -signal.SIGKILL
        elif number in supervisor.WARNINGS and not self.frozen:
            self.code = {"dies": -number, "goes on": None, "ends with 0": 0, "ends with 3": 3}[self.world.answer]

    def poll(self) -> int | None:
        self.world.check()
        return self.code

    def wait(self) -> int:
        self.world.check()
        assert self.code is not None, "nobody has ended it"
        return self.code


class Sentinel:
    """The step that hears the start of a grace time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.there_at = world.now + LISTEN
        self.told = self.terminated = False
        self.signal = None

    def __enter__(self) -> Sentinel:
        self.world.sentinel = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.world.sentinel = None

    @property
    def starting(self) -> bool:
        return not self.told

    def has_started(self) -> bool:
        if self.told or self.world.now < self.there_at:
            return False
        self.told = True
        return True

    def ended(self) -> bool:
        if not self.terminated:
            return False
        self.there_at, self.told, self.terminated = self.world.now + 1 + LISTEN, False, False
        return True

    def hear(self) -> None:
        self.terminated = self.terminated or self.world.now >= self.there_at


class World:
    """A job from its submission to its end."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, *, answer: Answer, cgroups: bool, every: float | None = None
    ) -> None:
        self.answer, self.cgroups, self.folder = answer, cgroups, folder
        self.options = Options(every=every, on_timeout="requeue")
        self.now = 1_800_000_000.0
        self.timers: list[tuple[float, int, Callable[[], object]]] = []
        self.sentinel: Sentinel | None = None
        self.app: Application | None = None
        self.pending: list[int] = []
        self.killed = False
        self.away_until = {"controller": 0.0, "store": 0.0}
        self.failing = 0
        """How many of the next saves fail."""
        self.images: dict[str, tuple[int, int]] = {}
        """The step and the length of the output in each snapshot."""
        self.restarts, self.run = 0, 0
        self.state, self.reason = "RUNNING", "None"
        self.preempted: float | None = None
        self.end = self.now + LIMIT
        self.cancelled = self.slurm_requeues = False
        self.came_to_its_end = False
        self.done = 0
        """Steps, also those that were done again."""
        self.helped: list[str] = []
        """How often the job had to be requeued by hand, and why."""
        self.reached: list[str] = []
        self.plan: dict[str, list[Callable[[World], None]]] = {}
        """What happens when a state is reached for the first time."""
        base = folder / "store"
        base.mkdir()
        self.path = folder / "out"
        self.out = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.base = base
        clock = SimpleNamespace(
            monotonic=lambda: self.now, time=lambda: self.now, sleep=self._sleep, strftime=lambda *_: "now"
        )
        for module in (supervisor, saving, another_run, beginning):
            patch.setattr(module, "time", clock)
        patch.setattr(signal, "sigtimedwait", self._wait)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(rollback, "_FDS", (self.out,))
        patch.setattr(script_around, "_name", lambda _: "slurmstepd")
        patch.setattr(processes, "dies_of", lambda *_: self.answer == "dies")
        patch.setattr(processes, "resident", lambda _: 1 << 20)
        patch.setattr(processes, "is_ending", lambda _: False)
        patch.setattr(lifeline, "tie", lambda _: None)
        patch.setattr(Guard, "post", lambda _: None)
        patch.setattr(srun_wrapper, "refuse_real_srun", lambda _: None)
        patch.setattr(supervisor, "Sentinel", lambda *_: Sentinel(self))
        patch.setattr(supervisor, "start", self._start)
        patch.setattr(torpor, "checkpoint", self._checkpoint)
        patch.setattr(torpor, "restore", self._restore)
        patch.setattr(image, "read", lambda _: None)
        patch.setattr(rollback, "tails", lambda _: [])
        patch.setattr(controller, "job_record", self._job_record)
        patch.setattr(controller, "requeue", self._requeue)
        arrive = JobDirectory.arrive

        def arrives(*arguments: Any) -> None:
            self._store()
            arrive(*arguments)

        patch.setattr(JobDirectory, "arrive", arrives)

    # ------------------------------------------------------------------------------------------- time

    def at(self, seconds: float, deed: Callable[[], object]) -> None:
        """Have something happen so many seconds from now."""
        self.timers.append((self.now + seconds, len(self.timers), deed))

    def pass_time(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, second by second for the application."""
        end = self.now + seconds
        while not until():
            due = min(self.timers, default=None)
            tick = float(int(self.now) + 1)
            if due is not None and due[0] <= min(tick, end):
                self.timers.remove(due)
                self.now = max(self.now, due[0])
                due[2]()
            elif tick <= end:
                self.now = tick
                if self.app is not None:
                    self.app.step()
            else:
                self.now = end
                break
        self.check()

    def check(self) -> None:
        if self.killed:
            raise Killed

    def reach(self, state: str) -> None:
        """A state of the job's is reached: what is planned for it happens."""
        self.reached.append(state)
        for event in self.plan.pop(state, []):
            event(self)
            self.now += 1.5  # Slurm's times are in whole seconds: what comes in the same one is not told apart

    def _sleep(self, seconds: float) -> None:
        self.pass_time(seconds)

    def _wait(self, signals: Iterable[int], seconds: float) -> Any:
        def heard() -> bool:
            return self.killed or bool(self.pending) or (self.app is not None and self.app.code is not None)

        if self.sentinel is not None and self.sentinel.told and self.app is not None and self.app.steps > 4:
            self.reach("running")
        self.pass_time(seconds, heard)
        self.check()
        if self.pending:
            return SimpleNamespace(si_signo=self.pending.pop(0))
        return None

    # ------------------------------------------------------------------------------------------- what is supervised

    def _start(self, *_: object, **__: object) -> Application:
        self.reach("starting")
        self.check()
        self.app = Application(self, 0)
        return self.app

    def _store(self) -> None:
        if self.now < self.away_until["store"]:
            raise OSError(errno.ESTALE, "Stale file handle")

    def _checkpoint(self, pid: int, *, store: Any, then: str, tags: dict[str, str], **_: object) -> SnapshotInfo:
        app = self.app
        assert app is not None
        self.reach(f"saving to {then}")
        if app.code is not None:
            raise CheckpointFailed("it has ended")
        if self.failing:
            self.failing -= 1
            raise CheckpointFailed("the disk is full")
        image = app.steps, os.fstat(self.out).st_size
        app.frozen = then == "kill"
        try:
            self.pass_time(SAVE / 2)
            self.reach(f"in the middle of a save to {then}")
            self.pass_time(SAVE / 2)
            if self.now < self.away_until["store"]:
                raise StoreError("stale")
            with store.writer("tree", tags) as writer:
                info: SnapshotInfo = writer.publish(b"", "")
        finally:
            app.frozen = False
        self.images[info.id] = image
        if then == "kill" and app.code is None:
            app.code = -signal.SIGKILL
        self.reach(f"saved to {then}")
        self.check()
        return info

    def _restore(self, snapshot: SnapshotInfo, *, connected: Callable[[], None], **_: object) -> Application:
        self.pass_time(WAKE / 2)
        self.reach("waking")
        self.pass_time(WAKE / 2)
        if self.now < self.away_until["store"]:
            raise StoreError("stale")
        connected()
        steps, length = self.images[snapshot.id]
        os.truncate(self.path, length)
        self.app = Application(self, steps)
        self.reach("woken")
        self.check()
        return self.app

    # ------------------------------------------------------------------------------------------- Slurm

    def _job_record(self, _: str) -> JobRecord:
        if self.app is not None and self.app.code is not None:
            self.reach("leaving")
        self.check()
        if self.now < self.away_until["controller"]:
            self.pass_time(1.0)
            raise SlurmError("Unable to contact slurm controller")
        return JobRecord(
            state=self.state,
            reason=self.reason,
            restarts=self.restarts,
            requeue=True,
            start=self.started,
            end=self.end,
            preempt=self.preempted,
            partition="low",
            name="job",
            limited=True,
        )

    def _requeue(self, _: str, *, hold: bool = False) -> None:
        if self.now < self.away_until["controller"]:
            raise SlurmError("Unable to contact slurm controller")
        if self.cancelled:
            raise AssertionError("a job that was cancelled is requeued")
        if self.restarts == self.run:
            self.requeue()
        self.reach("requeued")
        self.check()

    def _signal(self, number: int, *, steps: bool = False) -> None:
        """Slurm signals a job: with cgroups only what slurmstepd has started, else every process."""
        if number not in self.pending:
            self.pending.append(number)
        if steps and self.sentinel is not None:
            self.sentinel.hear()
        if not self.cgroups and self.app is not None and self.app.code is None:
            self.app.send_signal(number)

    def _terminate(self) -> None:
        """SIGTERM, and SIGKILL when KillWait is over."""
        self.state = "COMPLETING"
        self._signal(signal.SIGTERM, steps=True)
        run = self.run

        def last() -> None:
            if self.run == run:
                self.kill()

        self.at(KILL_WAIT, last)

    def kill(self) -> None:
        """End every process of the job."""
        self.killed = True
        if self.app is not None and self.app.code is None:
            self.app.code = -signal.SIGKILL

    def preempt(self, grace: float = GRACE) -> None:
        if self.preempted is not None or self.state != "RUNNING":
            return
        self.preempted, self.end = self.now, self.now + grace
        run = self.run
        if grace and self.sentinel is not None:
            self.sentinel.hear()

        def over() -> None:
            if self.run == run and self.state == "RUNNING":
                self.slurm_requeues = True
                self._terminate()

        if grace:
            self.at(grace, over)
        else:  # whoever cancels it in the same second is not told from that
            over()

    def requeue(self) -> None:
        if self.state == "RUNNING" or self.slurm_requeues or self.reason == "TimeLimit":
            self.restarts = self.run + 1
            self._terminate()

    def cancel(self) -> None:
        if self.state == "RUNNING":
            self.cancelled, self.end = True, self.now
            self._terminate()

    def suspend(self, seconds: float) -> None:
        """Nothing of it runs for a time, which Slurm gives back."""
        if self.state != "RUNNING":
            return
        self.now += seconds
        self.end += seconds
        self.timers = [(at + seconds, number, deed) for at, number, deed in self.timers]

    def lose_node(self) -> None:
        if not self.cancelled:
            self.state, self.slurm_requeues = "NODE_FAIL", True
        self.kill()

    def time_limit(self) -> None:
        if self.state == "RUNNING":
            self.reason, self.end = "TimeLimit", self.now
            self._terminate()

    # ------------------------------------------------------------------------------------------- the story

    def live(self) -> None:
        """The whole life of the job. Whoever looks after it requeues it when it is over and has not finished."""
        for self.run in range(RUNS):
            code = self._one_run()
            self.timers, self.pending, self.killed = [], [], False
            if self.app is not None and self.app.code is None:
                raise AssertionError("the application outlives its supervisor")
            finished = JobDirectory(self.base, "12", "c").finished
            if finished is not None:
                assert self.came_to_its_end, "it passes for finished"
                assert finished.code == CODE
                if self.restarts == self.run:
                    assert code == CODE
                    return
            if self.restarts == self.run:
                if not self.slurm_requeues or self.cancelled:
                    self.helped.append("cancelled" if self.cancelled else f"{self.state}, {code}")
                self.restarts += 1
        raise AssertionError(f"it does not come to its end: {self.reached[-20:]}")

    def _one_run(self) -> int | None:
        self.app = None
        self.state, self.reason, self.preempted = "RUNNING", "None", None
        self.cancelled = self.slurm_requeues = False
        self.started, self.end = self.now, self.now + LIMIT
        allocation = Allocation.here(environment(SLURM_RESTART_COUNT=str(self.run)))
        assert allocation is not None
        directory = JobDirectory(self.base, "12", "c")
        try:
            self.reach("begins")
            self.pass_time(1.0)
            return Supervisor(["app"], allocation, directory, self.options, processes.inherited_signals()).run()
        except Killed:
            return None
        except TorporError as error:
            self.check()
            return error.exit_code
