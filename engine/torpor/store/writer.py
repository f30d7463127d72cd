"""Writing a snapshot: threads add blocks to a pack; finally the manifest publishes the snapshot."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from types import TracebackType
from typing import Final

from blake3 import blake3

from torpor.errors import StoreError
from torpor.store.blocks import MAX_BLOCK, MAX_BLOCKS, BlockTable, Index
from torpor.store.collect import unlink_snapshot
from torpor.store.files import (
    DIRECTORY,
    PAGE,
    Place,
    as_store_errors,
    begin_writeback,
    create_file,
    store_error,
    write_all,
)
from torpor.store.known import KnownBlocks, Pack, snapshot_ids
from torpor.store.manifest import (
    KIND,
    MAX_NOTICES,
    MAX_TAGS,
    MAX_TEXT,
    TAG,
    SnapshotInfo,
    encode,
    new_id,
    pack_header,
    printable,
    read_head,
    read_manifest,
)
from torpor.store.pace import Pace
from torpor.store.reader import SnapshotReader
from torpor.store.store_pb2 import Envelope, PackRef
from torpor.util.sizes import readable

_ZEROS: Final = memoryview(bytes(PAGE))


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Copy tags that are valid in a head. Raises ValueError that names an invalid one."""
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags are more than {MAX_TAGS}")
    for key, value in tags.items():
        if not TAG.fullmatch(key):
            raise ValueError(f"tag {key!r}: a name has up to 64 of A-Z a-z 0-9 _ . - and begins with a letter or digit")
        if len(value) > MAX_TEXT or not value.isprintable():
            raise ValueError(f"tag {key}: its value is longer than {MAX_TEXT} characters or not printable")
    return dict(tags)


class SnapshotWriter:
    """A snapshot that is being written. If the ``with`` block ends before `publish`, all that was written is removed.

    Several threads may call `add_blocks` at a time; the other methods belong to one thread.
    """

    id: str
    """The id that the snapshot will have."""

    def __init__(
        self,
        place: Place,
        kind: str,
        tags: Mapping[str, str],
        reuse: bool = True,
        known: KnownBlocks | None = None,
        copy_of: SnapshotInfo | None = None,
        rate: int = 0,
    ) -> None:
        """Begin a snapshot in an open store, which the writer closes at its end. Use `Store.writer`.

        `copy_of` is a snapshot of another store, whose id, time and host this one gets. Raises FileExistsError if the
        store has a snapshot of that id. `rate` is how many bytes per second `add_blocks` may write; 0: any.
        """
        if not KIND.fullmatch(kind):
            raise ValueError(f"kind {kind!r} is not a lower-case name")
        self._tags = check_tags(tags)
        self._kind = kind
        self._place = place
        self._created_ns = copy_of.created_ns if copy_of else time.time_ns()
        self._host = copy_of.host if copy_of else socket.gethostname()
        self._has_folder = False
        self._packs: list[Pack] = []
        self._reused: dict[Pack, int] = {}
        self._own = Index(BlockTable())
        self.base = known if known and known.is_there(place) else None
        """The blocks of the previous snapshot, if it still exists: see `adopt`."""
        self._known = self.base
        self._reuse_earlier = reuse
        self._adopted: dict[int, int] = {}
        self._fd = -1
        self._number = -1  # of this snapshot's own pack
        self._end = PAGE
        self._pace = Pace(rate)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._writing = 0
        self._failure: StoreError | None = None
        self._open = True
        with as_store_errors(place.path, "cannot list it"):
            ids = snapshot_ids(place)
        self.id = self._pack_id = new_id(ids[-1] if ids else None)
        if copy_of:
            # The pack has a name of its own: there may be one with the snapshot's, which others still need.
            self.id = copy_of.id
            self._make_folder()

    def _make_folder(self) -> None:
        """Make the snapshot's directory, by which no other one can have its id. Raises FileExistsError."""
        try:
            os.mkdir(self.id, 0o700, dir_fd=self._place.snapshots)
        except FileExistsError:
            raise
        except OSError as error:
            raise store_error(self._place.path, f"cannot write snapshot {self.id}", error) from error
        self._has_folder = True

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abandon()

    def add_blocks(self, data: memoryview, lengths: Sequence[int]) -> list[int]:
        """Store consecutive pieces of `data` with the given lengths. Returns the index of each piece's block.

        Equal blocks get one index and are stored once; blocks that an earlier snapshot holds are not stored again. The
        sum of `lengths` must be the length of `data`, which may be reused when the call returns. Raises StoreError if
        the store is full or broken; then the snapshot cannot be published.
        """
        data = data.cast("B")
        starts = list(accumulate(lengths, initial=0))
        ends = starts[1:]
        if starts.pop() != data.nbytes:
            raise ValueError(f"the lengths of the blocks do not add up to the {data.nbytes} bytes given")
        if ends and not 0 < min(lengths) <= max(lengths) <= MAX_BLOCK:
            raise ValueError(f"a block has 1 to {MAX_BLOCK} bytes")
        digests = [blake3(data[start:end]).digest() for start, end in zip(starts, ends, strict=True)]
        with self._at_work():
            with self._lock:
                offset = self._end
                indexes, pieces = self._reserve(data, starts, ends, digests)
            if pieces:
                size = sum(piece.nbytes for piece in pieces)
                self._pace.wait(size)
                write_all(self._fd, pieces, offset)
                begin_writeback(self._fd, offset, size)
        return indexes

    @staticmethod
    def digest(content: bytes | bytearray | memoryview) -> bytes:
        """The hash by which a block is known."""
        return blake3(content).digest()

    def add_copy(self, content: memoryview) -> None:
        """Store a block as the next one, also if an equal one is there: its index is that of the snapshot it is from.

        The content is stored once all the same. Raises StoreError, as `add_blocks`.
        """
        digest = self.digest(content)
        with self._at_work(), self._lock:
            table = self._own.table
            if len(table) >= MAX_BLOCKS:
                raise self._too_many()
            if self._known is None:
                self._known = KnownBlocks.newest(self._place, self._kind)
            row = self._own.find(digest)
            if row is not None:
                self._own.append(digest, table.packs[row], table.offsets[row], table.lengths[row])
            elif self._reuse(digest, content.nbytes) is None:
                if self._fd < 0:
                    self._begin_pack()
                write_all(self._fd, [content, _ZEROS[: -content.nbytes % PAGE]], self._end)
                self._own.append(digest, self._number, self._end, content.nbytes)
                self._end += (content.nbytes + PAGE - 1) & -PAGE

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Count a thread that writes. If it fails, the snapshot cannot be published."""
        with self._lock:
            if self._failure:
                raise self._failure
            if not self._open:
                raise RuntimeError(f"snapshot {self.id} was published or abandoned before")
            self._writing += 1
        failure: StoreError | None = StoreError(f"writing snapshot {self.id} was interrupted")
        try:
            yield
            failure = None
        except OSError as error:
            doing = f"cannot write on after {readable(self._end)} of snapshot {self.id}"
            failure = store_error(self._place.path, doing, error)
            raise failure from error
        finally:
            with self._lock:
                self._failure = self._failure or failure
                self._writing -= 1
                self._idle.notify_all()

    def _reserve(
        self, data: memoryview, starts: list[int], ends: list[int], digests: list[bytes]
    ) -> tuple[list[int], list[memoryview]]:
        """Assign an index to every block. Also returns the new pieces of `data`, in their order in the pack."""
        if len(self._own.table) + len(digests) > MAX_BLOCKS:
            raise self._too_many()
        if self._known is None and self._reuse_earlier:
            self._known = KnownBlocks.newest(self._place, self._kind)
        indexes: list[int] = []
        pieces: list[memoryview] = []
        run_start = run_end = 0  # new bytes that are adjacent in data and in the pack
        for start, end, digest in zip(starts, ends, digests, strict=True):
            row = self._own.find(digest)
            if row is None:
                row = self._reuse(digest, end - start)
            if row is None:
                if self._fd < 0:
                    self._begin_pack()
                if start != run_end or (run_end - run_start) % PAGE:
                    if run_end > run_start:
                        pieces += (data[run_start:run_end], _ZEROS[: -(run_end - run_start) % PAGE])
                    run_start = start
                run_end = end
                row = self._own.append(digest, self._number, self._end, end - start)
                self._end += (end - start + PAGE - 1) & -PAGE
            indexes.append(row)
        if run_end > run_start:
            pieces += (data[run_start:run_end], _ZEROS[: -(run_end - run_start) % PAGE])
        return indexes, pieces

    def _reuse(self, digest: bytes, size: int) -> int | None:
        """Refer to a block that an earlier snapshot stored in an intact pack. Returns its index or None."""
        found = self._known.find(digest, size, self._place) if self._known else None
        if found is None or found[2] != size:
            return None
        pack, offset, length = found
        if pack not in self._reused and len(self._reused) >= KnownBlocks.MOST_PACKS:
            return None
        return self._own.append(digest, self._reused_number(pack), offset, length)

    def _reused_number(self, pack: Pack) -> int:
        number = self._reused.get(pack)
        if number is None:
            number = self._reused[pack] = len(self._packs)
            self._packs.append(pack)
        return number

    def adopt(self, rows: Sequence[int]) -> list[int]:
        """Refer to blocks of `base`, given by their indexes there. Returns the index of each block here.

        Raises StoreError if the snapshot gets more blocks than the format allows.
        """
        assert self.base is not None
        theirs, table = self.base.table, self._own.table
        with self._lock:
            new = sorted(set(rows).difference(self._adopted))
            start = len(table)
            if start + len(new) > MAX_BLOCKS:
                raise self._too_many()
            used = set(map(theirs.packs.__getitem__, new))
            numbers = {number: self._reused_number(self.base.packs[number]) for number in sorted(used)}
            for begin, end in _runs(new):
                table.extend(theirs, begin, end, numbers)
            self._own.extend(start)
            self._adopted.update(zip(new, range(start, start + len(new)), strict=True))
        return list(map(self._adopted.__getitem__, rows))

    def _too_many(self) -> StoreError:
        return StoreError(f"snapshot {self.id} has more blocks than the format allows ({MAX_BLOCKS})")

    @property
    def store(self) -> str:
        """The path of the store."""
        return self._place.path

    def known(self) -> KnownBlocks:
        """The `base` for a writer of the next snapshot, once this one is published."""
        return KnownBlocks(self._packs, self._own, self.id)

    def _begin_pack(self) -> None:
        self._fd = create_file(f"{self._pack_id}.tmp", self._place.packs)
        write_all(self._fd, [memoryview(pack_header(self._pack_id))], 0)
        self._number = len(self._packs)
        self._packs.append((self._pack_id, 0))  # its size is known when it is complete

    def publish(
        self,
        body: bytes,
        summary: str,
        needs: Iterable[str] = (),
        notices: Sequence[str] = (),
        prove: Callable[[SnapshotReader], None] | None = None,
    ) -> SnapshotInfo:
        """Sync everything to disk and make the snapshot visible. Returns what a listing will show of it.

        The caller's kind defines `body`. `summary` is a line for people. `needs` is what readers of the body must
        support. `notices` are for the user who wakes it, at most 64: see `SnapshotInfo`. `prove` gets a reader of the
        data on disk before the manifest is renamed into place: if it raises, the snapshot is not published. Raises
        StoreError, and then nothing of the snapshot is left.
        """
        with self._lock:
            if not self._open:
                raise RuntimeError(f"snapshot {self.id} was published or abandoned before")
            self._idle.wait_for(lambda: not self._writing)
            self._open = False
        try:
            if self._failure:
                raise self._failure
            with as_store_errors(self._place.path, f"cannot publish snapshot {self.id}"):
                if self._fd >= 0:
                    self._finish_pack()
                return self._finish_manifest(body, summary, tuple(needs), notices, prove)
        except BaseException as error:
            self._remove_traces()
            if isinstance(error, StoreError):
                with contextlib.suppress(OSError):
                    self._place.confirm()  # if the lock was lost, that is why
            raise
        finally:
            self._close()

    def _finish_pack(self) -> None:
        os.ftruncate(self._fd, self._end)
        os.fsync(self._fd)
        self._close_pack()  # a network file system may report a failed write only at the close
        packs = self._place.packs
        os.rename(f"{self._pack_id}.tmp", f"{self._pack_id}.pack", src_dir_fd=packs, dst_dir_fd=packs)
        os.fsync(packs)
        self._packs[self._number] = (self._pack_id, self._end)

    def _finish_manifest(
        self,
        body: bytes,
        summary: str,
        needs: Collection[str],
        notices: Sequence[str],
        prove: Callable[[SnapshotReader], None] | None,
    ) -> SnapshotInfo:
        table = self._own.table
        head = Envelope(
            id=self.id,
            kind=self._kind,
            created_ns=self._created_ns,
            tags=self._tags,
            needs=needs,
            packs=[PackRef(id=pack, size=size) for pack, size in self._packs],
            summary=printable(summary),
            notices=map(printable, notices[:MAX_NOTICES]),
            host=printable(self._host),
            size=sum(table.lengths),
            written=self._end if self._number >= 0 else 0,
        )
        snapshots = self._place.snapshots
        if not self._has_folder:
            self._make_folder()
        folder = os.open(self.id, DIRECTORY, dir_fd=snapshots)
        try:
            fd = create_file("manifest.tmp", folder)
            try:
                write_all(fd, [memoryview(piece) for piece in encode(head, table, body)], 0)
                os.fsync(fd)
                size = os.fstat(fd).st_size
                info = read_head(fd, size, self.id, self._place.path).info
                if prove:
                    manifest = read_manifest(fd, size, self.id, self._place.path)
                    with SnapshotReader(self._place, manifest, borrowed=True) as reader:
                        prove(reader)
            finally:
                os.close(fd)
            # From here on a prune that takes this process for dead removes manifest.tmp first, and the rename fails.
            self._place.confirm()
            os.rename("manifest.tmp", "manifest", src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        finally:
            os.close(folder)
        os.fsync(snapshots)
        return info

    def abandon(self) -> None:
        """Remove all that was written, unless the snapshot was published. Waits for other threads' writes."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._idle.wait_for(lambda: not self._writing)
        try:
            self._remove_traces()
        finally:
            self._close()

    def _remove_traces(self) -> None:
        """Remove the files of a failed snapshot, the manifest first. The next prune removes what is left."""
        place = self._place
        try:
            with contextlib.suppress(FileNotFoundError):
                unlink_snapshot(place, self.id)
                os.fsync(place.snapshots)
        except OSError:
            return  # the manifest may still be on disk, and must not be there without its pack
        for name in (f"{self._pack_id}.tmp", f"{self._pack_id}.pack"):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=place.packs)

    def _close_pack(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._close_pack()  # after a failure that was reported already
        self._place.close()


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The runs of consecutive numbers in a sorted sequence, as (first, last + 1)."""
    begin = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield numbers[begin], numbers[at - 1] + 1
            begin = at
