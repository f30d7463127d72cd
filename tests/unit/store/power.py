"""A file system as a host that loses its power leaves it: what was written and not synced may be gone.

A `Recorder` stands in for the calls of `os` by which the store changes the disk, and notes what they do. `Disk` replays
any beginning of that. Of file data and directory entries that were not synced, `Disk.crash` lets any part be lost: the
pages of a file, its length and the entries of each directory by themselves, in any order, as POSIX allows. A rename
within a directory happens or does not, whole.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from torpor.store import holes, shrink

PAGE = 4096
Site = tuple[str, int]
"""A call in the store's code: the name of its file, and the line."""


class HostKilled(BaseException):
    """The process is killed: from here on it changes nothing."""


@dataclass(frozen=True)
class Event:
    """What one call did. Files and directories have numbers, in the order in which they were made."""

    what: Literal["make", "write", "cut", "punch", "rename", "link", "remove", "sync", "note"]
    node: int = 0
    """The file, or the directory whose entries change."""
    name: str = ""
    to: str = ""
    made: int = 0
    start: int = 0
    end: int = 0
    data: bytes | None = None
    """Of "make": None for a directory."""
    site: Site = ("", 0)


@dataclass
class Recorder:
    """Notes the calls that change what is beneath `root`, an empty directory that is on disk."""

    root: Path
    events: list[Event] = field(default_factory=list)
    kill_at: int = 0
    """Before which call from now on, counted from 1, the process is killed; 0 for none."""
    fail_sync: int = 0
    """Which fsync from now on fails with EIO; 0 for none."""

    def __post_init__(self) -> None:
        """Know the root as number 0."""
        self._numbers = {self.root.stat().st_ino: 0}
        self._made = 0
        self._dead = False

    def note(self, what: str, about: str) -> None:
        """Put an event of the test's own among them."""
        self.events.append(Event("note", name=what, to=about))

    @contextmanager
    def killed_at(self, number: int) -> Iterator[None]:
        """Kill what runs in the block before a call; `killed` tells afterwards whether it came to that."""
        self.kill_at, self.killed = number, False
        try:
            yield
        except HostKilled:
            self.killed = True
            self.note("begin", "")
        finally:
            self.kill_at, self._dead = 0, False

    def _step(self) -> None:
        if self.kill_at and not self._dead:
            self.kill_at -= 1
            self._dead = not self.kill_at
            self.kill_at = self.kill_at or -1
        if self._dead:
            raise HostKilled

    def _parent(self, path: str, folder: int | None) -> tuple[int | None, str]:
        """The number of the directory that has an entry, and the entry's name."""
        above, name = os.path.split(path)
        status = os.stat(above or ".", dir_fd=folder) if above or folder is None else os.fstat(folder)
        return self._numbers.get(status.st_ino), name

    def _note(self, event: Event) -> None:
        self.events.append(event)

    def _new(self, path: str, folder: int | None, data: bytes | None) -> None:
        parent, name = self._parent(path, folder)
        if parent is not None:
            self._made += 1
            self._numbers[os.stat(path, dir_fd=folder, follow_symlinks=False).st_ino] = self._made
            self._note(Event("make", parent, name, made=self._made, data=data))

    def _node(self, fd: int) -> int | None:
        return self._numbers.get(os.fstat(fd).st_ino)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Stand in for the calls of `os` in the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (
                "open",
                "mkdir",
                "pwritev",
                "ftruncate",
                "rename",
                "replace",
                "link",
                "unlink",
                "rmdir",
                "fsync",
            ):
                patch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
            patch.setattr(shrink, "punch", self._punch(holes.punch))
            yield

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            try:
                os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
                new = False
            except FileNotFoundError:
                new = bool(flags & os.O_CREAT)
            if new:
                self._step()
            fd = real(path, flags, mode, dir_fd=dir_fd)
            if new:
                self._new(os.fspath(path), dir_fd, b"")
            return fd

        return call

    def _mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            self._step()
            real(path, mode, dir_fd=dir_fd)
            self._new(os.fspath(path), dir_fd, None)

        return call

    def _pwritev(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(fd: int, pieces: Any, offset: int, flags: int = 0) -> int:
            self._step()
            done = real(fd, pieces, offset, flags)
            node = self._node(fd)
            if node is not None:
                self._note(Event("write", node, start=offset, data=b"".join(pieces)[:done]))
            return done

        return call

    def _ftruncate(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(fd: int, size: int) -> None:
            self._step()
            real(fd, size)
            node = self._node(fd)
            if node is not None:
                self._note(Event("cut", node, end=size))

        return call

    def _punch(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(fd: int, start: int, end: int) -> None:
            self._step()
            real(fd, start, end)
            node = self._node(fd)
            if node is not None:
                self._note(Event("punch", node, start=start, end=end))

        return call

    def _rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            self._step()
            node, name = self._parent(os.fspath(old), src_dir_fd)
            there, to = self._parent(os.fspath(new), dst_dir_fd)
            assert node == there, "the model has no rename from one directory to another"
            real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if node is not None:
                self._note(Event("rename", node, name, to))

        return call

    _replace = _rename

    def _link(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(old: Any, new: Any) -> None:
            self._step()
            parent, name = self._parent(os.fspath(new), None)
            real(old, new)
            if parent is not None:
                self._note(Event("link", parent, name, made=self._numbers[os.stat(new).st_ino]))

        return call

    def _removing(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *, dir_fd: int | None = None) -> None:
            self._step()
            node, name = self._parent(os.fspath(path), dir_fd)
            real(path, dir_fd=dir_fd)
            if node is not None:
                self._note(Event("remove", node, name))

        return call

    _unlink = _rmdir = _removing

    def _fsync(self, real: Callable[..., None]) -> Callable[..., None]:
        """Note it, with the line that calls it. The real disk is not waited for."""

        def call(fd: int) -> None:
            node = self._node(fd)
            if node is None:
                return  # above the root
            self._step()
            if self.fail_sync:
                self.fail_sync -= 1
                if not self.fail_sync:
                    self.note("begin", "")
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            caller = sys._getframe(1)
            self._note(Event("sync", node, site=(Path(caller.f_code.co_filename).name, caller.f_lineno)))

        return call


Tree = dict[str, "Tree | bytes"]
"""What a directory holds: directories, and files by their content."""
Choice = Callable[[int], bool]
"""Whether a change that was not synced, of the file or directory with this number, is on disk."""


class Node:
    """A file, or a directory: what is on disk of it, and the changes since."""

    def __init__(self, content: bytes | None) -> None:
        """Have nothing on disk."""
        self.is_file = content is not None
        self.data = b""
        self.entries: dict[str, int] = {}  # on disk
        self.now: dict[str, int] = {}
        self.changes: list[Event] = []

    def settle(self, number: int, choose: Choice) -> None:
        """Write those of the changes that `choose` takes."""
        for change in self.changes:
            if self.is_file:
                self.data = _changed(self.data, change, lambda: choose(number))
            elif choose(number):
                _entry_changed(self.entries, change)
        self.changes = []


def _changed(data: bytes, change: Event, choose: Callable[[], bool]) -> bytes:
    """Give a file's content after a change to it: of a write the length and each page may be missing."""
    new = bytearray(data)
    if change.what == "write":
        assert change.data is not None
        end = change.start + len(change.data)
        if len(new) < end and choose():
            new += bytes(end - len(new))
        for start in range(change.start - change.start % PAGE, end, PAGE):
            if choose():
                first, last = max(start, change.start), min(start + PAGE, end)
                new += bytes(max(0, last - len(new)))
                new[first:last] = change.data[first - change.start : last - change.start]
    elif choose():
        if change.what == "cut":
            new = new[: change.end] + bytes(max(0, change.end - len(new)))
        else:
            end = min(change.end, len(new))
            new[change.start : end] = bytes(max(0, end - change.start))
    return bytes(new)


def _entry_changed(entries: dict[str, int], change: Event) -> None:
    """Change a directory's entries. What came before may be missing."""
    entries.pop(change.name, None)
    if change.what != "remove":
        entries[change.to or change.name] = change.made


class Disk:
    """What is on disk, and what is not yet, after some events."""

    def __init__(self, skip: Site | None = None) -> None:
        """Have an empty root. With `skip` the store does without the fsync of that line."""
        self.nodes = [Node(None)]
        self._skip = skip

    def apply(self, event: Event) -> None:
        """Take in the next event."""
        if event.what == "note":
            return
        node = self.nodes[event.node]
        if event.what == "sync":
            if event.site != self._skip:
                node.settle(event.node, lambda _: True)
            return
        if event.what == "make":
            assert event.made == len(self.nodes)
            self.nodes.append(Node(event.data))
        elif event.what == "rename":
            event = Event("rename", event.node, event.name, event.to, made=node.now[event.name])
        if not node.is_file:
            _entry_changed(node.now, event)
        node.changes.append(event)

    def unsynced(self) -> list[int]:
        """The files and directories that have changes which may be lost."""
        return [number for number, node in enumerate(self.nodes) if node.changes]

    def crash(self, choose: Choice) -> Tree:
        """What there is when the host is up again, with those changes besides that `choose` takes."""
        left: list[Node] = []
        for number, node in enumerate(self.nodes):
            copy = Node(b"" if node.is_file else None)
            copy.data, copy.entries, copy.changes = node.data, dict(node.entries), node.changes
            copy.settle(number, choose)
            left.append(copy)

        def tree(number: int) -> Tree:
            return {
                name: left[child].data if left[child].is_file else tree(child)
                for name, child in sorted(left[number].entries.items())
            }

        return tree(0)


def build(tree: Tree, path: Path) -> None:
    """Make directories and files as `tree` says, in a directory that is there."""
    for name, content in tree.items():
        if isinstance(content, bytes):
            fd = os.open(path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.write(fd, content)
            os.close(fd)
        else:
            (path / name).mkdir(mode=0o700)
            build(content, path / name)


def tree_of(path: Path) -> Tree:
    """What is in a directory."""
    return {entry.name: tree_of(entry) if entry.is_dir() else entry.read_bytes() for entry in path.iterdir()}


def names_of(tree: Tree) -> set[str]:
    """The paths of the files that a tree holds."""
    files = {name for name, content in tree.items() if isinstance(content, bytes)}
    return files | {
        f"{name}/{path}" for name, held in tree.items() if isinstance(held, dict) for path in names_of(held)
    }


def lasting(root: Path, act: Callable[[], object]) -> set[str]:
    """The paths of the files beneath an empty directory that are there after `act`, whatever a crash takes."""
    recorder, disk = Recorder(root), Disk()
    with recorder.recording():
        act()
    for event in recorder.events:
        disk.apply(event)
    return names_of(disk.crash(lambda _: False))
