"""The host loses its power: what was published is there and whole, whatever was written and not synced is gone.

Each history below is recorded once (power.py). Then the power fails after each of its calls, in all the
ways that matter, and the store is opened as it is left. To leave a line's fsyncs out of the replay is to take the line
out of the code, for the store does nothing in another way without them.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import marshal
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import torpor.store
from tests.unit.store.power import Choice, Disk, Event, HostKilled, Recorder, Site, Tree, build, tree_of
from torpor.errors import StoreError, TorporError
from torpor.store import SnapshotInfo, Store, writer
from torpor.store import store as store_module
from torpor.store.shrink import shrink
from torpor.util import whole_files

PLACE = "data/torpor"
"""Where the store is made, two directories deep, beneath a directory that is on disk."""
IN_USE = ".nfs0001"
"""What NFS calls a file that is removed while somebody has it open."""
EXPORTED = "carried away"
"""A file beside the store's directory, in a directory that is on disk."""
SIZES = (5000, 4096, 300)


def save(store: Store, *numbers: int) -> SnapshotInfo:
    """Write a snapshot of such blocks; its body is their numbers."""
    with store.writer("tree") as saver:
        parts = [bytes([number + 1]) * SIZES[number % 3] for number in numbers]
        saver.add_blocks(memoryview(b"".join(parts)), list(map(len, parts)))
        return saver.publish(bytes(numbers), "a test")


class History:
    """What is done to a store, with notes of what may be relied on from then on."""

    def __init__(self, root: Path) -> None:
        """Begin with nothing."""
        self.root = root
        self.recorder = Recorder(root)
        self.events = self.recorder.events
        self.store = Store(root / PLACE)

    def save(self, *numbers: int) -> SnapshotInfo:
        info = save(self.store, *numbers)
        self.recorder.note("is", info.id)
        return info

    def pin(self, info: SnapshotInfo) -> None:
        self.store.pin(info.id)
        self.recorder.note("pinned", info.id)

    def remove(self, *infos: SnapshotInfo) -> None:
        for info in infos:
            self.recorder.note("going", info.id)
        self.store.discard(infos)
        for info in infos:
            self.recorder.note("gone", info.id)

    def export(self, info: SnapshotInfo) -> None:
        self.store.export_file(info.id, self.root / EXPORTED)
        self.recorder.note("exported", info.id)

    def prune(self, keep_last: int) -> None:
        report = self.store.prune(keep_last, dry_run=True)
        kept = {info.id for info in self.store.snapshots()} - {info.id for info in report.snapshots}
        for info in report.snapshots:
            self.recorder.note("going", info.id)
        for id in kept if report.snapshots else ():
            self.recorder.note("kept", id)
        assert self.store.prune(keep_last).snapshots == report.snapshots
        for info in report.snapshots:
            self.recorder.note("gone", info.id)


def a_life(history: History) -> None:
    """Saves that share blocks, a pin, a removal that makes holes, a prune."""
    first = history.save(0, 1, 2, 3)
    second = history.save(1, 4)
    history.pin(second)
    history.save(2, 4, 5)
    history.remove(first)
    history.save(2, 6)
    history.prune(1)
    assert len(history.store.snapshots()) == 2


def an_export(history: History) -> None:
    """The snapshot is removed when its file is there."""
    first = history.save(0, 1, 2)
    history.export(first)
    history.remove(first)


def a_removal_beside_a_reader(history: History) -> None:
    """It cannot look at the packs."""
    first = history.save(0, 1)
    with history.store.open(history.save(1, 2)):
        history.remove(first)


def a_removal_of_a_directory_that_stays(history: History) -> None:
    """NFS leaves a file in it that somebody has open."""
    first = history.save(0, 1, 2)
    history.save(1)
    folder = Path(history.store.path, "snapshots", first.id)
    os.close(os.open(folder / IN_USE, os.O_WRONLY | os.O_CREAT, 0o600))
    history.remove(first)
    assert folder.is_dir()


def a_removal_killed_while_another_looks(history: History, number: int) -> None:
    """What it did before its end is seen, and is not on disk."""
    first = history.save(0, 1, 2)
    second = history.save(0, 4)
    history.save(1, 4)
    real = shrink

    def late(*args: object, **named: object) -> object:
        patch.undo()
        history.recorder.note("going", second.id)
        with history.recorder.killed_at(number):
            Store(history.store.path).remove(second.id)
        return real(*args, **named)  # type: ignore[arg-type]

    patch = pytest.MonkeyPatch()
    patch.setattr(store_module, "shrink", late)
    history.remove(first)


def a_first_save_killed(history: History, number: int) -> None:
    """Then another one comes to its end."""
    with history.recorder.killed_at(number):
        save(history.store, 0, 1)
    history.save(1, 2)


def a_save_killed_before_a_prune(history: History, number: int) -> None:
    """Who keeps one keeps that one, if it is listed already."""
    history.save(0, 1)
    with history.recorder.killed_at(number):
        save(history.store, 1, 2)
    history.prune(1)


def a_removal_killed(history: History, number: int, then: int) -> None:
    """Then a prune ends what it had begun, or another save is made."""
    first = history.save(0, 1, 2, 3)
    history.save(1, 4)
    with history.recorder.killed_at(number):
        history.remove(first)
    history.prune(9) if then else history.save(0, 4)


def a_prune_killed(history: History, number: int) -> None:
    """Then another save is made."""
    history.save(0, 1, 2, 3)
    history.save(1, 4)
    with history.recorder.killed_at(number):
        history.prune(1)
    history.save(0, 4)


def a_save_that_fails(history: History, number: int) -> None:
    """The disk tells at an fsync that it has not written what it was to."""
    history.save(0, 1)
    history.recorder.fail_sync = number
    try:
        history.save(1, 2)
    except StoreError:
        pass
    finally:
        history.recorder.fail_sync = 0


HISTORIES: list[Callable[[History], None]] = [
    a_life,
    an_export,
    a_removal_beside_a_reader,
    a_removal_of_a_directory_that_stays,
    *(partial(a_removal_killed_while_another_looks, number=number) for number in range(1, 13)),
    *(partial(a_first_save_killed, number=number) for number in range(1, 27)),
    *(partial(a_save_killed_before_a_prune, number=number) for number in range(1, 21)),
    *(partial(a_removal_killed, number=number, then=then) for number in range(1, 13) for then in (0, 1)),
    *(partial(a_prune_killed, number=number) for number in range(1, 20)),
    *(partial(a_save_that_fails, number=number) for number in range(1, 8)),
]


def name_of(history: Callable[[History], None]) -> str:
    if isinstance(history, partial):
        return f"{history.func.__name__}-{'-'.join(map(str, history.keywords.values()))}"
    return history.__name__


def record(act: Callable[[History], None], root: Path) -> list[Event]:
    """Do it, and see that nothing the disk has to tell was missed.

    Ids and times are counted, so that equal histories leave equal disks.
    """
    root.mkdir(parents=True)
    history = History(root)
    count = itertools.count(1)
    with history.recorder.recording(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "new_id", lambda _: f"20260101-{next(count):09}-aaaaaa")
        patch.setattr(time, "time_ns", lambda: 0)
        act(history)
    disk = Disk()
    for event in history.events:
        disk.apply(event)
    assert disk.crash(lambda _: True) == tree_of(root), "the store changes the disk by a call that is not recorded"
    return history.events


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Event]]:
    """The events of each history, by its name."""
    root = tmp_path_factory.mktemp("recorded")
    return {name_of(act): record(act, root / name_of(act)) for act in HISTORIES}


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory: of what is made there thousands of times, nothing need come to a disk."""
    with tempfile.TemporaryDirectory(prefix="torpor-test-", dir="/dev/shm") as made:
        yield Path(made)


def ways(unsynced: Sequence[int], disk: Disk, dice: random.Random, tries: int) -> Iterator[Choice]:
    """What may be on disk of that which was not synced."""
    yield lambda _: False
    yield lambda _: True
    yield lambda number: disk.nodes[number].is_file
    yield lambda number: not disk.nodes[number].is_file
    for one in unsynced:
        yield lambda number, one=one: number == one  # type: ignore[misc]
        yield lambda number, one=one: number != one  # type: ignore[misc]
        yield partial(_last_ones_lost, {number: len(disk.nodes[number].changes) for number in unsynced}, one)
    for _ in range(tries):
        share = dice.random()
        yield lambda _, share=share: dice.random() < share  # type: ignore[misc]


def _last_ones_lost(left: dict[int, int], one: int, number: int) -> bool:
    """All changes of `one` are on disk, and of every other directory all but the last."""
    left[number] -= 1
    return number == one or left[number] > 0


class Promises:
    """What whoever uses the store may rely on."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.there: set[str] = set()
        self.kept: set[str] = set()
        """Those for whose sake a prune takes others, which may be there as long as these are not on disk."""
        self.going: set[str] = set()
        self.gone: set[str] = set()
        self.pinned: set[str] = set()
        self.exported: set[str] = set()

    def take(self, event: Event) -> None:
        """Take in a note."""
        if event.name == "is":
            self.there.add(event.to)
        elif event.name == "kept":
            self.kept.add(event.to)
        elif event.name == "pinned":
            self.pinned.add(event.to)
        elif event.name == "exported":
            self.exported.add(event.to)
        elif event.name in ("going", "gone"):
            self.there.discard(event.to)
            self.pinned.discard(event.to)
            self.going.add(event.to)
            if event.name == "gone":
                self.gone.add(event.to)

    def state(self) -> tuple[list[str], ...]:
        """To compare."""
        return tuple(map(sorted, (self.there, self.kept, self.going, self.gone, self.pinned, self.exported)))


def broken(store: Store, promises: Promises) -> str:
    """Tell which promise a store does not keep; "" when all is well."""
    listed = store.snapshots()
    ids = {info.id for info in listed}
    lost = promises.there - ids
    if promises.going - ids:
        lost |= promises.kept - ids
    if lost:
        return f"lost: {lost}"
    if promises.gone & ids:
        return f"back again: {promises.gone & ids}"
    damaged = [f"{info.id}: {info.damage}" for info in listed if info.damage]
    if Path(store.path, "snapshots").exists():
        damaged += map(str, store.verify())
    if damaged:
        return f"damaged: {damaged}"
    for info in listed:
        if not is_whole(store, info):
            return f"{info.id} has another content"
    for id in promises.exported:
        root = Path(store.path.removesuffix(PLACE))
        other = Store(root / "other")
        if not is_whole(other, other.import_file(root / EXPORTED)):
            return f"{id} was exported with another content"
    for id in promises.pinned:
        if not Path(store.path, "snapshots", id, "pinned").exists():
            return f"{id} is pinned no longer"
    return ""


def is_whole(store: Store, info: SnapshotInfo) -> bool:
    """Whether a snapshot has the blocks that its body names."""
    with store.open(info) as reader:
        return [reader.read_block(row)[0] - 1 for row in range(len(reader.blocks))] == list(reader.body)


def used_again(store: Store) -> str:
    """Tell why a store cannot be used on as any other; "" when it can."""
    before = {info.id for info in store.snapshots()}
    new = save(store, 1, 7)
    store.prune(keep_last=len(before) + 1)
    infos = store.snapshots()
    if {info.id for info in infos} != before | {new.id} or store.verify():
        return "a new save, or a prune after it, takes something away"
    needed = {f"packs/{pack}.pack" for info in infos for pack in info.packs}
    needed |= {f"snapshots/{info.id}" for info in infos}
    paths = [path for name in ("packs", "snapshots") for path in Path(store.path, name).iterdir()]
    left = {f"{path.parent.name}/{path.name}" for path in paths if not (path / IN_USE).exists()} - needed
    return f"left for ever: {left}" if left else ""


def faults(events: Sequence[Event], scratch: Path, skip: Site | None = None, tries: int = 4) -> Iterator[str]:
    """Let the power fail after each event, in different ways; give what is wrong then."""
    dice = random.Random(1)
    disk, promises = Disk(skip), Promises()
    begin = max(at for at, event in enumerate(events) if not at or event.name == "begin")
    for at, event in enumerate(events):
        disk.apply(event)
        if event.what == "note":
            promises.take(event)
        if at < begin:
            continue
        for choose in ways(disk.unsynced(), disk, dice, tries):
            tree = disk.crash(choose)
            key = hashlib.sha256(marshal.dumps((tree, promises.state()), 2)).digest()  # 2: without references
            if key not in looked_at:
                looked_at[key] = broken_after(tree, promises, scratch)
            fault = looked_at[key]
            if fault:
                yield f"after call {at} ({event.what} {event.name} {event.to}): {fault}"


numbers = itertools.count()
looked_at: dict[bytes, str] = {}
"""What is wrong with a disk that was looked at before."""


def broken_after(tree: Tree, promises: Promises, scratch: Path) -> str:
    """Make what is left on a disk, and look at it."""
    root = scratch / str(next(numbers))
    root.mkdir()
    build(tree, root)
    store = Store(root / PLACE)
    try:
        with not_waiting():
            return broken(store, promises) or used_again(store)
    except TorporError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(root)


@contextmanager
def not_waiting() -> Iterator[None]:
    """Let fsync do nothing: the power is on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def test_the_histories_end_at_every_call(recorded: dict[str, list[Event]]) -> None:
    """Those with a number are as many as there are calls, and one more, which comes to its end."""
    reached: dict[str, list[bool]] = {}
    for act in HISTORIES:
        if isinstance(act, partial):
            family = f"{act.func.__name__} {act.keywords.get('then', '')}"
            begun = any(event.name == "begin" for event in recorded[name_of(act)])
            reached.setdefault(family, []).append(begun)
    assert len(reached) == 7
    for family, ends in reached.items():
        assert ends == [True] * (len(ends) - 1) + [False], family


@pytest.mark.parametrize("name", list(dict.fromkeys(name_of(act).partition("-")[0] for act in HISTORIES)))
def test_power_fails_after_any_call(recorded: dict[str, list[Event]], scratch: Path, name: str) -> None:
    for history, events in recorded.items():
        if history.partition("-")[0] == name:
            assert [f"{history}: {fault}" for fault in faults(events, scratch)] == []


@pytest.mark.soak
def test_power_fails_in_many_ways(recorded: dict[str, list[Event]], scratch: Path) -> None:
    for history, events in recorded.items():
        assert [f"{history}: {fault}" for fault in faults(events, scratch, tries=150)] == []


def sync_sites() -> dict[str, Site]:
    """Every line of the store that syncs, and of what it calls for that, by its function."""
    found: dict[str, Site] = {}
    for path in sorted([*Path(torpor.store.__file__).parent.glob("*.py"), Path(whole_files.__file__)]):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for call in ast.walk(function):
                    if isinstance(call, ast.Attribute) and call.attr in ("fsync", "fdatasync"):
                        count = sum(name.startswith(f"{path.stem}.{function.name}") for name in found)
                        found[f"{path.stem}.{function.name}-{count + 1}"] = path.name, call.lineno
    return found


@pytest.mark.parametrize("site", sync_sites().values(), ids=sync_sites().keys())
def test_every_fsync_is_needed(recorded: dict[str, list[Event]], scratch: Path, site: Site) -> None:
    """Without it one of the histories ends badly: this file's tests fail, and so does the store."""
    concerned = [events for events in recorded.values() if any(event.site == site for event in events)]
    assert any(True for events in concerned for _ in faults(events, scratch, skip=site, tries=0))


def test_killed_means_that_nothing_is_done_any_more(tmp_path: Path) -> None:
    """Else the histories with a kill would be none."""
    recorder = Recorder(tmp_path)
    with recorder.recording(), recorder.killed_at(2):
        os.mkdir(tmp_path / "a")
        try:
            os.mkdir(tmp_path / "b")
        except HostKilled:
            os.mkdir(tmp_path / "c")
    assert recorder.killed and [path.name for path in tmp_path.iterdir()] == ["a"]
