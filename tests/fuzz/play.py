"""Plays programs twice, once undisturbed and once saved and woken, and compares what they saw.

python -m tests.fuzz.play FOLDER PLAYER SEED COUNT      as the user that it runs as; a line of JSON for each program
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import unified_diff
from pathlib import Path

import torpor
from tests.fuzz.grammar import SAVE, Step, generate, write
from tests.leaks import MARK, marked
from torpor.errors import Refused, TorporError

GOOD = ("same", "refused", "idle")
"""Kinds of outcomes as they should be."""
PATIENCE = 20.0
HOWS = ("kill", "kill", "run", "stop")


class Wrong(Exception):
    """What came back is not what went in, or did not come back."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind = kind


@dataclass
class Outcome:
    """What became of a program."""

    seed: int
    kind: str
    """"same", "refused" (at all saves; it ran on, and saw the same), "idle" (undisturbed, too, it comes to no end), or
    what is wrong."""
    words: str = ""
    saves: int = 0
    """How often it was saved, in any way."""
    wakes: int = 0


def await_(look: Callable[[], bool], what: str) -> None:
    """Wait for something that can be seen."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise Wrong("hangs", what)
        time.sleep(0.001)


class Play:
    """One program, in a folder of its own."""

    def __init__(self, player: Path, folder: Path, steps: Sequence[Step], seed: int) -> None:
        self._player, self._folder, self._steps = player, folder, steps
        self._rounds = [step.numbers[0] for step in steps if step.verb == SAVE]
        self._chance = random.Random(seed)
        self._job: torpor.Job | None = None
        self.outcome = Outcome(seed, "same")

    def compare(self) -> Outcome:
        """Play it twice."""
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / "script").parent.mkdir(parents=True)
        (self._folder / "script").write_text(write(self._steps))
        try:
            twin = self._start("twin")
            for number in self._rounds:
                (self._folder / f"twin.go{number}").touch()
            try:
                self._end(twin, "twin")
            except Wrong as wrong:
                raise Wrong("idle", str(wrong)) from None
            self._disturbed()
            twin_saw, saved_saw = (
                (self._folder / f"{name}.log").read_text().splitlines() for name in ("twin", "saved")
            )
            if twin_saw != saved_saw:
                changes = unified_diff(twin_saw, saved_saw, "twin", "saved", n=0, lineterm="")
                raise Wrong("differs", "\n".join(changes))
            if self.outcome.saves == 0:
                self.outcome.kind = "refused"
        except Wrong as wrong:
            self.outcome.kind, self.outcome.words = wrong.kind, str(wrong)
        except Exception:
            self.outcome.kind, self.outcome.words = "breaks", traceback.format_exc()
        return self.outcome

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        (self._folder / name).mkdir()
        with open(self._folder / f"{name}.out", "wb") as out:
            return subprocess.Popen(
                [self._player, self._folder / "script", self._folder / name],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={MARK: str(self._folder)},
                start_new_session=True,
            )

    def _end(self, program: subprocess.Popen[bytes], name: str) -> None:
        try:
            status = program.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Wrong("hangs", f"the {name}") from None
        finally:
            self._clear()
            if program.poll() is None:
                program.kill()
                program.wait()
        if status:
            raise Wrong("ends", f"the {name} with {status}")

    def _clear(self) -> None:
        """End what is left of it."""
        while left := marked(str(self._folder)):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _disturbed(self) -> None:
        program = self._start("saved")
        top = program.pid
        try:
            with torpor.Series() as series:
                in_series = self._chance.random() < 0.5
                for number in self._rounds:
                    ready = self._folder / f"saved.ready{number}"
                    await_(lambda: ready.exists() or self._over(program), "until it is ready")  # noqa: B023
                    if not ready.exists():
                        raise Wrong("ends", f"before its save {number}")
                    how = self._chance.choice(HOWS)
                    top = self._save(program, top, how, series if in_series else None)
                    (self._folder / f"saved.go{number}").touch()
            if self._job is None:
                self._end(program, "saved")
            elif (code := self._wait_job(self._job)) != 0:
                raise Wrong("ends", f"woken, with {code}")
        finally:
            if self._job:
                try:
                    self._job.send_signal(signal.SIGKILL)
                    self._job.wait()
                except ProcessLookupError:
                    pass  # it has ended
            program.kill()
            program.wait()
            self._clear()

    def _over(self, program: subprocess.Popen[bytes]) -> bool:
        return (self._job or program).poll() is not None

    def _wait_job(self, job: torpor.Job) -> int:
        await_(lambda: job.poll() is not None, "the woken one")
        return job.wait()

    def _save(self, program: subprocess.Popen[bytes], top: int, how: str, series: torpor.Series | None) -> int:
        store = self._folder / "store"
        try:
            snapshot = torpor.checkpoint(top, store=store, then=how, series=series)  # type: ignore[arg-type]
        except Refused as refused:
            self.outcome.words += "".join(f"{reason}\n" for reason in refused.reasons)
            return top
        except TorporError as error:
            raise Wrong("not saved", f"{how}: {error}") from error
        self.outcome.saves += 1
        if how == "run":
            return top
        if how == "stop":
            self._clear()
        if self._job:
            self._job.send_signal(signal.SIGKILL)
            self._job.wait()
        program.kill()
        program.wait()
        with open(os.devnull, "r+b") as null:
            try:
                number = null.fileno()
                job = torpor.restore(snapshot, store=store, detach=True, stdio=(number, number, number), series=series)
            except TorporError as error:
                # Who ends a stopped tree leaves its connections to the kernel, which holds their ports for a minute.
                if how == "stop" and "hold" in str(error):
                    raise Wrong("refused", str(error)) from error
                raise Wrong("lost", f"{how}: {error}") from error
        self._job = job
        self.outcome.wakes += 1
        return job.tree_pid


def main(folder: str, player: str, seed: int, count: int) -> None:
    """Play programs, one after the other."""
    for number in range(seed, seed + count):
        place = Path(folder) / str(number)
        outcome = Play(Path(player), place, generate(number), number).compare()
        print(json.dumps(asdict(outcome)), flush=True)
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
