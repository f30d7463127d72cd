"""Memory that several mappings or processes may share: MAP_SHARED without a file on disk, memfd, /dev/shm.

Kept: content, size, name, memfd seals. Memory is identified by the device and inode numbers in maps and fstat, so two
processes that map the same memory do so again. It is restored as a memfd, except a named file of a tmpfs, which is used
if it still exists and made again if not.

A forked snapshot does not cover it, so its pages are copied under the freeze. Reading a page that was never written
would allocate it for the tree: a gigabyte for a reservation of a gigabyte. If a descriptor refers to the memory, holes
are skipped (lseek(2), SEEK_DATA); if none does, the process itself queries its pages (mincore(2)).

Documented in: memfd_create(2), shm_overview(7), mmap(2), mincore(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from torpor import procfs
from torpor.arch.x86_64 import NR
from torpor.errors import NO_ROOM, Reason, Refused, RestoreFailed
from torpor.image import image_pb2 as pb
from torpor.objects.fds.memfd import MemoryFile, is_temporary
from torpor.objects.memory import shared_mappings, vmas
from torpor.objects.paths import directories, file_attributes, file_content
from torpor.objects.paths.file_attributes import Attributes
from torpor.objects.paths.file_content import Buffers, Content
from torpor.objects.paths.file_names import is_gone, is_used, makeshift_name
from torpor.objects.paths.opener import O_TMPFILE, Opener, Openers
from torpor.objects.paths.same_file import device_of, open_mapped
from torpor.objects.sysv import segments
from torpor.procfs import Mapping
from torpor.remote import memory
from torpor.remote.batch import Ask
from torpor.remote.sys import closed_on_error, memfd_create
from torpor.store import SnapshotReader
from torpor.util.ranges import Range, intersection, subtract, union

_MEMFD = b"/memfd:"
_SHM = b"/dev/shm/"
_ANONYMOUS = b"/dev/zero"
"""The name of MAP_SHARED | MAP_ANONYMOUS in maps, and of the memfd as which it is restored."""


def is_memory(mapping: Mapping) -> bool:
    """Whether the content of a shared mapping is in memory only, and so must be in the image."""
    if not mapping.shared or not (vmas.is_deleted(mapping) or mapping.name.startswith(_SHM)):
        return False
    return mapping.inode != 0 or segments.is_segment(mapping)


def kind_of(name: bytes, inode: int) -> tuple[int, bytes]:
    """The kind of shared memory, by its name in maps, and the name to keep."""
    if not is_gone(name, inode):
        return pb.SharedMemory.TMPFS, name
    name = name[: -len(vmas.DELETED)]
    if name in (_ANONYMOUS, _MEMFD + _ANONYMOUS):
        return pb.SharedMemory.ANONYMOUS, b""
    if name.startswith(_MEMFD):
        return pb.SharedMemory.MEMFD, name[len(_MEMFD) :]
    return pb.SharedMemory.UNLINKED, name


@dataclass
class Segment(Content):
    """One piece of the tree's shared memory."""

    name: bytes = b""
    """As in maps."""
    seen: list[Range] = field(default_factory=list)
    """The ranges of offsets that were copied into the pieces, as far as they have content."""
    whole: bool = False
    """Whether the pieces are all of it, not only what is mapped."""
    status: os.stat_result | None = None
    """The status of its file, if that can be read."""
    attributes: Attributes = field(default_factory=Attributes)
    index: int = -1
    """Its index in the image, once it is described."""
    sysv: segments.Segment | None = None
    mappings: int = 0
    """The number of its mappings in the whole tree."""


Key = tuple[int, int]
"""Device and inode number of the memory."""


def is_in_shm(mapping: Mapping) -> bool:
    """Whether it is a file of /dev/shm that has a name there."""
    return mapping.name.startswith(_SHM) and not vmas.is_deleted(mapping)


def _may_be_cut(mapping: Mapping) -> bool:
    """Whether it may be mapped beyond its end.

    Memory that never had a descriptor keeps its first size, except a mapping of /dev/zero at an offset, which does not
    begin at the memory's start (drivers/char/mem.c, mmap_zero).
    """
    if segments.is_segment(mapping):
        return False
    return mapping.offset > 0 or kind_of(mapping.name, mapping.inode)[0] != pb.SharedMemory.ANONYMOUS


def key_of(mapping: Mapping) -> Key:
    """The identity of the memory. The id of a System V segment may be an inode's number too."""
    if segments.is_segment(mapping):
        return 0, mapping.inode
    return device_of(mapping), mapping.inode


class SharedMemory:
    """The shared memory of a tree: grabbed under the freeze, described afterwards."""

    def __init__(self, buffers: Buffers | None) -> None:
        """`buffers`: for the content; None: describe the memory without it."""
        self._buffers = buffers
        self.segments: dict[Key, Segment] = {}
        self._image: pb.Tree | None = None
        self._empty = -1

    def grab_file(self, file: MemoryFile) -> None:
        """Copy an open file in memory, mapped or not. Holes are not read: reading a hole by a mapping would fill it."""
        segment = Segment(name=file.link, whole=True, status=file.stat, attributes=file.attributes)
        self._copy(file.open(), segment)
        self.segments[file.stat.st_dev, file.stat.st_ino] = segment

    def _copy(self, fd: int, segment: Segment) -> None:
        if self._buffers:
            file_content.copy(fd, segment, self._buffers)
        else:
            segment.size = os.fstat(fd).st_size
            os.close(fd)

    def grab_mapped(self, pid: int, maps: Iterable[Mapping], ask: Ask) -> None:
        """Copy what a process maps, by lasting names, except what was copied already.

        Args:
            pid: the process.
            maps: its mappings.
            ask: lets it make calls.
        """
        wanted: list[tuple[Mapping, Segment, list[Range]]] = []
        for mapping in maps:
            if not is_memory(mapping):
                if is_in_shm(mapping):
                    self._note_private(mapping)
                continue
            key = key_of(mapping)
            if key not in self.segments:
                self.segments[key] = self._named(mapping, key) or Segment(name=mapping.name)
            segment = self.segments[key]
            segment.mappings += 1
            end = mapping.offset + mapping.end - mapping.start
            new = subtract([(mapping.offset, end)], segment.seen)
            if segment.whole or not new:
                continue
            segment.seen = union([*segment.seen, *new])
            if not self._buffers:  # do not look for its end either: a touch would give the tree pages
                segment.size = max(segment.size, end)
            else:
                wanted.append((mapping, segment, new))
        if not wanted or not self._buffers:
            return
        there: dict[Mapping, list[Range]] = {}
        if not shared_mappings.is_swapping():
            tmpfs = shared_mappings.tmpfs(pid)
            asked = [mapping for mapping, _, _ in wanted if device_of(mapping) in tmpfs]
            there = dict(zip(asked, shared_mappings.pages_there(asked, ask), strict=True))
        for mapping, segment, new in wanted:
            end = mapping.offset + mapping.end - mapping.start
            if mapping in there:
                new = intersection(there[mapping], new)  # noqa: PLW2901  skip pages that do not exist
            complete = shared_mappings.read(pid, mapping, new, segment.room(new, self._buffers))
            if _may_be_cut(mapping) and not (complete and new and new[-1][1] == end):
                readable = memory.readable_end(pid, mapping.start, mapping.end)
                if readable == mapping.start:
                    continue  # all of it is behind the end
                end += readable - mapping.end
            segment.size = max(segment.size, end)

    def _note_private(self, mapping: Mapping) -> None:
        """Copy a file of /dev/shm that is mapped privately: unwritten pages of the mapping show the file."""
        key = key_of(mapping)
        if key not in self.segments and (found := self._named(mapping, key)):
            self.segments[key] = found

    def _named(self, mapping: Mapping, key: Key) -> Segment | None:
        """All of a mapped file of /dev/shm: it may not end at a page boundary, or may be mapped in part.

        None if its name does not lead to it, or not for us: then what is mapped must be enough.
        """
        if kind_of(mapping.name, mapping.inode)[0] != pb.SharedMemory.TMPFS:
            return None
        try:
            fd = open_mapped(mapping)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            return None
        segment = Segment(name=mapping.name, whole=True, status=os.fstat(fd))
        self._copy(fd, segment)
        return segment

    def behind(self, mapping: Mapping) -> Segment | None:
        """The memory that a private mapping shows in unwritten pages; None if there is none or it is not known."""
        if mapping.shared or not mapping.inode:
            return None
        segment = self.segments.get(key_of(mapping))
        if segment is None or segment.whole:
            return segment
        end = mapping.offset + mapping.end - mapping.start
        pieces = [(at, at + len(content)) for at, content in segment.pieces.items()] if self._buffers else segment.seen
        return segment if any(start <= mapping.offset and end <= stop for start, stop in pieces) else None

    @property
    def nameless(self) -> set[Key]:
        """The memory that has no name by which another process could open it."""
        return {
            key
            for key, segment in self.segments.items()
            if not segment.sysv and kind_of(segment.name, key[1])[0] != pb.SharedMemory.TMPFS
        }

    def note_system_v(self, found: Iterable[segments.Segment]) -> None:
        """Note what a process has reported about its System V segments."""
        for one in found:
            segment = self.segments[0, one.id]
            segment.sysv, segment.size = one, one.size

    def describe(self, image: pb.Tree) -> None:
        """Give each segment its index in the image; its pages follow.

        Raises:
            Refused: a System V segment cannot be kept.
        """
        reasons = []
        for segment in self.segments.values():
            sizes = {start: end - start for start, end in segment.seen}
            if segment.sysv and (why := segments.unsupported_segment(segment.sysv, segment.mappings, sizes)):
                reasons.append(Reason("the tree", why))
        if reasons:
            raise Refused("the tree cannot be kept", reasons)
        self._image = image
        for key, segment in self.segments.items():
            segment.index = len(image.shared)
            if segment.sysv:
                segments.describe(segment.sysv, image.shared.add())
                continue
            kind, name = kind_of(segment.name, key[1])
            if segment.status and kind == pb.SharedMemory.ANONYMOUS:  # its creator gave it this name
                kind, name = pb.SharedMemory.MEMFD, _ANONYMOUS
            shared = image.shared.add(kind=kind, name=name, size=segment.size, dev=key[0], ino=key[1], mode=0o600)
            if segment.status:
                file_attributes.describe(segment.status, segment.attributes, shared)

    def empty(self) -> int:
        """The index in the image of empty memory, which this adds. Call it after the others are described."""
        assert self._image
        if self._empty < 0:
            self._empty = len(self._image.shared)
            self._image.shared.add(kind=pb.SharedMemory.MEMFD, name=b"empty", mode=0o600)
        return self._empty

    def index(self, device: int, inode: int) -> int:
        """The index of a segment in the image."""
        return self.segments[device, inode].index


# Restore

# Missing in Pythons that were built against older headers.
_MFD_ALLOW_SEALING, _F_ADD_SEALS, _O_TMPFILE = 2, 1033, O_TMPFILE | os.O_DIRECTORY
_F_SEAL_SEAL, _F_SEAL_FUTURE_WRITE = 0x1, 0x10
AT_FDCWD = -100
_AT_SYMLINK_FOLLOW = 0x400
LONGEST_NAME = 249  # memfd_create(2)


def validate(image: pb.Tree, openers: Openers) -> Iterator[Reason]:
    """Say which named memory cannot be restored."""
    for index, shared in enumerate(image.shared):
        if shared.kind not in pb.SharedMemory.Kind.values()[1:]:
            yield Reason("the image", "it has shared memory of a kind that this version does not know")
        if shared.kind == pb.SharedMemory.TMPFS and not shared.name.startswith(_SHM):
            yield Reason(f"shared memory {os.fsdecode(shared.name)}", "it does not lie in /dev/shm")
        if shared.kind == pb.SharedMemory.TMPFS and os.path.lexists(shared.name):
            try:
                os.close(_open_named(shared, openers.shared(index)))
            except OSError as error:
                why = f"the file there cannot be used: {error.strerror}"
                yield Reason(f"shared memory {os.fsdecode(shared.name)}", why, "remove it if nobody needs it")


Left = frozenset[tuple[bytes, int, int]]
"""Files of /dev/shm that a job has left when it ended: name, device, inode."""


def left(image: pb.Tree) -> Left:
    """What the job of an image left in /dev/shm if it ended at the checkpoint; nothing after another boot.

    A tmpfs does not reuse inode numbers until the next boot.
    """
    if image.host.boot_id != procfs.boot_id():
        return frozenset()
    return frozenset((s.name, s.dev, s.ino) for s in image.shared if s.kind == pb.SharedMemory.TMPFS)


def open_all(
    image: pb.Tree, reader: SnapshotReader, base: int, openers: Openers, warnings: list[str], later: Left = frozenset()
) -> dict[int, int]:
    """Make every piece of shared memory, with its content.

    An existing name in /dev/shm may belong to a running program. It is used if it has the content of the image. It is
    made again if the tree itself has left it and no process has it open. Otherwise it is refused.

    Args:
        image: the tree, checked.
        reader: of its snapshot.
        base: the lowest number for a descriptor.
        openers: open the files.
        warnings: gets a message for what could not be restored.
        later: what the tree has left after a later checkpoint.

    Returns:
        Descriptors for reading and writing, close-on-exec, by index in the image.

    Raises:
        RestoreFailed: it cannot be made, or a name is in use; no descriptor is left open.
        ImageDamaged: its content is not what was written.
    """
    opened: dict[int, int] = {}
    made: list[tuple[Opener, bytes]] = []
    own = left(image) | later
    try:
        for index, shared in enumerate(image.shared):
            if shared.kind == pb.SharedMemory.SYSTEM_V:
                continue  # it has no descriptor
            opener = openers.shared(index)
            if shared.kind != pb.SharedMemory.TMPFS:
                fd = _make_nameless(shared, opener)
                new = True
            else:
                fd, new = _find_named(shared, opener, reader, own, warnings)
                if new:
                    made.append((opener, shared.name))
            try:
                opened[index] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, base)
            finally:
                os.close(fd)
            if new and shared.kind != pb.SharedMemory.TMPFS:
                warnings += _fill(opened[index], shared, reader, opener)
    except BaseException as error:
        for fd in opened.values():
            os.close(fd)
        for opener, name in made:
            opener.unlink(name)
        if isinstance(error, OSError):
            raise RestoreFailed(f"shared memory cannot be made: {error.strerror}") from error
        raise
    return opened


def _find_named(
    shared: pb.SharedMemory, opener: Opener, reader: SnapshotReader, own: Left, warnings: list[str]
) -> tuple[int, bool]:
    """A descriptor of a file of /dev/shm, and whether it is a new file."""
    try:
        fd = _open_named(shared, opener)
    except FileNotFoundError:
        return _make_named(shared, opener, reader, warnings), True
    try:
        if file_content.same(fd, shared.pages, shared.size, reader):
            return os.dup(fd), False
        status = os.fstat(fd)
    finally:
        os.close(fd)
    private = not status.st_mode & 0o077 or procfs.is_root()  # only its user could have it open
    mine = private and (shared.name, status.st_dev, status.st_ino) in own
    if not mine or is_used(status.st_dev, status.st_ino):
        raise RestoreFailed(
            f"shared memory {os.fsdecode(shared.name)} exists with other content",
            advice="remove it if no program uses it",
        )
    opener.unlink(shared.name)
    return _make_named(shared, opener, reader, warnings), True


def _open_named(shared: pb.SharedMemory, opener: Opener) -> int:
    fd = opener.open(shared.name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), shared.uid):
        os.close(fd)
        raise OSError(errno.EEXIST, "it is another file")
    return fd


def _make_named(shared: pb.SharedMemory, opener: Opener, reader: SnapshotReader, warnings: list[str]) -> int:
    """Make a file of /dev/shm. It gets its content before its name."""
    fd = opener.open(os.path.dirname(shared.name), _O_TMPFILE | os.O_RDWR, 0o600)
    try:
        warnings += _fill(fd, shared, reader, opener)
        with opener.parent(shared.name) as (directory, name):
            opener.call(NR.linkat, AT_FDCWD, b"/proc/self/fd/%d\0" % fd, directory, name, _AT_SYMLINK_FOLLOW)
    finally:
        os.close(fd)
    return opener.open(shared.name, os.O_RDWR | os.O_NOFOLLOW)  # so that /proc shows this name


def _make_nameless(shared: pb.SharedMemory, opener: Opener) -> int:
    """Make it in the directory from which it was deleted, so that a file on disk stays there; else in memory."""
    directory = os.path.dirname(shared.name)
    if shared.kind == pb.SharedMemory.UNLINKED and directory.startswith(b"/"):
        if not is_temporary(shared):
            # If another file has the name now, not by O_TMPFILE: that file could get a name again (linkat(2)).
            for path in (shared.name, os.path.join(directory, makeshift_name())):
                with suppress(OSError):  # not writable, or another file has the name
                    return _make_and_unlink(path, opener)
        with suppress(OSError):  # no such directory, not writable, or the file system does not support this
            return opener.open(directory, _O_TMPFILE | os.O_RDWR, 0o600)
    name = _ANONYMOUS if shared.kind == pb.SharedMemory.ANONYMOUS else shared.name[:LONGEST_NAME] or b"shared"
    return memfd_create(name, _MFD_ALLOW_SEALING)


def _make_and_unlink(path: bytes, opener: Opener) -> int:
    """Make a file and remove its name, which /proc then still shows."""
    with directories.parents(path, opener):
        fd = opener.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        with closed_on_error(fd):
            opener.unlink(path)
            if os.fstat(fd).st_nlink:  # NFS renames an open file instead
                raise OSError(errno.EBUSY, "it has a name still")
            return fd


def _fill(fd: int, shared: pb.SharedMemory, reader: SnapshotReader, opener: Opener) -> list[str]:
    """Give a new file its content and attributes. Returns messages on what could not be restored."""
    warnings = list(file_attributes.restore_flags(fd, shared))
    file_content.make_room(fd, shared.size)
    file_content.fill(fd, shared.pages, shared.size, reader)
    warnings += file_attributes.restore(fd, shared, opener)
    if shared.kind == pb.SharedMemory.MEMFD and (seals := shared.seals & ~_late_seals(shared)):
        fcntl.fcntl(fd, _F_ADD_SEALS, seals)  # other files of tmpfs have F_SEAL_SEAL from the start
    return warnings


def _late_seals(shared: pb.SharedMemory) -> int:
    """The seals that can be added only when the tree has all its mappings: writable ones that are older than
    F_SEAL_FUTURE_WRITE stay, and new ones are forbidden; after F_SEAL_SEAL there are no more seals (fcntl(2)).
    """
    if shared.kind != pb.SharedMemory.MEMFD or not shared.seals & _F_SEAL_FUTURE_WRITE:
        return 0
    return shared.seals & (_F_SEAL_FUTURE_WRITE | _F_SEAL_SEAL)


def seal(image: pb.Tree, opened: Callable[[int], int]) -> None:
    """Add the seals that would have kept the tree from being built.

    Args:
        image: the tree, which is built.
        opened: returns the descriptor that `open_all` has made, by its index.

    Raises:
        RestoreFailed: the kernel refuses.
    """
    for index, shared in enumerate(image.shared):
        if seals := _late_seals(shared):
            try:
                fcntl.fcntl(opened(index), _F_ADD_SEALS, seals)
            except OSError as error:
                raise RestoreFailed(f"a file in memory cannot be sealed: {error.strerror}") from error
