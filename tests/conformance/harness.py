"""Runs a conformance program, and does to it what a test says: checkpoint, kill, restore, let go.

A program prepares its state, says `ready`, waits, and judges itself when it gets the word (see
programs/ready.py and ready.h). Between the two the harness holds no descriptor of the program's and the
program none of the harness's. Waiting is always for something that can be seen, with a deadline.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conformance import observe
from tests.conformance.building import HERE, PROGRAMS, PYTHON, build, command
from tests.conformance.observe import Process
from tests.conformance.short_walks import SHORT_WALK, count_from
from tests.leaks import MARK

GO = signal.SIGUSR2
UNAVAILABLE = 77
"""The exit status of a program that this machine cannot run."""
PATIENCE = float(os.environ.get("TORPOR_TESTS_PATIENCE", "100"))
"""Seconds until what does not come is a failure, also on a machine that has much else to do, or (more) is emulated."""
T = TypeVar("T")
Tree = dict[int, Process]
"""Processes by the PIDs of their own namespace."""


class Failed(AssertionError):
    """The program or the engine did not do what the test demands."""


class EngineError(Exception):
    """An error that torpor reported, as it came out of the driver."""

    def __init__(self, kind: str, exit_code: int, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.exit_code, self.message = kind, exit_code, message


@dataclass(frozen=True)
class Actor:
    """A user on whose behalf things are done."""

    name: str
    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        """The arguments that make subprocess.Popen act as this user."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": [], "umask": 0o22}


def wait_until(look: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """What `look` returns once that is not None or False; Failed when `seconds` pass before."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds} s in vain for {what}")
        time.sleep(0.002)


def alive(pid: int) -> bool:
    """Whether `pid` exists, zombies included."""
    return Path(f"/proc/{pid}").exists()


def in_call(tid: int, number: str) -> bool:
    """Whether the thread sleeps in that system call."""
    return Path(f"/proc/{tid}/syscall").read_text().split()[0] == number


def belonging(directory: Path) -> list[int]:
    """Every process that was started for the test in `directory`: its environment names the directory."""
    mark = f"CONFORM_DIR={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


@dataclass
class Subject:
    """A running program, before its checkpoint or after its restore."""

    directory: Path
    actor: Actor
    argv: Sequence[str]
    launcher: Path
    process: subprocess.Popen[bytes] | None = None
    """The launcher, which exits as the program did when all of it is gone; None once it was restored."""
    pid: int = 0
    """The root's PID in the namespace it was started in; that stays."""
    top: int = 0
    """A process of the harness's namespace, at or above the root."""
    frozen: float = 0.0
    killed: bool = False
    rests: bool = True
    """Whether all its threads sleep when it is ready; if not, some spin."""
    own_session: bool = True
    """Whether the program leads its session; if not, the leader stays outside of its tree."""
    environment: dict[str, str] = field(default_factory=dict)
    stdio: tuple[Any, Any, Any] | None = None

    def start(self) -> Subject:
        """Start it, with its output in a file of its directory."""
        environment = {
            "CONFORM_DIR": str(self.directory),
            "HOME": str(self.directory),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            MARK: os.environ[MARK],
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(PROGRAMS),  # where ready.py is
            **self.environment,
        }
        with open(self.directory / "output", "ab") as output:
            if self.actor.uid != os.geteuid():
                os.chown(self.directory / "output", self.actor.uid, self.actor.gid)
            stdin, stdout, stderr = self.stdio or (subprocess.DEVNULL, output, output)
            self.process = subprocess.Popen(
                [str(self.launcher), "session" if self.own_session else "follow", *self.argv],
                cwd=self.directory,
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                **self.actor.popen(),
            )
        launcher = self.process.pid
        self.pid = wait_until(lambda: self.still_there() and next(iter(observe.children(launcher)), None), "it")
        self.top = self.pid
        return self

    def output(self) -> str:
        """What the program wrote, for a message."""
        return (self.directory / "output").read_text(errors="replace")[-3000:]

    def still_there(self) -> bool:
        """True; it has no reason to end before it was ready."""
        ended = self.process.poll() if self.process else None
        if ended == UNAVAILABLE:
            pytest.skip(f"not on this machine: {self.output()}")
        if ended is not None:
            raise Failed(f"ended with {ended} before it was ready:\n{self.output()}")
        return True

    def wait_ready(self) -> Subject:
        """Wait until the program's state stands and its threads sleep where they said."""
        marker = self.directory / "ready"

        wait_until(lambda: self.still_there() and marker.exists(), "ready")
        for line in marker.read_text().splitlines():
            tid, number = line.split()
            wait_until(partial(in_call, int(tid), number), f"thread {tid} in call {number}")
        return self

    def root(self) -> int:
        """The root's PID as the harness sees it."""
        found = observe.find(self.top, self.pid)
        if found is None:
            raise Failed(f"process {self.pid} is not under {self.top}")
        return found

    def observe(self) -> Tree:
        """The whole tree, as /proc shows it."""
        return observe.observe(self.root())

    def settled(self) -> Tree:
        """The whole tree, once two looks see the same and no thread has anything to do: a child may still be on its
        way when the root is ready, and have no processor for long."""
        looks: list[Tree] = [{}]

        def at_rest() -> bool:
            with suppress(FileNotFoundError, ProcessLookupError):  # one has just ended
                looks.append(self.observe())
                if self.rests and (observe.busy(looks[-2]) or observe.busy(looks[-1])):
                    return False
                return not observe.differences(looks[-2], looks[-1])
            return False

        wait_until(at_rest, "the tree to come to rest")
        return looks[-1]

    def go(self) -> None:
        """Give the word to go on."""
        draft = self.directory / "go.draft"
        draft.write_text(f"{'killed' if self.killed else 'ran'} {int(self.frozen * 1e9)}")
        draft.rename(self.directory / "go")
        os.kill(self.root(), GO)

    def judged(self, seconds: float = PATIENCE) -> None:
        """Wait for the program's own verdict, which must be "ok"."""
        path = self.directory / "verdict"

        def judgement() -> str | None:
            if path.exists():
                return path.read_text()
            with suppress(FileNotFoundError, ProcessLookupError, Failed):
                self.root()
                return None
            status = f", with {self.exited()}" if self.process else ""
            return path.read_text() if path.exists() else f"ended without a verdict{status}"

        try:
            said = wait_until(judgement, "the verdict", seconds)
        except Failed as failure:
            raise Failed(f"{failure}\n{self.picture()}\n{self.output()}") from None
        if said != "ok":
            raise Failed(f"the program says:\n{said}\n{self.output()}")

    def picture(self) -> str:
        """Where every thread of the tree is, for a message."""
        lines = []
        with suppress(OSError, Failed):
            for pid in observe.descendants(self.root()):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    call = (task / "syscall").read_text().strip()
                    lines.append(f"{pid}/{task.name} {(task / 'comm').read_text().strip()}: {call}")
        return "\n".join(lines)

    def exited(self, seconds: float = PATIENCE) -> int:
        """The exit status that the parent saw."""
        if self.process is None:
            raise Failed("no process of the harness's own")
        return self.process.wait(seconds)

    def wait_gone(self, pids: Sequence[int]) -> None:
        """Wait until none of `pids` is left, not even as a zombie."""
        wait_until(lambda: not any(map(alive, pids)), f"the end of {list(pids)}")
        if self.process:
            self.process.wait(PATIENCE)


class Conversation:
    """One request to a driver and what came back."""

    def __init__(self, path: Path, **request: object) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")
        self.handler: int = self.next(PATIENCE)["handler"]
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def next(self, seconds: float) -> dict[str, Any]:
        """The next line; EngineError if it tells one, EOFError if the handler died."""
        self.socket.settimeout(seconds)
        line = self.lines.readline()
        if not line:
            raise EOFError("the driver's handler ended without an answer")
        words: dict[str, Any] = json.loads(line)
        if "error" in words:
            raise EngineError(words["error"], words["exit_code"], words["message"])
        return words

    def close(self) -> None:
        """End the conversation; what was restored lives on."""
        self.lines.close()
        self.socket.close()


class Driver:
    """A process of `actor` that does checkpoints and restores (see driver.py)."""

    def __init__(self, actor: Actor, base: Path) -> None:
        self.actor = actor
        self.directory = Path(tempfile.mkdtemp(prefix=f"driver-{actor.name}-", dir=base))
        os.chown(self.directory, actor.uid, actor.gid)
        self.path = self.directory / "socket"
        self.log = self.directory / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [PYTHON, str(HERE / "driver.py"), str(self.path)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(self.directory)},
                **actor.popen(),
            )
        try:
            wait_until(self._listens, "the driver")
        except Failed as failure:
            raise Failed(f"{failure}\n{self.log.read_text()}") from None

    def _listens(self) -> bool:
        if self.process.poll() is not None:
            raise Failed("the driver ended at once")
        return self.path.exists()

    def ask(self, **request: object) -> Conversation:
        """Send a request."""
        return Conversation(self.path, **request)

    def checkpoint(self, pid: int, store: Path, then: str, **options: object) -> str:
        """Take a snapshot, return its id."""
        start = self.log.stat().st_size
        with closing(self.ask(do="checkpoint", pid=pid, store=str(store), then=then, **options)) as talk:
            return str(self.hear(talk, start)["snapshot"])

    def inspect(self, store: Path) -> tuple[set[str], list[str]]:
        """The ids of the snapshots in a store, and what is wrong in it."""
        start = self.log.stat().st_size
        with closing(self.ask(do="inspect", store=str(store))) as talk:
            told = self.hear(talk, start)
            return set(told["listed"]), told["faults"]

    def differences(self, store: Path) -> list[str]:
        """What differs, and should not, between successive snapshots in a store."""
        start = self.log.stat().st_size
        with closing(self.ask(do="compare", store=str(store))) as talk:
            return list(self.hear(talk, start)["differences"])

    def restore(self, snapshot: str, store: Path, **options: object) -> tuple[Conversation, int]:
        """Restore in the foreground: the conversation that will tell the exit status, and the job's PID."""
        start = self.log.stat().st_size
        talk = self.ask(do="restore", snapshot=snapshot, store=str(store), **options)
        try:
            return talk, int(self.hear(talk, start)["pid"])
        except BaseException:
            talk.close()
            raise

    def hear(self, talk: Conversation, start: int) -> dict[str, Any]:
        """What a handler says; if it breaks off, what it has logged from `start` is told."""
        try:
            return talk.next(PATIENCE)
        except TimeoutError:
            os.kill(talk.handler, signal.SIGQUIT)
            wait_until(lambda: self.log.stat().st_size > start or None, "the place where the handler hangs")
            os.kill(talk.handler, signal.SIGKILL)
            raise Failed(f"the driver's handler hangs\n{self.log.read_text()[start:]}") from None
        except EOFError as failure:
            raise Failed(f"{failure}\n{self.log.read_text()[start:]}") from None

    def stop(self) -> None:
        """End the driver."""
        self.process.terminate()
        self.process.wait(PATIENCE)


class Stage:
    """Where a session's tests play: folders that every user may enter, compiled programs, drivers."""

    def __init__(self, actors: Sequence[Actor]) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="torpor-test-conformance-"))
        self.base.chmod(0o755)
        self.programs = self.base / "bin"
        self.programs.mkdir()
        self._drivers = {actor: Driver(actor, self.base) for actor in actors}

    def driver(self, actor: Actor) -> Driver:
        """The driver of `actor`."""
        return self._drivers[actor]

    @contextmanager
    def play(self, program: Path | Sequence[str], actor: Actor, **options: Any) -> Iterator[Subject]:
        """Start a program, its source or its words, in a folder of its own; afterwards nothing of it may be left."""
        argv = command(program, self.programs) if isinstance(program, Path) else program
        directory = Path(tempfile.mkdtemp(prefix=f"{Path(argv[-1]).stem}-", dir=self.base))
        os.chown(directory, actor.uid, actor.gid)
        launcher = build(HERE / "launch.c", self.programs)
        subject = Subject(directory, actor, argv, launcher, **options)
        try:
            yield subject.start()
            if subject.process:
                subject.process.wait(PATIENCE)
            wait_until(lambda: not belonging(directory), "the end of every process of the test")
        finally:
            left = belonging(directory)
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if subject.process:
                subject.process.kill()
                subject.process.wait()
            wait_until(lambda: not belonging(directory), "the processes that were killed")
            shutil.rmtree(directory)

    def close(self) -> None:
        """End the drivers, remove everything."""
        for driver in self._drivers.values():
            driver.stop()
        shutil.rmtree(self.base)


@dataclass
class Job:
    """A restored subject and the foreground restore that stands for it."""

    talk: Conversation
    pid: int

    def status(self, seconds: float = PATIENCE) -> int:
        """The exit status as the restorer got it."""
        status = int(self.talk.next(seconds)["status"])
        self.talk.close()
        return status


@contextmanager
def occupied(stage: Stage, pid: int) -> Iterator[None]:
    """A stranger has `pid` (only root can arrange that)."""
    stranger = subprocess.Popen([str(build(HERE / "occupy.c", stage.programs)), str(pid)], stdout=subprocess.PIPE)
    try:
        assert stranger.stdout and stranger.stdout.readline() == b"taken\n"
        yield
    finally:
        stranger.kill()
        stranger.communicate()
        wait_until(lambda: not alive(pid), "the end of the stranger")


def reborn(
    stage: Stage, subject: Subject, occupying: ExitStack | None = None, then: str = "kill", **options: object
) -> Job:
    """Checkpoint and kill, see that all are dead, restore.

    With `occupying` a stranger takes the root's PID meanwhile, and keeps it until that stack is left. With "gone" as
    `then` the tree was to run on, and ends at once: nothing may be asked of it any more.
    """
    begun = time.monotonic()
    pids = list(observe.descendants(subject.root()))
    snapshot = stage.driver(subject.actor).checkpoint(subject.root(), subject.directory / "store", then)
    subject.wait_gone(pids)
    if options.get("way") == "native":
        count_from(min(pids) - SHORT_WALK)
    if occupying:
        occupying.enter_context(occupied(stage, subject.pid))
    job = restored(stage, subject, snapshot, **options)
    subject.frozen += time.monotonic() - begun
    return job


def reborn_alike(
    stage: Stage, subject: Subject, occupying: ExitStack | None = None, then: str = "kill", **options: object
) -> Job:
    """`reborn`, and a program that is at rest is word for word as it was."""
    before = subject.settled()
    job = reborn(stage, subject, occupying, then, **options)
    unchanged(subject, before)
    return job


def unchanged(subject: Subject, before: Tree) -> None:
    """See that the tree is as it was `before`.

    Threads may need a moment until they sleep again where they slept; a process more is wrong at any moment.
    """
    deadline = time.monotonic() + PATIENCE
    while changed := observe.differences(before, subject.observe()):
        if time.monotonic() > deadline or any(line.endswith("is new") for line in changed):
            raise Failed("not as it was:\n" + "\n".join(changed))


def restored(stage: Stage, subject: Subject, snapshot: str, **options: object) -> Job:
    """Wake a subject that is dead."""
    talk, pid = stage.driver(subject.actor).restore(snapshot, subject.directory / "store", **options)
    subject.killed, subject.process, subject.top = True, None, pid
    return Job(talk, pid)


def in_capsule(subject: Subject) -> bool:
    """Whether the subject lives in a PID namespace below the harness's."""
    return len(observe.status(subject.root())["NSpid"].split()) > len(observe.status(os.getpid())["NSpid"].split())
