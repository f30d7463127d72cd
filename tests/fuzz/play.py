"""Plays programs twice, once undisturbed and once saved and woken, and compares what they saw.

Several are played beside each other in one tree: a save and a wake cost little more for them than for one. What is
refused, or goes wrong with the tree, is then played alone.

python -m tests.fuzz.play FOLDER PLAYER SEED COUNT      as the user that it runs as; a line of JSON for each program
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import unified_diff
from functools import reduce
from pathlib import Path

import torpor
from tests.fuzz.grammar import FIRST_MOMENT, SAVE, Step, generate, write
from tests.leaks import MARK, marked
from torpor import processes
from torpor.dump import patience, proof
from torpor.errors import Refused, TorporError
from torpor.image import image_pb2 as pb
from torpor.image import reading
from torpor.objects.paths.bundle import named
from torpor.restorer.round_trip import differences
from torpor.store import SnapshotInfo

GOOD = ("same", "refused", "idle", "unsteady")
"""Kinds of outcomes as they should be."""
TWINS = 5
"""Twins more of a program that saw something else, until one differs from the first: such a program tells nothing."""
PATIENCE = 60.0
HOWS = ("kill", "kill", "run", "stop")
BESIDE = 8
"""Programs in a tree."""
PAUSES = (0.02, 0.1)
"""Seconds that a tree runs on before it is tried again: what waits in these programs seldom passes by itself, and each
try takes as long as the save of all of them."""
LOST = 0.3
"""How often a wake has to make anew what the programs had made."""
_IPC_RMID = 0
SHARED_FD = 900
"""Of all processes of a program: its shared memory, which bears the program's name."""


class Wrong(Exception):
    """What came back is not what went in, or did not come back."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind, self.words = kind, words


@dataclass
class Outcome:
    """What became of a program."""

    seed: int
    kind: str = "same"
    """"same", "refused" (at all saves, or it was over by then; it saw the same), "idle" (undisturbed, it comes to no
    end either: its own actors wait for each other), "unsteady" (its undisturbed twins differ among each other: what is
    written to a terminal is there when the kernel comes to it), or what is wrong."""
    words: str = ""
    saves: int = 0
    """How often it was saved, in any way."""
    wakes: int = 0
    trips: int = 0
    """How often it was saved again as it was woken, and the two images compared."""


def await_(look: Callable[[], bool], what: str) -> None:
    """Wait for something that can be seen."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise Wrong("hangs", what)
        time.sleep(0.002)


def _standing(pid: int) -> str:
    """Where the threads of a process are: their state, what they sleep in, and in which call."""
    told = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            told.append(f"{task.name} {state} {(task / 'wchan').read_text()} {(task / 'syscall').read_text().strip()}")
    return f"{pid}: " + "; ".join(told)


def remove_ipc(folders: Iterable[Path]) -> None:
    """Remove what programs that were killed have left in this IPC namespace (player/ipc.c gives it these names)."""
    libc = ctypes.CDLL(None)
    for folder in folders:
        number = reduce(lambda so_far, byte: (so_far ^ byte) * 16777619 & 0xFFFFFFFF, bytes(folder), 2166136261)
        for slot in range(3):
            key = (number & 0x0FFFFFFF) << 2 | slot | 0x40000000
            libc.semctl(libc.semget(ctypes.c_int(key), 0, 0), 0, _IPC_RMID)
            libc.msgctl(libc.msgget(ctypes.c_int(key), 0), _IPC_RMID, None)
            libc.mq_unlink(b"/player-%08x-%d" % (number, slot))


class Program:
    """One program, in a folder of its own."""

    def __init__(self, folder: Path, steps: Sequence[Step], seed: int) -> None:
        self.folder, self._steps = folder, steps
        self._next = 0
        """The number of its next save."""
        self.outcome = Outcome(seed)

    def lay_out(self) -> None:
        """Make what its player reads."""
        self.folder.mkdir(parents=True)
        (self.folder / "script").write_text(write(self._steps))
        (self.folder / "saved").mkdir()
        self.lay_out_twin("twin")

    def lay_out_twin(self, name: str) -> None:
        """Make what a player reads that nobody disturbs."""
        (self.folder / name).mkdir()
        for step in self._steps:
            if step.verb == SAVE:
                (self.folder / f"{name}.go{step.numbers[0]}").touch()

    def has_ended(self, name: str) -> bool:
        """Whether it has written what it saw."""
        return (self.folder / f"{name}.log").exists()

    def waits(self) -> bool:
        """Whether it waits to be saved."""
        return (self.folder / f"saved.ready{self._next}").exists()

    def is_in_a_moment(self) -> bool:
        """Whether an actor is in a call that ends by itself, and goes on by then, while it waits to be saved."""
        begun: dict[int, int] = {}
        for step in self._steps:
            if step == Step(0, SAVE, (self._next,)):
                break
            if step.verb == "wait_for":
                begun[step.actor] = step.numbers[0]
            elif step.verb == "release":
                begun.pop(step.numbers[0], None)
        return any(kind >= FIRST_MOMENT for kind in begun.values())

    def go_on(self) -> None:
        """Let it go on from where it waits."""
        (self.folder / f"saved.go{self._next}").touch()
        self._next += 1

    def log(self, name: str) -> list[str]:
        """What one has seen: a name that it read may hold any bytes."""
        return (self.folder / f"{name}.log").read_text(errors="backslashreplace").splitlines()

    def compare(self) -> None:
        """Whether both saw the same."""
        twin, saved = self.log("twin"), self.log("saved")
        if twin != saved:
            changes = unified_diff(twin, saved, "twin", "saved", n=0, lineterm="")
            self.outcome.kind, self.outcome.words = "differs", "\n".join(changes)
        elif self.outcome.saves == 0:
            self.outcome.kind = "refused"


class Play:
    """Programs beside each other in one tree."""

    def __init__(self, player: Path, folder: Path, programs: Mapping[int, Sequence[Step]], seed: int) -> None:
        self._player, self._folder = player, folder
        self._programs = [Program(folder / str(number), steps, number) for number, steps in programs.items()]
        self._chance = random.Random(seed)
        self._in_series = self._chance.random() < 0.5
        self._store = Path()
        self._first: subprocess.Popen[bytes]
        self._job: torpor.Job | None = None
        self._touched = False
        """Whether it was asked to be saved."""

    def compare(self) -> list[Outcome]:
        """Play them twice; what became of each."""
        _remove(self._folder)
        # Not on a disk: what it takes to be there after a loss of power is tested elsewhere.
        self._store = Path(tempfile.mkdtemp(prefix="torpor-fuzz-", dir="/dev/shm"))
        try:
            self._undisturbed()
            self._disturbed()
            for program in self._playing():
                program.compare()
            self._find_unsteady()
        except Wrong as wrong:
            self._all_are(wrong.kind, str(wrong))
        except Exception:
            self._all_are("breaks", traceback.format_exc())
        finally:
            shutil.rmtree(self._store, ignore_errors=True)
        return [program.outcome for program in self._programs]

    def _playing(self) -> list[Program]:
        """Those that are still in the play."""
        return [program for program in self._programs if program.outcome.kind == "same"]

    def _all_are(self, kind: str, words: str) -> None:
        for program in self._playing():
            program.outcome.kind, program.outcome.words = kind, words

    def _start(self, name: str, programs: Sequence[Program]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self._player, name, *(program.folder for program in programs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={MARK: str(self._folder)},
            start_new_session=True,
        )

    def _clear(self) -> None:
        """End what is left of it."""
        while left := marked(str(self._folder)):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        remove_ipc([folder for program in self._programs for folder in program.folder.iterdir() if folder.is_dir()])

    def _undisturbed(self) -> None:
        for program in self._programs:
            program.lay_out()
        self._play_twins("twin", self._programs)
        for program in self._programs:
            if not program.has_ended("twin"):
                program.outcome.kind = "idle"

    def _play_twins(self, name: str, programs: Sequence[Program]) -> None:
        twins = self._start(name, programs)
        try:
            with suppress(subprocess.TimeoutExpired):
                twins.wait(PATIENCE)
        finally:
            self._clear()
            twins.kill()
            twins.wait()

    def _find_unsteady(self) -> None:
        """Play twins more of those that saw something else."""
        for number in range(TWINS):
            name = f"again{number}"
            if differing := [program for program in self._programs if program.outcome.kind == "differs"]:
                for program in self._programs:
                    program.lay_out_twin(name)
                self._play_twins(name, self._programs)
            for program in differing:
                if not program.has_ended(name) or program.log(name) != program.log("twin"):
                    program.outcome.kind = "unsteady"

    def _disturbed(self) -> None:
        if not self._playing():
            return
        self._first = self._start("saved", self._playing())
        top = self._first.pid
        try:
            with torpor.Series() as series:
                while waiting := self._await_all():
                    top = self._save(top, waiting, series if self._in_series else None)
            await_(self._is_over, "the tree, after all programs in it")
        finally:
            if self._job:
                with suppress(ProcessLookupError):
                    self._job.send_signal(signal.SIGKILL)
                self._job.wait()
            self._first.kill()
            self._first.wait()
            self._clear()

    def _is_over(self) -> bool:
        return (self._job or self._first).poll() is not None

    def _goes_on(self) -> bool:
        """Whether a program in the play has not come to its end."""
        return not all(program.has_ended("saved") for program in self._playing())

    def _await_all(self) -> list[Program]:
        """Those that wait to be saved, when all others have ended."""

        def settled() -> bool:
            if all(program.waits() or program.has_ended("saved") for program in self._playing()):
                return True
            if self._is_over() and self._goes_on():
                raise Wrong("ends", f"the tree, with {(self._job or self._first).wait()}")
            return False

        try:
            await_(settled, "until all are ready")
        except Wrong as error:
            late = [one for one in self._playing() if not (one.waits() or one.has_ended("saved"))]
            if not self._touched:  # the program's own actors wait for each other, as its twin's might have
                for one in late:
                    one.outcome.kind = "idle"
                raise Wrong("refused", "beside a program that comes to no end") from None
            where = "\n".join(map(_standing, processes.tree((self._job or self._first).pid)))
            raise Wrong(error.kind, f"{error.words}; not {[one.outcome.seed for one in late]}\n{where}") from None
        return [program for program in self._playing() if not program.has_ended("saved")]

    def _save(self, top: int, waiting: Sequence[Program], series: torpor.Series | None) -> int:
        """Save the tree, and wake it if it did not run on; the PID of its root."""
        self._touched = True
        how = self._chance.choice(HOWS)
        again = how != "run" and self._chance.random() < 0.12 and not any(one.is_in_a_moment() for one in waiting)
        # Of a program that has come to its end, processes may still be about to.
        again = again and len(waiting) == len(self._playing())
        # Some are saved while they do something.
        early = [one for one in waiting if self._chance.random() < 0.2 and not again]
        for program in early:
            program.go_on()
        try:
            snapshot = self._checkpoint(top, how, series)
        except Wrong:
            # Those that went on may have come to their end, and the tree with them.
            if self._goes_on():
                raise
            snapshot = None
        if snapshot is not None:
            for program in waiting:
                program.outcome.saves += 1
            if how != "run":
                self._end(how)
                if self._chance.random() < LOST and not again:
                    self._lose(self._image(snapshot))
                top = self._wake(snapshot, how, series)
                for program in waiting:
                    program.outcome.wakes += 1
            if again:
                self._compare_images(top, snapshot)
                for program in waiting:
                    program.outcome.trips += 1
        for program in waiting:
            if program not in early and program.outcome.kind == "same":
                program.go_on()
        return top

    def _checkpoint(self, top: int, how: str, series: torpor.Series | None) -> SnapshotInfo | None:
        """A snapshot, or None: the only program, or all, were refused."""
        while self._goes_on():
            try:
                taken = torpor.checkpoint(top, store=self._store, then=how, series=series)  # type: ignore[arg-type]
                if differing := [notice for notice in taken.notices if notice.startswith(proof.DIFFERING)]:
                    raise Wrong("differs", differing[0])
                return taken
            except Refused as refused:
                words = "".join(f"{reason}\n" for reason in refused.reasons)
                if len(self._programs) == 1:
                    self._programs[0].outcome.words += words
                    return None
                self._set_apart(words)
            except TorporError as error:
                raise Wrong("not saved", f"{how}: {error}") from error
        return None

    def _set_apart(self, words: str) -> None:
        """Take those out of the play that were refused: they are to be played alone."""
        processes = {int(number) for number in re.findall(r"process (\d+)", words)}
        holders: dict[str, set[int]] = {}
        for pid in marked(str(self._folder)):
            with suppress(OSError):
                holders.setdefault(os.readlink(f"/proc/{pid}/fd/{SHARED_FD}").split()[0], set()).add(pid)
        named = {name for name, pids in holders.items() if pids & processes}
        for program in self._playing():
            name = f"/memfd:{program.folder.name}"
            if name in named or not named:
                program.outcome.kind, program.outcome.words = "refused", words
                for pid in holders.get(name, ()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _end(self, how: str) -> None:
        """See to it that nothing is left of the tree that was saved."""
        if how == "stop":
            self._clear()
        if self._job:
            with suppress(ProcessLookupError):
                self._job.send_signal(signal.SIGKILL)
            self._job.wait()
        self._first.kill()
        self._first.wait()

    def _wake(self, snapshot: SnapshotInfo, how: str, series: torpor.Series | None) -> int:
        with open(os.devnull, "r+b") as null:
            try:
                number = null.fileno()
                stdio = (number, number, number)
                self._job = torpor.restore(
                    snapshot, store=self._store, detach=True, stdio=stdio, series=series, prove=True
                )
            except TorporError as error:
                # Connections that the program has ended itself, or who ends a stopped tree, the kernel remembers for a
                # minute, and their ports are not free for that long.
                if re.search("holds? (the|a) port", str(error)):
                    raise Wrong("refused", str(error)) from error
                raise Wrong("lost", f"{how}: {error}") from error
        return self._job.tree_pid

    def _lose(self, image: pb.Tree) -> None:
        """Remove what the wake makes again: files, named pipes and directories of the programs."""
        with_names = set(named(image))
        again = [one.path for one in image.bundles if one.path in with_names] + [one.path for one in image.fifos]
        for path in map(os.fsdecode, again):
            with suppress(FileNotFoundError):
                if path.startswith(f"{self._folder}/") and os.lstat(path).st_nlink == 1:
                    os.unlink(path)
        for folder in reversed(image.folders):
            if folder.used and folder.path.startswith(os.fsencode(self._folder) + b"/"):
                with suppress(OSError):  # the wake does not make all that is in it
                    os.rmdir(folder.path)

    def _compare_images(self, top: int, snapshot: SnapshotInfo) -> None:
        """The woken tree's image is the one that it was woken from."""
        try:
            again = torpor.checkpoint(top, store=self._store)
        except TorporError as error:
            raise Wrong("not saved again", str(error)) from error
        before, after = (self._image(one) for one in (snapshot, again))
        # Who has mapped memory sets its time by the first write to a page, and after a wake each is the first.
        if told := [one for one in differences(before, after) if not re.match(r"shared memory .*: mtime ns", one)]:
            raise Wrong("round trip", "\n".join(told))

    def _image(self, snapshot: SnapshotInfo) -> pb.Tree:
        with torpor.Store(self._store).open(snapshot) as reader:
            return reading.read(reader)


def _remove(folder: Path) -> None:
    """Remove a folder, also what its programs have closed to themselves."""
    if folder.exists():
        subprocess.run(["chmod", "--recursive", "--silent", "u+rwx", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def compare(player: Path, folder: Path, programs: Mapping[int, Sequence[Step]]) -> list[Outcome]:
    """Play programs beside each other, and alone those that were refused, or with which something is wrong.

    Args:
        player: the program.
        folder: a place for all that they do.
        programs: by their seeds.
    """
    seed = next(iter(programs))
    found = Play(player, folder, programs, seed).compare()
    if len(programs) == 1:
        return found
    alone = {
        one.seed: Play(player, folder, {one.seed: programs[one.seed]}, one.seed).compare()[0]
        for one in found
        if one.kind not in ("same", "idle")
    }
    # What is wrong with the tree is said of each program in it; only together: of one.
    rest = {"same", "idle"} | {one.kind for one in alone.values() if one.kind not in GOOD}
    told = []
    for one in found:
        if one.kind not in GOOD and alone[one.seed].kind in GOOD and (one.kind == "differs" or not rest & {one.kind}):
            rest.add(one.kind)
            one.words += f"\n(not alone: beside {[seed for seed in programs if seed != one.seed]})"
            told.append(one)
        else:
            told.append(alone.get(one.seed, one))
    return told


def main(folder: str, player: str, seed: int, count: int) -> None:
    """Play programs, some beside each other, one group after the other."""
    patience.PAUSES, patience.LONG_PAUSES = PAUSES, ()  # type: ignore[assignment]
    for first in range(seed, seed + count, BESIDE):
        programs = {number: generate(number) for number in range(first, min(first + BESIDE, seed + count))}
        for outcome in compare(Path(player), Path(folder) / str(first), programs):
            print(json.dumps(asdict(outcome)), flush=True)
        _remove(Path(folder) / str(first))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
