"""A checkpoint, or a restore, again and again: with a fault at one of its calls, and what must hold after each."""

from __future__ import annotations

import os
import random
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance import observe
from tests.conformance.building import build
from tests.conformance.harness import (
    Actor,
    Driver,
    Failed,
    Job,
    Stage,
    Subject,
    alive,
    belonging,
    restored,
    wait_until,
)
from tests.conformance.victim import Victim
from tests.inject.faults import KILLED, MAY_GIVE, PATIENCE, SOURCE, Fault, Injector, Outcome
from torpor import procfs

VICTIM = Path(__file__).parents[1] / "conformance" / "victims" / "victim_holding.c"
PROCESSES = 2
"""Of the victim."""
DOCUMENTED = {0, 10, 11, 12, 20, 21, 30, 31}
"""Exit codes: torpor.errors."""
RETRIED = 10
"""After so many faults what must be possible still is done."""


def faults(calls: Sequence[str]) -> Iterator[Fault]:
    """Every fault there is at some calls. To be killed after one is to be killed before the next."""
    seen: Counter[str] = Counter()
    for call in calls:
        seen[call] += 1
        for error in MAY_GIVE.get(call, ()):
            yield Fault(call, seen[call], error)
        yield Fault(call, seen[call], kill="before")
    if calls:
        yield Fault(calls[-1], seen[calls[-1]], kill="after")


def situations(calls: Sequence[str], seed: int) -> list[Fault]:
    """Each fault once for each situation: a call between the same others is made by the same lines, as in a loop."""
    chance = random.Random(seed)
    places: dict[tuple[str, ...], list[int]] = {}
    for at in range(len(calls)):
        places.setdefault(tuple(calls[max(at - 2, 0) : at + 2]), []).append(at)
    seen: Counter[str] = Counter()
    numbers = []
    for call in calls:
        seen[call] += 1
        numbers.append(seen[call])
    found = []
    for where in places.values():
        for error in [*MAY_GIVE.get(calls[where[0]], ()), 0]:
            at = chance.choice(where)
            found.append(Fault(calls[at], numbers[at], error, kill="" if error else "before"))
    return found


def sample(calls: Sequence[str], most: int, seed: int) -> list[Fault]:
    """Some of them: each moment of a kill, and each kind of call with each error, before a second of its kind."""
    chance = random.Random(seed)
    groups: dict[object, list[Fault]] = {}
    for fault in faults(calls):
        groups.setdefault((fault.call if fault.error else "", fault.error, fault.kill), []).append(fault)
    for group in groups.values():
        chance.shuffle(group)
    order = list(groups.values())
    chance.shuffle(order)
    order.sort(key=lambda group: not group[0].kill)
    picked: list[Fault] = []
    while len(picked) < most and any(order):
        picked += [group.pop() for group in order if group]
    return picked[:most]


@dataclass
class Report:
    """What was done."""

    done: Counter[str] = field(default_factory=Counter)
    """How many faults of each kind met their call, and how these acts ended."""

    def note(self, fault: Fault, outcome: Outcome) -> None:
        """Count one."""
        if not outcome.hit:
            self.done["met no call"] += 1
            return
        self.done["errors" if fault.error else "kills"] += 1
        self.done[f"exit code {outcome.exit_code}" if outcome.exit_code != KILLED else "was killed"] += 1

    def __str__(self) -> str:
        return ", ".join(f"{what}: {count}" for what, count in sorted(self.done.items()))


class Act(ABC):
    """What is done again and again."""

    def __init__(self, stage: Stage, subject: Subject, driver: Driver, injector: Injector, processes: int) -> None:
        self.stage = stage
        self.injector = injector
        self.subject = subject
        self.driver = driver
        self.processes = processes
        self.store = subject.directory / "store"
        self.victim = Victim(subject, processes)
        self.report = Report()

    @abstractmethod
    def request(self) -> dict[str, object]:
        """Of the driver."""

    @abstractmethod
    def awake(self) -> Job | None:
        """Have the victim run; the restore that stands for it, unless it is not restored."""

    @abstractmethod
    def judge(self, fault: Fault, outcome: Outcome) -> None:
        """See that nothing is lost and nothing is left."""

    @abstractmethod
    def again(self) -> None:
        """Do it without a fault."""

    def calls(self) -> list[str]:
        """The calls of the act."""
        calls, outcome = self.injector.count(**self.request())
        self.judge(Fault("none", 0), outcome)
        return calls

    def strike(self, chosen: Iterable[Fault]) -> Report:
        """Do it with each fault."""
        number = 0
        for number, fault in enumerate(chosen, 1):
            outcome = self.injector.act(fault, **self.request())
            self.report.note(fault, outcome)
            try:
                if fault.kill and outcome.exit_code not in (KILLED, 0):
                    raise Failed("it was killed, and ended otherwise")
                if not fault.kill and outcome.exit_code not in DOCUMENTED:
                    raise Failed("that is no documented exit code")
                self.judge(fault, outcome)
                if number % RETRIED == 0:
                    self.again()
            except Exception as failure:
                raise Failed(f"{fault} -> {outcome.exit_code} {outcome.message}\n{failure}") from failure
        if number % RETRIED:
            self.again()
        return self.report


class Saving(Act):
    """A victim is saved, and runs on."""

    def __init__(self, stage: Stage, subject: Subject, driver: Driver, injector: Injector, processes: int) -> None:
        super().__init__(stage, subject, driver, injector, processes)
        self.victim.runs_on()
        driver.checkpoint(subject.root(), self.store, "run")
        self.before = subject.settled()
        self._windows = 0
        """That dead dumpers, or ones that could not clear up, may have left since a checkpoint that went well."""

    def request(self) -> dict[str, object]:
        """Save it."""
        return {"do": "checkpoint", "pid": self.subject.root(), "store": str(self.store), "then": "run"}

    def judge(self, fault: Fault, outcome: Outcome) -> None:
        """It runs on as it was; of a dumper that died, or could not clear up, windows may be left."""
        left = self.victim.is_clean(self.before)
        if fault.kill or fault.call in ("ptrace", "wait4"):
            self._windows += self.processes
        if left > self._windows:
            raise Failed(f"{left} windows are left")
        self.victim.runs_on()

    def awake(self) -> None:
        """It runs all the time."""

    def again(self) -> None:
        """What is listed is whole, and it can be saved, which removes what dead dumpers left."""
        self.driver.checkpoint(self.subject.root(), self.store, "run")
        if left := self.victim.is_clean(self.before):
            raise Failed(f"a whole checkpoint leaves {left} windows of dead dumpers behind")
        self._windows = 0
        _, wrong = self.driver.inspect(self.store)
        if wrong:
            raise Failed(f"the store is damaged: {wrong}")


class Ending(Act):
    """A victim is saved and killed. Then it is woken."""

    def __init__(self, stage: Stage, subject: Subject, driver: Driver, injector: Injector, processes: int) -> None:
        super().__init__(stage, subject, driver, injector, processes)
        self.victim.runs_on()
        self._job: Job | None = None
        self._known: set[str] = set()
        self._pids = _tree(subject)

    def request(self) -> dict[str, object]:
        """Save and kill it."""
        return {"do": "checkpoint", "pid": self.subject.root(), "store": str(self.store), "then": "kill"}

    def judge(self, fault: Fault, outcome: Outcome) -> None:
        """It runs on, all of it; or it has been killed, and a snapshot is there, which wakes."""
        try:
            wait_until(lambda: not any(map(_is_dying, self._pids)), "who is killed to end")
        except Failed as failure:
            raise Failed(f"{failure}\n{self._pids}\n{self.subject.picture()}") from None
        new = self.driver.inspect(self.store)[0] - self._known
        if outcome.exit_code != 0 and not any(procfs.is_ending(pid, pid) for pid in self._pids):
            self.victim.runs_on()
            self._known |= new
            return
        if outcome.exit_code not in (0, KILLED):
            raise Failed("it says that it failed, and has killed")
        if outcome.exit_code == 0 and new != {outcome.said["snapshot"]}:
            raise Failed(f"{new} are listed, not {outcome.said}")
        if not new:
            raise Failed("it is dead, and there is no snapshot of it")
        for pid in filter(alive, self._pids):
            os.kill(pid, signal.SIGKILL)  # the dumper died before, or between two kills
        self._wake(new.pop())

    def _wake(self, snapshot: str) -> None:
        self.subject.wait_gone(self._pids)
        if self._job:
            self._job.status()
        self._job = restored(self.stage, self.subject, snapshot, files="as-they-are")
        self.victim.runs_on()
        self._known = self.driver.inspect(self.store)[0]
        self._pids = _tree(self.subject)

    def awake(self) -> Job | None:
        """It runs, the same as before or woken."""
        return self._job

    def again(self) -> None:
        """It is saved and killed, and wakes; what is listed is whole."""
        self._wake(self.driver.checkpoint(self.subject.root(), self.store, "kill"))
        if wrong := self.driver.inspect(self.store)[1]:
            raise Failed(f"the store is damaged: {wrong}")


def _is_dying(pid: int) -> bool:
    """Whether a process is about to end, and is no zombie yet."""
    try:
        return procfs.is_ending(pid, pid) and procfs.stat(pid).state != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _tree(subject: Subject) -> list[int]:
    return list(observe.descendants(subject.root()))


class Waking(Act):
    """A snapshot is woken; the tree is killed, and woken again."""

    def __init__(self, stage: Stage, subject: Subject, driver: Driver, injector: Injector, processes: int) -> None:
        super().__init__(stage, subject, driver, injector, processes)
        pids = list(observe.descendants(subject.root()))
        self.snapshot = driver.checkpoint(subject.root(), self.store, "kill")
        subject.wait_gone(pids)
        self.mounts = _mounts()

    def request(self) -> dict[str, object]:
        """Wake it."""
        own = {"files": "as-they-are"}  # what it did since the save is in a file that it has mapped
        return {"do": "restore", "snapshot": self.snapshot, "store": str(self.store), **own}

    def judge(self, fault: Fault, outcome: Outcome) -> None:
        """The whole tree is there, or none of it, and the host is as it was."""
        if outcome.exit_code == 0:
            assert outcome.talk is not None
            self.victim.runs_on()
            self._kill()
            outcome.talk.next(PATIENCE)
            outcome.talk.close()
        wait_until(lambda: self._is_gone(outcome), "a half-built tree to go")
        if (mounts := _mounts()) != self.mounts:
            raise Failed(f"mounts are left: {mounts}")
        if left := [str(path) for path in self.store.rglob("*.draft")]:
            raise Failed(f"files are left: {left}")

    def _is_gone(self, outcome: Outcome) -> bool:
        left = self._left()
        if left and outcome.exit_code == KILLED:
            with suppress(Failed):
                self.victim.runs_on(1.0)  # it was killed after the tree was let go: that is whole, and lives
                self._kill()
        return not left

    def _left(self) -> list[int]:
        """What there is of the tree, and of its beginnings, which the driver adopts."""
        return [*belonging(self.subject.directory), *list(observe.descendants(self.driver.process.pid))[1:]]

    def _kill(self) -> None:
        for pid in belonging(self.subject.directory):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def awake(self) -> Job:
        """It is woken once more."""
        return restored(self.stage, self.subject, self.snapshot, files="as-they-are")

    def again(self) -> None:
        """The snapshot is listed, whole, and wakes."""
        listed, wrong = self.driver.inspect(self.store)
        if self.snapshot not in listed or wrong:
            raise Failed(f"the snapshot is lost: {wrong}")
        calls, outcome = self.injector.count(**self.request())
        if outcome.exit_code or not calls:
            raise Failed(f"it wakes no more: {outcome.message}")
        self.judge(Fault("none", 0), outcome)


@contextmanager
def playing(stage: Stage, actor: Actor, act: type[Act]) -> Iterator[Act]:
    """A victim, to be saved or woken with faults; afterwards it is content to its end."""
    with stage.play(VICTIM, actor, own_session=False, rests=False) as subject:
        subject.wait_ready()
        driver = stage.driver(actor)
        injector = Injector(build(SOURCE, stage.programs), driver, subject.directory)
        doing = act(stage, subject, driver, injector, PROCESSES)
        yield doing
        job = doing.awake()
        doing.victim.runs_on()
        subject.go()
        subject.judged()
        assert (job.status() if job else subject.exited()) == 0, subject.output()


def _mounts() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        return file.read()
