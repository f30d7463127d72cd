"""Savers that die, disks that fail or fill, and several at once: what is listed can be restored, always."""

from __future__ import annotations

import errno
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from torpor.errors import StoreError
from torpor.store import SnapshotInfo, Store, holes, shrink

BLOCK = 65536
STEPS = ("open", "pwritev", "ftruncate", "fsync", "close", "rename", "mkdir", "unlink", "rmdir")
"""The calls of `os` by which a saver or a prune changes the disk; a prune punches holes besides."""


def save(store: Store, seed: int, count: int = 3) -> SnapshotInfo:
    """Write a snapshot whose body is its content, so that anyone can tell whether it is whole."""
    contents = [bytes([seed, number]) * (BLOCK // 2) for number in range(count)]
    with store.writer("tree") as saver:
        for content in contents:
            saver.add_blocks(memoryview(content), [BLOCK])
        return saver.publish(bytes(content[k] for content in contents for k in (0, 1)), f"seed {seed}")


def check(store: Store, *expected: str) -> None:
    """Everything listed is whole, and everything expected is listed."""
    assert store.verify() == []
    infos = store.snapshots()
    assert set(expected) <= {info.id for info in infos}
    for info in infos:
        with store.open(info) as reader:
            contents = [reader.read_block(index) for index in range(len(reader.blocks))]
            assert reader.body == b"".join(content[:2] for content in contents)


def only_what_is_needed(store: Store) -> bool:
    """Tell whether the store has no file but locks, manifests and the packs that they name."""
    infos = store.snapshots()
    needed = {f"packs/{pack}.pack" for info in infos for pack in info.packs}
    needed |= {f"snapshots/{info.id}/manifest" for info in infos}
    root = Path(store.path)
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    return needed == {name for name in found if not name.startswith("locks/")}


@contextmanager
def in_child(act: Callable[[], None]) -> Iterator[int]:
    """Run `act` in a forked child, which exits with 0 after it and with 1 when it raises; give its PID."""
    child = os.fork()
    if not child:
        try:
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    try:
        yield child
    finally:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def interrupt_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> Callable[[], int]:
    """Call `act` in place of the `number`-th step from now; give a function that counts the steps."""
    count = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if real is close:
                    real(*args)  # a close that fails closes all the same, close(2)
                    return act()
                act()
            return real(*args, **named)

        return step

    close = os.close
    for name in STEPS:
        patch.setattr(os, name, counting(getattr(os, name)))
    patch.setattr(shrink, "punch", counting(holes.punch))
    return lambda: count


def killed_at(number: int, act: Callable[[], object]) -> int:
    """Run `act` in a child that is killed before the `number`-th step; its exit code, 0 if there are fewer."""

    def die() -> None:
        interrupt_step(pytest.MonkeyPatch(), number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        act()

    with in_child(die) as child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_saver_killed_between_any_two_steps(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = save(store, 0)
    published = 0
    for number in range(1, 200):
        status = killed_at(number, lambda: save(store, 1))
        check(store, first.id)
        if not status:
            break
        assert status == -signal.SIGKILL
        for info in store.snapshots()[1:]:
            published += 1
            store.remove(info.id)
        store.prune(keep_last=1)
        assert only_what_is_needed(store)
        check(store, first.id)
    assert status == 0 and number > 20
    assert 1 <= published < 10, "the snapshot exists only at the very end"


def test_an_import_killed_between_any_two_steps(tmp_path: Path) -> None:
    """The file is imported after that, once what is left was pruned."""
    other, store, file = Store(tmp_path / "other"), Store(tmp_path / "store"), tmp_path / "file"
    first, wanted = save(store, 0), save(other, 1)
    other.export_file(wanted, file)
    published = 0
    for number in range(1, 200):
        status = killed_at(number, lambda: store.import_file(file))
        check(store, first.id)
        if not status:
            break
        assert status == -signal.SIGKILL
        if len(store.snapshots()) == 1:
            store.prune(keep_last=1)
            store.import_file(file)
        else:
            published += 1
        check(store, first.id, wanted.id)
        store.remove(wanted.id)
        store.prune(keep_last=1)
        assert only_what_is_needed(store)
    assert status == 0 and number > 20
    assert 1 <= published < 10, "the snapshot exists only at the very end"


def test_an_import_whose_disk_fails_at_any_step(tmp_path: Path) -> None:
    other, store, file = Store(tmp_path / "other"), Store(tmp_path / "store"), tmp_path / "file"
    first, wanted = save(store, 0), save(other, 1)
    other.export_file(wanted, file)
    failures = 0

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for number in range(1, 200):
        with pytest.MonkeyPatch.context() as patch:
            steps = interrupt_step(patch, number, fail)
            try:
                store.import_file(file)
            except StoreError as error:
                assert os.strerror(errno.EIO) in error.message
                failures += 1
        if len(store.snapshots()) > 1:
            check(store, first.id, wanted.id)
            store.remove(wanted.id)
        assert only_what_is_needed(store)
        check(store, first.id)
        if steps() < number:
            break
    assert failures > 15 and number < 100


@pytest.mark.parametrize("act", ["prune", "remove"])
def test_a_removal_killed_between_any_two_steps(tmp_path: Path, act: str) -> None:
    """Of a snapshot some of whose blocks another one needs; what it had begun the next prune ends."""
    for number in range(1, 200):
        store = Store(tmp_path / str(number))
        first = save(store, 1, count=9)
        with store.writer("tree") as saver:
            contents = [bytes([1, index]) * (BLOCK // 2) for index in (2, 6)]
            saver.add_blocks(memoryview(b"".join(contents)), [BLOCK] * 2)
            second = saver.publish(b"".join(content[:2] for content in contents), "")
        assert second.packs == first.packs
        going = partial(store.prune, 1) if act == "prune" else partial(store.remove, first.id)
        status = killed_at(number, going)
        check(store, second.id)
        if not status:
            break
        assert status == -signal.SIGKILL
        store.prune(keep_last=1)
        check(store, second.id)
        assert only_what_is_needed(store)
        assert store.used() < 4 * BLOCK
    assert status == 0 and number > 15


def test_holes_come_after_the_manifests_are_gone_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a host that loses its power could have a manifest again, and not the blocks that it names."""
    store = Store(tmp_path / "store")
    first = save(store, 1, count=9)
    with store.writer("tree") as saver:
        saver.add_blocks(memoryview(bytes([1, 2]) * (BLOCK // 2)), [BLOCK])
        saver.publish(bytes([1, 2]), "")
    events: list[str] = []

    def noting(what: Callable[..., str], real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            events.append(what(*args))
            return real(*args, **named)

        return call

    monkeypatch.setattr(os, "unlink", noting(lambda name: f"unlink {name}", os.unlink))
    monkeypatch.setattr(
        os, "fsync", noting(lambda fd: "sync " + Path(os.readlink(f"/proc/self/fd/{fd}")).name, os.fsync)
    )
    monkeypatch.setattr(shrink, "punch", noting(lambda *_: "punch", holes.punch))
    store.remove(first.id)
    before = events[: events.index("punch")]
    assert before[:2] == ["unlink manifest", "sync snapshots"]
    check(store)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_a_disk_that_fails_at_any_step(tmp_path: Path, code: int) -> None:
    """The saver says so, or, where it only looked for known blocks, does without."""
    store = Store(tmp_path / "store")
    first = save(store, 0)
    failures = 0

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    for number in range(1, 200):
        with pytest.MonkeyPatch.context() as patch:
            steps = interrupt_step(patch, number, fail)
            try:
                info: SnapshotInfo | None = save(store, 1)
            except StoreError as error:
                assert os.strerror(code) in error.message and error.advice
                failures += 1
                info = None
        if info:
            check(store, info.id)
            store.remove(info.id)
        assert [info.id for info in store.snapshots()] == [first.id]
        assert only_what_is_needed(store)
        check(store, first.id)
        if steps() < number:
            break
    assert failures > 15 and number < 100


def test_a_saver_killed_at_random_instants(tmp_path: Path) -> None:
    """With a thread that writes and one that publishes, and a reader that is told each id."""
    store = Store(tmp_path / "store")
    dice = random.Random(1)
    told: list[str] = []
    for _ in range(15):
        reading, writing = os.pipe()

        def saving(out: int = writing) -> None:
            for seed in range(250):
                os.write(out, save(store, seed).id.encode() + b"\n")

        with in_child(saving) as child:
            os.close(writing)
            select.select([reading], [], [])  # it has begun
            select.select([], [], [], dice.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        with open(reading) as ids:
            told += [line.strip() for line in ids if line.endswith("\n")]
        check(store, *told)
    store.prune(keep_last=10_000)
    assert only_what_is_needed(store)
    check(store, *told)


def test_savers_readers_and_prunes_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def saving() -> None:
        for seed in range(12):
            save(store, seed)

    def pruning() -> None:
        done = 0
        while done < 3:
            try:
                store.prune(keep_last=2)
                done += 1
            except StoreError as error:
                assert "busy" in error.message

    with in_child(saving) as one, in_child(saving) as two, in_child(pruning) as three:
        for child in (one, two, three):
            assert os.waitpid(child, 0)[1] == 0
    check(store)
    store.prune(keep_last=1)
    assert only_what_is_needed(store) and len(store.snapshots()) == 1
    check(store)


@contextmanager
def saving(store: Store) -> Iterator[Callable[[], None]]:
    """A child that is in the midst of saving; gives what kills it."""
    reading, writing = os.pipe()

    def hold() -> None:
        with store.writer("tree") as saver:
            saver.add_blocks(memoryview(b"abc"), [3])
            os.write(writing, b"x")
            signal.pause()

    with in_child(hold) as child:
        assert os.read(reading, 1) == b"x"

        def kill() -> None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

        yield kill
    os.close(reading)
    os.close(writing)


def test_a_killed_saver_holds_no_lock(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with saving(store) as kill:
        with pytest.raises(StoreError, match="busy"):
            store.prune(0)
        kill()
    report = store.prune(0)
    assert len(report.leftovers) == 1 and report.freed > 4096
    assert only_what_is_needed(store)


def test_a_removal_beside_a_saver_that_is_killed(tmp_path: Path) -> None:
    """While it saves, what the removed one had stays on the disk; when it is dead, nothing waits for it."""
    store = Store(tmp_path / "store")
    one, other, third = (save(store, seed) for seed in (1, 2, 3))
    with saving(store) as kill:
        report = store.remove(one.id)
        assert report.in_use and report.kept
        check(store, other.id, third.id)
        kill()
        report = store.remove(other.id)
        assert not report.in_use and not report.kept
    assert store.ids() == [third.id]
    check(store, third.id)
    store.prune(keep_last=1)
    assert only_what_is_needed(store)
    check(store, third.id)


def test_an_interrupted_write_cannot_be_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with store.writer("tree") as saver:
        monkeypatch.setattr(os, "pwritev", interrupted)
        with pytest.raises(KeyboardInterrupt):
            saver.add_blocks(memoryview(b"abc"), [3])
        monkeypatch.undo()
        with pytest.raises(StoreError, match="interrupted"):
            saver.add_blocks(memoryview(b"abc"), [3])
        with pytest.raises(StoreError, match="interrupted"):
            saver.publish(b"", "")
    assert store.snapshots() == [] and only_what_is_needed(store)


FILL = """
    import sys
    from torpor.errors import StoreError
    from torpor.store import Store
    import os
    store = Store(sys.argv[1])
    with store.writer("tree") as saver:
        kept = saver.publish(b"", "")
    try:
        with store.writer("tree") as saver:
            for _ in range(64):
                saver.add_blocks(memoryview(os.urandom(1 << 20)), [65536] * 16)
            saver.publish(b"", "")
    except StoreError as error:
        print(error)
    assert store.snapshots() == [kept] and store.verify() == []
    print(sorted(os.listdir(os.path.join(store.path, "packs"))))
"""


def fill(path: Path, *before: str, **options: Any) -> str:
    script = textwrap.dedent(FILL)
    command = [*before, sys.executable, "-c", script, str(path)]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_limit_on_file_size(tmp_path: Path) -> None:
    limit = 3 << 20
    out = fill(tmp_path / "store", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert "File too large" in out and "ulimit -f" in out and out.endswith("[]\n")


def test_a_full_disk(tmp_path: Path) -> None:
    """On a real tmpfs of 4 MiB, in a mount namespace of its own, so that it goes with the process."""
    unshare = shutil.which("unshare")
    if not unshare:
        pytest.skip("there is no unshare (util-linux)")
    space = [unshare, "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this host gives no mount namespace")
    mount = 'mount -t tmpfs -o size=4m,mode=700 none "$0" && exec "$@"'
    out = fill(tmp_path, *space, "sh", "-c", mount, str(tmp_path))
    assert "No space left on device (" in out and " free)" in out
    assert "torpor prune" in out and out.endswith("[]\n")


def take_for_dead(store: Store) -> None:
    """Remove the locks, as another host does with those of a process that stands still for minutes."""
    for lock in Path(store.path, "locks").glob("*,*"):
        lock.unlink()


def test_a_saver_that_stands_still_between_any_two_steps(tmp_path: Path) -> None:
    """Others take it for dead, remove what it refers to, and save. It says so, or what it has published is whole."""
    lost = 0
    for number in range(1, 200):
        store = Store(tmp_path / str(number))
        first = save(store, 1)

        def others(store: Store = store, first: SnapshotInfo = first) -> None:
            take_for_dead(store)
            store.remove(first.id)
            store.prune(9)
            save(store, 2)

        with pytest.MonkeyPatch.context() as patch:
            steps = interrupt_step(patch, number, others)
            try:
                info: SnapshotInfo | None = save(store, 1)
            except StoreError as error:
                assert "stood still for minutes" in error.message
                lost += 1
                info = None
        check(store, *[info.id] if info else [])
        if steps() < number:
            break
        store.prune(9)
        assert only_what_is_needed(store)
        check(store, *[info.id] if info else [])
    assert lost > 10 and number < 100


@pytest.mark.parametrize("act", ["prune", "remove"])
def test_a_removal_that_stands_still_between_any_two_steps(tmp_path: Path, act: str) -> None:
    """Others take it for dead, and refer to blocks of what it is about to remove. Their snapshots stay whole."""
    for number in range(1, 200):
        store = Store(tmp_path / str(number))
        first = save(store, 1, count=9)
        save(store, 2)
        saved: list[SnapshotInfo] = []

        def others(store: Store = store, saved: list[SnapshotInfo] = saved) -> None:
            take_for_dead(store)
            saved.append(save(store, 1, count=5))

        with pytest.MonkeyPatch.context() as patch:
            steps = interrupt_step(patch, number, others)
            try:
                report = store.prune(1) if act == "prune" else store.remove(first.id)
                assert first in report.snapshots
            except StoreError as error:
                assert "stood still for minutes" in error.message
        check(store, *(info.id for info in saved))
        if steps() < number:
            break
        store.prune(9)
        assert only_what_is_needed(store)
        check(store, *(info.id for info in saved))
    assert number > 15 and not saved
