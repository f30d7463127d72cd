"""Files whose content is in the image, for a host that lacks them (`torpor checkpoint --bundle-files`).

Bundled are the files that are mapped, executed or open; or, with --with-files, those of them that the tree may write
and whose names match. Left out are those of /dev/shm (which are in every image), those of the kernel (/proc, /sys), and
files opened with O_PATH. Two kinds are always bundled, since they may exist nowhere else at the wake: programs whose
own file is gone, and small files that the job has made (`torpor.objects.paths.small_files`).

If the tree runs on, the files are read while it runs, up to their size at the freeze: data appended meanwhile is left
out. If a file is changed otherwise, or mapped so that writes reach it, which would not show, the checkpoint begins
again and reads them while the tree stands still. A file that others change even so is refused. Opening a file would
break a lease for writing, so a file on which the tree has such a lease is refused too.

A restore uses a file that exists and is unchanged, not the bundled one. Programs, libraries and data that are mapped
privately come back in memory (memfd_create(2)): the mappings have the content, but no file has their names. A file that
is open, or mapped so that writes reach it, is put back under its name if nothing has that name: completely or not at
all, with its mode and time, never over another file, and with missing parent directories if they belonged to the job's
user. If the restore fails it is removed again.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TypeAlias

from blake3 import blake3

from torpor.errors import CheckpointFailed, Reason, Refused, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.memory.own_pages import PageWriter
from torpor.objects.memory.shared_memory import LONGEST_NAME
from torpor.objects.paths import file_attributes, fingerprints, own_places
from torpor.objects.paths.file_content import fill, make_room
from torpor.objects.paths.file_names import DELETED, MAKESHIFT, OF_KERNEL
from torpor.objects.paths.opener import Opener, Openers, paths_of
from torpor.objects.paths.own_places import Made
from torpor.objects.paths.rollback import Rollback
from torpor.objects.paths.same_file import open_same
from torpor.objects.paths.small_files import Attribute, SmallFiles
from torpor.remote.sys import closed_on_error, memfd_create
from torpor.store import SnapshotReader

_SHM = b"/dev/shm/"
_MOST_NAMES = 3
_Wanted: TypeAlias = tuple[fingerprints.File, bool]
"""A file as it was, and whether it may grow while it is read."""


# ------------------------------------------------------------------------------------------ from a live tree


class Changing(CheckpointFailed):
    """A file changes while it is read: the tree must stand still meanwhile."""


@dataclass(frozen=True)
class Along:
    """Which files to take along, besides those that every image has."""

    everything: bool = False
    """All that are mapped, executed or open."""
    patterns: tuple[str, ...] = ()
    """Those of them that the tree may write and whose names match one of these."""


def store(
    image: pb.Tree, gone: Mapping[bytes, int], small: SmallFiles | None, out: PageWriter, along: Along, *, frozen: bool
) -> list[str]:
    """Write files to the image. Returns notices for the user.

    Args:
        image: described.
        gone: descriptors of programs whose files are gone, by their names in the image.
        small: copies of small files, of the same job.
        out: stores their pages.
        along: which other files to write.
        frozen: whether the tree stands still.

    Raises:
        Refused: a file cannot be read, or has changed since the freeze.
        Changing: the same, and the tree has run since then.
    """
    for file in image.files:
        if file.path in gone:
            _store(file.path, gone[file.path], file.size, image, out)
    used = {*named(image), *(file.path for file in image.files)}
    for copy in small or ():
        if copy.name in used:
            for described in _files(image, copy.name):
                copy.note(described)
            out.store_shared(copy, _add(copy.name, copy.status, copy.attributes, image).pages)
    wanted, notices = _wanted(image, along)
    known = {bundled.path for bundled in image.bundles}
    mapped = {file.path for file in fingerprints.files_mapped_to_write(image)}
    if not frozen and (changing := (wanted.keys() - known) & mapped):
        raise Changing(f"{os.fsdecode(min(changing))} is mapped so that writes reach it, which does not show")
    reasons = list(_store_all(image, out, wanted))
    if not frozen and reasons and all(reason.passing for reason in reasons):
        raise Changing(f"{reasons[0].subject.removeprefix('the file ')} changed while it was read")
    if reasons:
        raise Refused("the tree's files cannot be bundled", reasons)
    own_places.note(image, small)
    return [*notices, *_must_be_there(image, mapped)]


def _must_be_there(image: pb.Tree, mapped: Set[bytes]) -> Iterator[str]:
    """Say which files the tree has open, or `mapped` for writing, that are not in the image."""
    known = {bundled.path for bundled in image.bundles}
    used = {one.file.path for one in image.descriptions if one.WhichOneof("kind") == "file"} | mapped
    names = sorted(path for path in used if path not in known and not OF_KERNEL.match(path))
    if names:
        many = "1 file is" if len(names) == 1 else f"{len(names)} files are"
        yield f"{many} not in the snapshot, and must be there at the wake: {_some(names)}"


def _some(names: Sequence[bytes]) -> str:
    return ", ".join(map(os.fsdecode, names[:_MOST_NAMES])) + (", ..." if len(names) > _MOST_NAMES else "")


def _store_all(image: pb.Tree, out: PageWriter, wanted: Mapping[bytes, _Wanted]) -> Iterator[Reason]:
    leased = _leased(image)
    known = {bundled.path for bundled in image.bundles}
    for path, (was, may_grow) in wanted.items():
        if path in known:
            continue
        subject = f"the file {os.fsdecode(path)}"
        if path in leased:
            yield Reason(subject, "the program has a lease for writing on it (F_SETLEASE)", "give it up")
            continue
        try:
            fd = open_same(path, (was.dev, was.ino))
        except FileNotFoundError as error:
            yield Reason(subject, f"it is gone: {error.strerror}", "try again when no program moves it", passing=True)
            continue
        except OSError as error:
            yield Reason(subject, f"it cannot be read, to be bundled: {error.strerror}", "let this user read it")
            continue
        try:
            digest = _store(path, fd, was.size, image, out)
            now = os.fstat(fd)
        finally:
            os.close(fd)
        for described in _files(image, path):
            described.content.digest, described.content.whole = digest, True
        if (now.st_size, now.st_mtime_ns) != (was.size, was.mtime_ns) and not (may_grow and now.st_size > was.size):
            why = "it changed during the checkpoint, so its content at the freeze is unknown"
            yield Reason(subject, why, "try again while no program changes it", passing=True)


def _wanted(image: pb.Tree, along: Along) -> tuple[dict[bytes, _Wanted], list[str]]:
    """The files to bundle, by their paths, and notices for the user."""
    if along.everything:
        return _all(image), []
    if not along.patterns:
        return {}, []
    written = {path for path, _ in fingerprints.written(image)}
    files = {path: one for path, one in _all(image).items() if path in written}
    unused = [pattern for pattern in along.patterns if not any(_matches(path, pattern) for path in files)]
    chosen = {path: one for path, one in files.items() if any(_matches(path, each) for each in along.patterns)}
    return chosen, [f"no file that it has open for writing matches {pattern!r} (--with-files)" for pattern in unused]


def _matches(path: bytes, pattern: str) -> bool:
    return fnmatchcase(os.fsdecode(path if "/" in pattern else os.path.basename(path)), pattern)


def _all(image: pb.Tree) -> dict[bytes, _Wanted]:
    """Every file that can be bundled, by its path."""
    found: dict[bytes, _Wanted] = {file.path: (file, False) for file in image.files}
    in_place = fingerprints.in_place(image)
    for description in image.descriptions:
        file = description.file
        of_kernel = OF_KERNEL.match(file.path) or (file.size and not file.blocks)
        if description.WhichOneof("kind") == "file" and not of_kernel and not description.flags & os.O_PATH:
            found[file.path] = file, (file.dev, file.ino) not in in_place
    return {path: what for path, what in found.items() if not path.startswith(_SHM)}


def _files(image: pb.Tree, path: bytes) -> Iterator[fingerprints.File]:
    """The image's messages for a file that is open, or mapped so that writes reach it."""
    yield from (one.file for one in image.descriptions if one.WhichOneof("kind") == "file" and one.file.path == path)
    mapped = fingerprints.mapped_shared(image)
    yield from (file for index, file in enumerate(image.files) if index in mapped and file.path == path)


def _leased(image: pb.Tree) -> set[bytes]:
    entries = (entry for process in image.processes for entry in process.fds)
    indexes = {
        entry.description
        for entry in entries
        if any(lock.kind == pb.Lock.LEASE and lock.exclusive for lock in entry.locks)
    }
    return {image.descriptions[index].file.path for index in indexes}


def _store(path: bytes, fd: int, size: int, image: pb.Tree, out: PageWriter) -> bytes:
    """Write one file to the image, up to `size`. Returns the hash of that content."""
    bundled = _add(path, os.fstat(fd), file_attributes.extended(fd), image)
    bundled.size = min(bundled.size, size)
    out.store_file(fd, bundled.size, bundled.pages)
    return fingerprints.digest(fd, bundled.size, whole=True)


def _add(path: bytes, status: os.stat_result, attributes: Sequence[Attribute], image: pb.Tree) -> pb.Bundle:
    return image.bundles.add(
        path=path,
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        mtime_ns=status.st_mtime_ns,
        uid=status.st_uid,
        gid=status.st_gid,
        attributes=attributes,
    )


# -------------------------------------------------------------------------------------------- from an image


def by_path(image: pb.Tree) -> dict[bytes, pb.Bundle]:
    """The bundled files of an image, by their paths."""
    return {bundled.path: bundled for bundled in image.bundles}


def put_back(image: pb.Tree, reader: SnapshotReader, openers: Openers, behind: Rollback | None = None) -> Made:
    """Make what must have a name, and whose name is free: bundled files, and places that the job had made.

    Files that are to be rolled back are set aside.

    Raises:
        RestoreFailed: something cannot be made; nothing is left.
        ImageDamaged: the content is missing.
    """
    bundles = by_path(image)
    made = Made()
    missing: list[bytes] = []
    try:
        if behind:
            for path in behind.paths:
                opener = openers.path(path)
                made.undo.append(partial(_name_again, behind.set_aside(path, opener), path, opener))
            made.notices += behind.notices
        own_places.make(image, openers, made)
        for path in sorted(named(image)):
            if path in bundles and not os.path.lexists(path):
                missing += [] if behind and path in behind.paths else [path]
                opener = openers.path(path).straight()
                own_places.make_folders(image, path, made, opener)
                _put_back(bundles[path], reader, image, opener, made)
                made.undo.append(partial(opener.unlink, path))
        made.settle()
        if missing:
            many = "1 file was missing and is" if len(missing) == 1 else f"{len(missing)} files were missing and are"
            made.notices.append(f"{many} made again: {_some(missing)}")
    except BaseException as error:
        made.remove()
        if isinstance(error, OSError):
            raise RestoreFailed(f"what the job needs cannot be made again: {error}") from error
        raise
    return made


def _name_again(aside: bytes, path: bytes, opener: Opener) -> None:
    with suppress(FileExistsError):  # something took its name meanwhile
        opener.rename(aside, path)


def named(image: pb.Tree) -> Iterator[bytes]:
    """The paths of files that programs have open, watch, or have mapped so that writes reach the file."""
    for description in image.descriptions:
        if description.WhichOneof("kind") in ("file", "inotify"):
            yield from paths_of(description)
    for index in fingerprints.mapped_shared(image):
        yield image.files[index].path


def _put_back(bundled: pb.Bundle, reader: SnapshotReader, image: pb.Tree, opener: Opener, made: Made) -> None:
    """Write it under another name first: if the restore is killed, nothing incomplete has the file's name."""
    if OF_KERNEL.match(bundled.path) or not bundled.path.startswith(b"/"):
        raise RestoreFailed(f"the image has a bundled file with an impossible name: {bundled.path!r}")
    draft = os.path.join(os.path.dirname(bundled.path), MAKESHIFT + blake3(bundled.path).hexdigest()[:16].encode())
    fd = _draft(draft, opener)
    try:
        try:
            make_room(fd, bundled.size)
            fill(fd, bundled.pages, bundled.size, reader)
            own_places.give(fd, bundled, image, made)
            os.utime(fd, ns=(bundled.mtime_ns, bundled.mtime_ns))
            os.fsync(fd)
            opener.rename(draft, bundled.path)
        except BaseException:
            opener.unlink(draft)
            raise
    finally:
        os.close(fd)


def _draft(path: bytes, opener: Opener) -> int:
    """Make a file that is locked while it is filled. Remove one that a killed restore has left."""
    while True:
        try:
            fd = opener.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            with suppress(FileNotFoundError):
                _remove_left(path, opener)
            continue
        with closed_on_error(fd), suppress(FileNotFoundError):
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.samestat(opener.lstat(path), os.fstat(fd)):
                return fd
        os.close(fd)  # between the two calls another restore took it for one that was left


def _remove_left(path: bytes, opener: Opener) -> None:
    fd = opener.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if os.fstat(fd).st_uid not in opener.users:
            raise RestoreFailed(f"{os.fsdecode(path)} is in the way, and belongs to another user", advice="remove it")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(opener.lstat(path), os.fstat(fd)):
            opener.unlink(path)
    except BlockingIOError:
        raise RestoreFailed("another restore is putting the same file back", advice="try again") from None
    finally:
        os.close(fd)


def _name_in_memory(bundled: pb.Bundle) -> bytes:
    name = os.path.basename(bundled.path).removeprefix(b"memfd:")
    while name.endswith(DELETED.encode()):
        name = name[: -len(DELETED)]
    return name[:LONGEST_NAME]


def name_in_maps(bundled: pb.Bundle) -> bytes:
    """What maps shows of a bundled file that has come back in memory."""
    return b"/memfd:" + _name_in_memory(bundled) + DELETED.encode()


def in_memory(bundled: pb.Bundle, reader: SnapshotReader) -> int:
    """A read-only descriptor of a bundled file in memory.

    Raises:
        OSError: there is no room.
        ImageDamaged: the content is missing.
    """
    fd = memfd_create(_name_in_memory(bundled))
    try:
        make_room(fd, bundled.size)
        fill(fd, bundled.pages, bundled.size, reader)
        os.fchmod(fd, bundled.mode & 0o777)
        # The kernel does not execute a file that is open for writing (ETXTBSY).
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
