"""What must never happen, tried: a dumper killed at any instant, a full disk, a damaged image, a host that changed.

The victims (tests/conformance/victims) compute without a pause and check everything they do, so a register, a
byte, a mask or a descriptor that is not as it was shows at once; what they have done is counted in a mapped file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.building import named
from tests.conformance.harness import (
    Actor,
    EngineError,
    Failed,
    Job,
    Stage,
    Subject,
    alive,
    belonging,
    occupied,
    restored,
    wait_until,
)
from tests.conformance.victim import Victim
from torpor import procfs

CONFORMANCE = Path(__file__).parents[1] / "conformance"
VICTIMS = CONFORMANCE / "victims"
REFUSED, CHECKPOINT_FAILED, STORE, DAMAGED = 10, 20, 30, 31  # torpor.errors


def after(seconds: float) -> None:
    """Let an instant come. Busily: a sleep would end at a rounded one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


def is_dead(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return observe.status(pid)["State"][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Hunt:
    """A victim whose dumpers are killed again and again."""

    def __init__(self, stage: Stage, subject: Subject, processes: int, chance: random.Random) -> None:
        self.stage, self.subject, self.chance = stage, subject, chance
        self.driver = stage.driver(subject.actor)
        self.store = subject.directory / "store"
        self.victim = Victim(subject, processes)
        self.victim.runs_on()
        begun = time.monotonic()
        self.driver.checkpoint(subject.root(), self.store, "run")
        self.duration = time.monotonic() - begun
        self.before = subject.settled()
        self.job: Job | None = None
        self.cut = self.windows = 0

    def strike(self, then: str) -> None:
        """Begin a checkpoint, kill its dumper, and see that the victim is none the worse for it."""
        known, root = self.driver.inspect(self.store)[0], self.subject.root()
        with closing(self.driver.ask(do="checkpoint", pid=root, store=str(self.store), then=then)) as talk:
            begun = time.monotonic()
            after(self.chance.uniform(0, self.duration * 1.1))
            with suppress(ProcessLookupError):
                os.kill(talk.handler, signal.SIGKILL)
            try:
                said = str(talk.next(100)["snapshot"])
                self.duration = min(self.duration, time.monotonic() - begun)  # the first one was slow: aim better
            except (EOFError, ConnectionError):
                said = None
                self.cut += 1
        wait_until(lambda: not alive(talk.handler), "the dumper's end")
        # One that was killed dies when it next has a processor.
        wait_until(lambda: is_dead(root) or not procfs.is_ending(root, root), "the end of the target")
        new = self.driver.inspect(self.store)[0] - known
        assert said is None or said in new, "a snapshot that was told is not there"
        if is_dead(root):
            assert then == "kill" and new, "the target is dead, and there is no snapshot of it"
            self.wake(new.pop())
        self.victim.runs_on()
        self.windows = max(self.windows, self.victim.is_clean(self.before))

    def wake(self, snapshot: str) -> None:
        """Restore the victim, which was killed."""
        if self.job:
            assert self.job.status() == -signal.SIGKILL
        elif self.subject.process:
            self.subject.process.wait(100)
        self.job = restored(self.stage, self.subject, snapshot)
        self.before = self.subject.settled()

    def end(self) -> None:
        """Everything published is whole; the victim survives one more turn, and is content."""
        assert not (faults := self.driver.inspect(self.store)[1]), faults
        self.driver.checkpoint(self.subject.root(), self.store, "run")
        assert self.victim.is_clean(self.before) == 0, "a whole checkpoint leaves a dead dumper's window behind"
        self.wake(self.driver.checkpoint(self.subject.root(), self.store, "kill"))
        self.victim.runs_on()
        self.subject.go()
        self.subject.judged()
        assert self.job and self.job.status() == 0, self.subject.output()


def hunt(stage: Stage, actor: Actor, source: str, processes: int, then: str, kills: int) -> None:
    """kill -9 at random instants: the target runs on with nothing of ours in it, or is dead and safely published."""
    with stage.play(VICTIMS / source, actor, rests=False) as subject:
        subject.wait_ready()
        hunt = Hunt(stage, subject, processes, random.Random(f"{source} {then}"))
        for _ in range(kills):
            hunt.strike(then)
        assert hunt.windows <= hunt.cut * processes, f"{hunt.windows} windows have piled up"
        assert hunt.cut > kills / 4, f"only {hunt.cut} of {kills} dumpers were hit: the instants are badly chosen"
        hunt.end()


@pytest.mark.parametrize(
    ("source", "processes", "then", "kills"),
    [
        pytest.param("victim.c", 1, "run", 20, id="threads"),
        pytest.param("victim_catching.c", 1, "run", 12, id="all-signals-caught"),
        pytest.param("victim_tree.c", 4, "run", 12, id="tree"),
        pytest.param("victim.c", 1, "kill", 16, id="then-kill"),
        pytest.param("victim.c", 1, "run", 400, id="threads-often", marks=pytest.mark.soak),
        pytest.param("victim_catching.c", 1, "run", 200, id="all-signals-caught-often", marks=pytest.mark.soak),
        pytest.param("victim_tree.c", 4, "run", 200, id="tree-often", marks=pytest.mark.soak),
        pytest.param("victim.c", 1, "kill", 200, id="then-kill-often", marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(300)
def test_dumper_killed_at_any_instant(
    stage: Stage, user: Actor, source: str, processes: int, then: str, kills: int
) -> None:
    """A target of one's own."""
    hunt(stage, user, source, processes, then, kills)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.soak)])
def test_dumper_killed_that_holds_a_filter_off(stage: Stage, root: Actor, kills: int) -> None:
    """A target whose own system-call filter is in force again as soon as root's dumper is dead."""
    hunt(stage, root, "victim_filtered.c", 1, "run", kills)


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_target_killed_during_the_dump(stage: Stage, user: Actor, times: int) -> None:
    """A target that dies meanwhile ends the checkpoint with an error or a whole snapshot, never with half of one."""
    chance = random.Random(7)
    duration = 0.15
    for _ in range(times):
        with stage.play(VICTIMS / "victim.c", user, rests=False) as subject:
            subject.wait_ready()
            store = subject.directory / "store"
            mark = stage.driver(user).log.stat().st_size
            talk = stage.driver(user).ask(do="checkpoint", pid=subject.pid, store=str(store), then="run")
            with closing(talk):
                after(chance.uniform(0, duration))
                os.kill(subject.pid, signal.SIGKILL)
                try:
                    known = {str(stage.driver(user).hear(talk, mark)["snapshot"])}
                except EngineError as error:
                    ended = error.exit_code == REFUSED and "it has ended" in error.message
                    assert ended or error.exit_code in (CHECKPOINT_FAILED, 11), error
                    known = set()
            wait_until(lambda: not alive(talk.handler), "the dumper's end")  # noqa: B023
            assert stage.driver(user).inspect(store) == (known, [])


# --------------------------------------------------------------------------------------------- storage


def refuse_to_write(stage: Stage, subject: Subject, store: Path, **options: object) -> None:
    """A checkpoint that cannot be written: told as such, nothing listed, nothing lost."""
    before = subject.settled()
    victim = Victim(subject, 1)
    for then in ("run", "kill"):
        with pytest.raises(EngineError) as caught:
            stage.driver(subject.actor).checkpoint(subject.pid, store, then, **options)
        assert caught.value.exit_code == STORE, caught.value
        assert stage.driver(subject.actor).inspect(store) == (set(), [])
        victim.runs_on()
        assert victim.is_clean(before) == 0


def finish(subject: Subject) -> None:
    """The subject, never killed, is content to the end."""
    subject.go()
    subject.judged()
    assert subject.exited() == 0


def test_disk_full(stage: Stage, root: Actor, tmp_path: Path) -> None:
    """A file system with no room left (ENOSPC)."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        with stage.play(VICTIMS / "victim.c", root, rests=False) as subject:
            subject.wait_ready()
            refuse_to_write(stage, subject, tmp_path / "store")
            used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
            assert used < 65536, f"{used} bytes of the failed checkpoint take the room"
            finish(subject)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_file_size_limit(stage: Stage, user: Actor) -> None:
    """The dumper's own limit on the size of files (EFBIG), as an ordinary user meets it."""
    with stage.play(VICTIMS / "victim.c", user, rests=False) as subject:
        subject.wait_ready()
        refuse_to_write(stage, subject, subject.directory / "store", file_size=256 << 10)
        finish(subject)


# --------------------------------------------------------------------------------------------- images


@contextmanager
def frozen(stage: Stage, actor: Actor, source: Path) -> Iterator[tuple[Subject, str]]:
    """A program that was checkpointed and killed, and its snapshot."""
    with stage.play(source, actor, own_session=False) as subject:
        subject.wait_ready()
        pids = list(observe.descendants(subject.pid))
        snapshot = stage.driver(actor).checkpoint(subject.pid, subject.directory / "store", "kill")
        subject.wait_gone(pids)
        yield subject, snapshot


def wakes(stage: Stage, subject: Subject, snapshot: str) -> None:
    """The snapshot can be restored, and the program is content."""
    job = restored(stage, subject, snapshot)
    subject.go()
    subject.judged()
    assert job.status() == 0, subject.output()
    (subject.directory / "verdict").unlink()


def refused(stage: Stage, subject: Subject, snapshot: str) -> str:
    """The snapshot cannot be restored here; why."""
    with pytest.raises(EngineError) as caught:
        stage.driver(subject.actor).restore(snapshot, subject.directory / "store")
    assert caught.value.exit_code == REFUSED, caught.value
    return caught.value.message


def damages(content: bytes, chance: random.Random, cuts: int, flips: int) -> Iterator[tuple[str, bytes]]:
    """Versions of a file as a broken disk or a broken copy would leave it."""
    size = len(content)
    for cut in {0, 1, size // 2, size - 1, *(chance.randrange(size) for _ in range(cuts))}:
        yield f"cut to {cut} of {size} bytes", content[:cut]
    places = {0, size - 1, *(chance.randrange(size) for _ in range(flips))}
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        yield f"a bit flipped in byte {place}", bytes(flipped)
    yield "longer than it was", content + b"junk"
    yield "zeros in the middle", content[: size // 3] + bytes(min(4096, size // 3)) + content[size // 3 + 4096 :]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("cuts", "flips"), [(2, 12), pytest.param(20, 200, marks=pytest.mark.soak)])
def test_damaged_image(stage: Stage, user: Actor, cuts: int, flips: int) -> None:
    """Cut, flipped or grown files of an image are refused with the reason; nothing is ever woken wrong."""
    chance = random.Random(1)
    with frozen(stage, user, named("static.c")) as (subject, snapshot):
        store = subject.directory / "store"
        files = [path for path in store.rglob("*") if path.is_file() and path.stat().st_size > 100]
        assert any("manifest" in path.name for path in files), files
        assert any(path.suffix == ".pack" for path in files), files
        tried = woken = 0
        for path in files:
            content, is_manifest = path.read_bytes(), path.suffix != ".pack"
            mode = path.stat().st_mode
            path.chmod(0o600)
            for what, damaged in damages(content, chance, cuts, flips):
                if damaged == content:
                    continue
                path.write_bytes(damaged)
                tried += 1
                try:
                    talk, pid = stage.driver(user).restore(snapshot, store)
                except EngineError as error:
                    assert error.exit_code == DAMAGED, f"{path.name}, {what}: {error}"
                    continue
                # Only where no block lies may a pack differ: then what was woken is right.
                woken += 1
                assert not is_manifest, f"{path.name}, {what}: was restored"
                subject.killed, subject.process, subject.top = True, None, pid
                subject.go()
                subject.judged()
                assert Job(talk, pid).status() == 0
                (subject.directory / "verdict").unlink()
            path.write_bytes(content)
            path.chmod(mode)
        assert woken < tried / 4, f"{woken} of {tried} damaged images were restored"
        assert not belonging(subject.directory)
        wakes(stage, subject, snapshot)


def test_missing_and_swapped_packs(stage: Stage, user: Actor) -> None:
    """A pack that is not there, or is another one under its name."""
    with frozen(stage, user, named("static.c")) as (subject, snapshot):
        store = subject.directory / "store"
        pack = max(store.rglob("*.pack"), key=lambda path: path.stat().st_size)
        hidden = subject.directory / "hidden"
        for replace in (None, b"", bytes(pack.stat().st_size)):
            pack.rename(hidden)
            if replace is not None:
                pack.write_bytes(replace)
                os.chown(pack, user.uid, user.gid)
                pack.chmod(0o600)
            with pytest.raises(EngineError) as caught:
                stage.driver(user).restore(snapshot, store)
            assert caught.value.exit_code in (DAMAGED, STORE), caught.value
            hidden.rename(pack)
        wakes(stage, subject, snapshot)


# --------------------------------------------------------------------------------------------- the host


def test_pid_taken(stage: Stage, root: Actor) -> None:
    """Root's restore needs the old PIDs: where a stranger has one, it wakes in a capsule instead."""
    with frozen(stage, root, named("static.c")) as (subject, snapshot), occupied(stage, subject.pid):
        wakes(stage, subject, snapshot)


def test_port_taken(stage: Stage, user: Actor) -> None:
    """A port that the program listened on is somebody else's: refused by number, and later it works."""
    with frozen(stage, user, named("tcp.py")) as (subject, snapshot):
        ports = json.loads((subject.directory / "ports").read_text())
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # over what is left of dead connections
            thief.bind(("127.0.0.1", ports[0]))
            thief.listen()
            assert str(ports[0]) in refused(stage, subject, snapshot)
        assert not belonging(subject.directory)
        wakes(stage, subject, snapshot)


def test_mapped_library_changed(stage: Stage, user: Actor) -> None:
    """Code that is mapped must be the code that was: a library that the job has made itself comes back with it."""
    with frozen(stage, user, named("library.py")) as (subject, snapshot):
        library, source = subject.directory / "library.so", subject.directory / "library.c"
        library.rename(subject.directory / "kept")
        source.write_text(source.read_text().replace("the first edition", "another edition!!"))
        subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
        changed = library.read_bytes()
        wakes(stage, subject, snapshot)
        assert library.read_bytes() == changed


def test_log_has_grown(stage: Stage, user: Actor) -> None:
    """A log or history file that others wrote to meanwhile is no reason to refuse."""
    with frozen(stage, user, named("log.py")) as (subject, snapshot):
        with open(subject.directory / "log", "a") as log:
            log.write("somebody else's line\n" * 1000)
        wakes(stage, subject, snapshot)


def test_two_jobs_of_one_snapshot(stage: Stage, user: Actor) -> None:
    """A snapshot can be woken again after the first job has ended, and the image is as it was."""
    with frozen(stage, user, named("threads.c")) as (subject, snapshot):
        for _ in range(2):
            wakes(stage, subject, snapshot)


def test_folder_missing(stage: Stage, user: Actor) -> None:
    """The current folder is gone: refused by name; nothing is left; once it is back the restore works."""
    with frozen(stage, user, named("folder.py")) as (subject, snapshot):
        folder = subject.directory / "folder"
        folder.rename(subject.directory / "elsewhere")
        assert str(folder) in refused(stage, subject, snapshot)
        (subject.directory / "elsewhere").rename(folder)
        wakes(stage, subject, snapshot)


@pytest.mark.parametrize("times", [10, pytest.param(150, marks=pytest.mark.soak)])
def test_restorer_killed(stage: Stage, user: Actor, times: int) -> None:
    """kill -9 of the restore at random instants: the whole tree lives or none of it, and the image still wakes."""
    chance = random.Random(3)
    with frozen(stage, user, VICTIMS / "victim_tree.c") as (subject, snapshot):
        driver, store = stage.driver(user), subject.directory / "store"
        victim = Victim(subject, 4)

        def whole_or_gone() -> bool:
            left = list(observe.descendants(driver.process.pid))[1:]  # it adopts what its handlers leave behind
            if left:
                with suppress(Failed):
                    victim.runs_on(1.0)
                    for pid in left:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
            return not left

        for _ in range(times):
            with closing(driver.ask(do="restore", snapshot=snapshot, store=str(store), files="as-they-are")) as talk:
                after(chance.uniform(0, 0.12))
                os.kill(talk.handler, signal.SIGKILL)
            wait_until(whole_or_gone, "a half-built tree to go")
        job = restored(stage, subject, snapshot, files="as-they-are")  # a tree that lived for a moment has written
        subject.go()
        subject.judged()
        assert job.status() == 0
