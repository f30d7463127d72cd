"""Regular files and directories: opened again by name, at their position, with their flags.

Kept: the name, access mode, O_APPEND, O_NONBLOCK, O_SYNC, O_DSYNC, O_DIRECT, O_NOATIME, O_PATH, and the position (for a
directory: where getdents() continues). Not kept: content. What the program wrote after the snapshot is still in the
file, and a program that is restored from the snapshot overwrites it; with O_APPEND it writes behind it.

Files without a name are in `torpor.objects.fds.unlinked`, locks in `torpor.objects.fds.locks`.

A file that has lost its name is kept by another name in its directory, if it has one there.

Refused: names that now lead to another file, and files below /proc/PID. A restore also refuses files that were
truncated, replaced or changed (`torpor.objects.paths.fingerprints`), unless the user accepts files as they are or has
them rolled back (`torpor.objects.paths.rollback`). It accepts a file that grew; one that the program only appends to,
whatever happened to it, such as a rotated log; and an SQLite database on which the tree held no lock: between two
transactions others may change it, and SQLite checks for that.

The image is not trusted with files: opening creates, truncates or writes nothing, and the type of a file is checked
before it is opened.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torpor.errors import Reason, RestoreFailed
from torpor.image.image_pb2 import Description, Tree
from torpor.objects.kind import (
    OF_A_PROCESS,
    Describing,
    GrabbedDescriptors,
    Kind,
    OpenFile,
    Seen,
    Unsupported,
    borrowed,
    is_path,
    why_not_by_name,
)
from torpor.objects.opening import KEPT_AT_OPEN, KEPT_BY_FCNTL, Opening, words
from torpor.objects.paths import directories, fingerprints, inode_search, own_places
from torpor.objects.paths.directories import Folder
from torpor.objects.paths.file_content import is_sqlite
from torpor.objects.paths.file_names import DELETED, OF_KERNEL, lasting_name
from torpor.objects.paths.fingerprints import Change
from torpor.objects.paths.opener import O_TMPFILE, Opener, Openers
from torpor.objects.paths.same_file import key_of
from torpor.objects.paths.small_files import SmallFiles
from torpor.remote.sys import closed_on_error


@dataclass
class SameFile:
    """All descriptions of one file: there may be thousands, so what is true of all of them is found once."""

    descriptions: list[OpenFile[SameFile]] = field(default_factory=list)

    @cached_property
    def written_anywhere(self) -> bool:
        """Whether one of them may write, and not only at the end of the file."""
        return any(fingerprints.writes_anywhere(one.flags, one.position, one.stat.st_size) for one in self.descriptions)

    @cached_property
    def leased(self) -> bool:
        """Whether one of them has a lease."""
        return any(one.leased for one in self.descriptions)


class RegularFile(Kind[SameFile]):
    """A file with content on a file system."""

    field = "file"
    may_be_under_way = True
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """Any regular file with a path, even a lost one."""
        return stat.S_ISREG(seen.stat.st_mode) and seen.link.startswith("/")

    def grab(self, open_file: OpenFile[SameFile], pidfd: int, *, content: bool) -> SameFile:
        """Nothing to grab: link, fdinfo and stat have all. Closing a copy may write to a network (NFS flushes)."""
        return SameFile()

    def finish(self, mine: list[OpenFile[SameFile]], tree: GrabbedDescriptors) -> None:
        """Copy the content of small files: they may be gone when the tree wakes."""
        by_file: dict[tuple[int, int], SameFile] = {}
        for open_file in mine:
            open_file.state = by_file.setdefault(key_of(open_file.stat), open_file.state)
            open_file.state.descriptions.append(open_file)
        if tree.content and tree.built is None:
            tree.small = SmallFiles(tree.pids[0])
            _keep_small(mine, tree, tree.small)

    def unsupported(self, open_file: OpenFile[SameFile], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Its name must lead to it."""
        yield from _unsupported_name(open_file, tree)

    def describe(
        self,
        open_file: OpenFile[SameFile],
        out: Description,
        tree: GrabbedDescriptors,
        image: Describing,
    ) -> None:
        """Write its name, and what shows whether it is still the same."""
        if out.flags & O_TMPFILE:  # it was given a name since, and is opened by that
            out.flags &= ~(O_TMPFILE | os.O_DIRECTORY)
        out.file.path = os.fsencode(open_file.link)
        out.file.position = open_file.position
        out.file.blocks = open_file.stat.st_blocks
        fingerprints.note_stat(out.file, open_file.stat)
        key = open_file.stat.st_dev, open_file.stat.st_ino
        if OF_KERNEL.match(out.file.path):
            out.file.ctime_ns = 0
        elif copy := tree.small and tree.small.find(*key):
            copy.name = out.file.path
            copy.note(out.file)
        elif tree.built is None and not open_file.state.leased and key not in image.mapped_to_write:
            # Reading a file with a lease would break it. What is mapped for writing is noted later, with the mappings.
            anywhere, whole = open_file.state.written_anywhere, None
            if any(fingerprints.may_write_anywhere(one.flags) for one in open_file.state.descriptions):
                whole = fingerprints.WHOLE_IN_PLACE
            fingerprints.note(out.file, open_file.stat, in_place=anywhere, whole=whole)

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """It must exist, this user must be able to open it, and it must not have changed in a way that matters."""
        openers = Openers(image)
        in_place = fingerprints.in_place(image)
        locked = {id(description) for description in _locked(image)}
        for index, description in mine.items():
            subject, opener = words(description), openers.description(index)
            try:
                fd = open_described(description, opener)
            except OSError as error:
                if why := own_places.why_missing(image, description.file.path, error, opener):
                    yield _cannot_open(subject, error, why)
                continue
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    yield Reason(subject, "it is no regular file any more", "put the file back")
                    continue
                written = (description.file.dev, description.file.ino) in in_place
                if why := _changed(description, fd, in_place=written, locked=id(description) in locked):
                    yield Reason(subject, why, "put the old file back", changed=os.fsdecode(description.file.path))
            finally:
                os.close(fd)

    def make(self, description: Description, opening: Opening) -> int:
        """Open it by name, without changing it."""
        fd = open_described(description, opening.opener)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise RestoreFailed(f"{words(description)} is no regular file any more")
        return _sought(fd, description.flags, description.file.position)


class Directory(Kind[int]):
    """A directory. Its state is the owner of its signals, which the kernel sets for a watch by F_NOTIFY."""

    field = "directory"
    may_be_under_way = True
    is_opened = True

    def matches(self, seen: Seen) -> bool:
        """Any directory."""
        return stat.S_ISDIR(seen.stat.st_mode) and seen.link.startswith("/")

    def grab(self, open_file: OpenFile[int], pidfd: int, *, content: bool) -> int:
        """Read the owner of its signals; one opened with O_PATH has none."""
        if open_file.flags & os.O_PATH:
            return 0
        with borrowed(pidfd, open_file.references[0].fd) as copy:
            return fcntl.fcntl(copy, fcntl.F_GETOWN)

    def unsupported(self, open_file: OpenFile[int], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
        """Its name must lead to it, unless it was removed; and no program may watch it by F_NOTIFY."""
        if open_file.state:
            why = f"it sends signals to {open_file.state}, as for a watch by dnotify (F_NOTIFY), which is not kept"
            yield Unsupported(why, "close it, or use inotify")
        if not Folder.seen(open_file.link, open_file.stat).removed:
            yield from _unsupported_name(open_file, tree)

    def describe(self, open_file: OpenFile[int], out: Description, tree: GrabbedDescriptors, image: Describing) -> None:
        """Write its name."""
        folder = Folder.seen(open_file.link, open_file.stat)
        folder.describe(out.directory.inode)
        out.directory.path = os.fsencode(folder.path)
        out.directory.position = open_file.position

    def validate(self, mine: dict[int, Description], image: Tree, stdio: Sequence[int]) -> Iterator[Reason]:
        """It must exist, and this user must be able to open it."""
        openers = Openers(image)
        for index, description in mine.items():
            opener, directory = openers.description(index), description.directory
            try:
                if directory.inode.removed:
                    os.close(directories.enter(directory.path, directory.inode, opener))
                else:
                    os.close(open_described(description, opener, os.O_DIRECTORY))
            except OSError as error:
                if why := own_places.why_missing(image, directory.path, error, opener):
                    yield _cannot_open(words(description), error, why)

    def make(self, description: Description, opening: Opening) -> int:
        """Open it by name; make it again if it was removed."""
        directory, flags = description.directory, description.flags & (KEPT_AT_OPEN | KEPT_BY_FCNTL)
        if directory.inode.removed:
            fd = directories.enter(directory.path, directory.inode, opening.opener, opening.openers.removed)
            opening.warnings += directories.warn_if_renamed(directory.path, fd)
            fd = opening.opener.reopened(fd, flags & ~os.O_NOFOLLOW)
        else:
            fd = open_described(description, opening.opener, os.O_DIRECTORY)
        return _sought(fd, description.flags, description.directory.position)


def _locked(image: Tree) -> Iterator[Description]:
    """The descriptions of files on which the tree holds locks."""
    indexes = {entry.description for process in image.processes for entry in process.fds if entry.locks}
    files = {(one.file.dev, one.file.ino) for at, one in enumerate(image.descriptions) if one.locks or at in indexes}
    return (one for one in image.descriptions if (one.file.dev, one.file.ino) in files)


def _changed(description: Description, fd: int, *, in_place: bool, locked: bool) -> str:
    """How a file has changed in a way that matters; empty if it has not, or only grew."""
    file, flags, now = description.file, description.flags, os.fstat(fd)
    if flags & os.O_PATH or (flags & os.O_ACCMODE == os.O_WRONLY and flags & os.O_APPEND):
        return ""
    became = fingerprints.change(file, fd, in_place=in_place)
    if became in (Change.NONE, Change.GROWN) or (not locked and is_sqlite(fd)):
        return ""
    if became is Change.UNKNOWN:
        return "it was mapped for writing, and is too large for a hash, or had none in time: a change cannot be told"
    if (now.st_dev, now.st_ino) != (file.dev, file.ino) and now.st_size != file.size:
        return f"another file has taken its place: {now.st_size} bytes where there were {file.size}"
    if became is Change.CUT:
        where = f", and the program is at byte {file.position}" if file.position > now.st_size else ""
        return f"it was cut from {file.size} to {now.st_size} bytes{where}"
    return "it was changed since the checkpoint: its content is not the same"


def _keep_small(files: list[OpenFile[SameFile]], tree: GrabbedDescriptors, small: SmallFiles) -> None:
    """Copy the files that must be kept, the smallest first."""
    left_out = {key_of(open_file.stat) for open_file in files if id(open_file) in tree.lease_signals}
    written = {key_of(open_file.stat) for open_file in files if open_file.writable and not is_path(open_file)}
    for open_file in sorted(files, key=lambda open_file: open_file.stat.st_size):
        key = key_of(open_file.stat)
        if open_file.under_way_to is None and key not in left_out and not is_path(open_file):
            holder = open_file.references[0]
            small.take(open_file.link, f"/proc/{holder.pid}/fd/{holder.fd}", open_file.stat, written=key in written)


def _unsupported_name(open_file: OpenFile[Any], tree: GrabbedDescriptors) -> Iterator[Unsupported]:
    open_file.link = lasting_name(open_file.link, open_file.stat)
    why = why_not_by_name(open_file, tree)
    if (
        why and open_file.stat.st_nlink and open_file.link.endswith(DELETED)
    ):  # it has another name, in another directory
        key = open_file.stat.st_dev, open_file.stat.st_ino
        open_file.link = inode_search.find([key], tree).get(key, open_file.link)
        why = why_not_by_name(open_file, tree)
    if open_file.stat.st_nlink == 0:
        yield Unsupported("it has no name any more, and its content is not kept", "close it, or give it a name")
    elif why and open_file.link.endswith(DELETED):
        lost = "it has lost this name, and none of its others was found in or near the directories of the tree"
        yield Unsupported(lost, "link it into the directory where it was")
    elif (
        tree.small
        and tree.small.find(open_file.stat.st_dev, open_file.stat.st_ino)
        and not os.path.lexists(open_file.link)
    ):
        return  # it was removed during the checkpoint, but its content was copied before
    elif why and tree.content:
        yield Unsupported(f"it was removed during the checkpoint: {why}", "try again", passing=True)
    elif why:
        yield Unsupported(f"it cannot be opened again by its name: {why}", "give it a name and rights that last")


def open_described(description: Description, opener: Opener, extra: int = 0) -> int:
    """Open what the description names. Open it with O_PATH first, so that this has no effect on a device or a pipe.

    Args:
        description: of a file or a directory.
        opener: opens it.
        extra: flags for the first open only. O_DIRECTORY would be visible later (fcntl(2), F_GETFL).
    """
    kind = description.WhichOneof("kind")
    path = getattr(description, kind or "").path
    if OF_A_PROCESS.match(path) or not path.startswith(b"/"):
        raise OSError(errno.EINVAL, "no file has such a name")
    inode = description.directory.inode if kind == "directory" else description.file
    known = (inode.dev, inode.ino) if inode.ino else None
    wanted = description.flags & (KEPT_AT_OPEN | KEPT_BY_FCNTL)
    if wanted & os.O_PATH and not extra:
        return opener.open(path, wanted, known=known)
    fd = opener.open(path, os.O_PATH | extra, known=known)
    if not stat.S_ISDIR(os.fstat(fd).st_mode) and not stat.S_ISREG(os.fstat(fd).st_mode):
        return fd  # the caller checks its type
    return opener.opened(path, fd, wanted, known)


def _sought(fd: int, flags: int, position: int) -> int:
    with closed_on_error(fd):
        if not flags & os.O_PATH and position:
            os.lseek(fd, position, os.SEEK_SET)
        return fd


def _cannot_open(subject: str, error: OSError, why: str) -> Reason:
    advice = "let this user open it as the program had it open"
    if isinstance(error, FileNotFoundError):
        advice = "put it back, or mount the file system that has it"
    return Reason(subject, f"it cannot be opened: {why}", advice)
