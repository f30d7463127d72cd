"""Reading a snapshot: its body, the locations of its blocks, and their content after a check of the hash."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final

from blake3 import blake3

from torpor.errors import ImageDamaged
from torpor.store.blocks import BlockTable
from torpor.store.files import PAGE, Place, as_store_errors, open_file
from torpor.store.files import read_exactly as _read
from torpor.store.manifest import Manifest, SnapshotInfo, pack_header
from torpor.util.sizes import readable

READ_SIZE: Final = 4 << 20
"""How much a check reads at once, in bytes; a longer block is read by itself."""


def open_pack(place: Place, pack: str, size: int, mode: int = os.O_RDONLY) -> int:
    """Open a pack and check its owner, size and header. Raises ImageDamaged, NotPermitted and OSError."""
    name = f"{pack}.pack"
    shown = os.path.join(place.path, "packs", name)
    try:
        fd, status = open_file(name, place.packs, shown, mode)
    except FileNotFoundError:
        raise ImageDamaged(f"pack {shown} is missing", advice="the snapshots that need it are lost") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise ImageDamaged(f"pack {shown} is not a regular file", advice="somebody replaced it") from error
        raise
    try:
        if status.st_size != size:
            raise ImageDamaged(
                f"pack {shown} has {status.st_size} bytes and should have {size}",
                advice="it was truncated or replaced; the snapshots that need it are lost",
            )
        header = bytearray(PAGE)
        if _read(fd, memoryview(header), 0) < PAGE or header != pack_header(pack):
            raise ImageDamaged(
                f"pack {shown} does not begin as that pack",
                advice="it was overwritten, or replaced by another",
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


class SnapshotReader:
    """An open snapshot. While it is open, no prune removes what it needs.

    All methods may be called from several threads.
    """

    info: SnapshotInfo
    body: bytes
    needs: tuple[str, ...]
    pack_sizes: tuple[int, ...]
    """The sizes of `info.packs`, in bytes."""
    blocks: BlockTable
    """The location of every block. Callers may use its columns."""

    def __init__(self, place: Place, manifest: Manifest, *, borrowed: bool = False) -> None:
        """Read a snapshot by its manifest. Takes ownership of the open store, unless `borrowed`. Use `Store.open`."""
        self._place = place
        self._borrowed = borrowed
        self.pack_sizes = manifest.pack_sizes
        self._fds: dict[int, int] = {}
        self._lock = threading.Lock()
        self.info = manifest.info
        self.body = manifest.body
        self.needs = manifest.info.needs
        self.blocks = manifest.blocks

    def __enter__(self) -> SnapshotReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the packs and unlock the store. No pack may be mapped any longer: a prune may punch holes in it."""
        with self._lock:
            while self._fds:
                os.close(self._fds.popitem()[1])
            if not self._borrowed:
                self._place.close()

    def block(self, index: int) -> tuple[int, int, int]:
        """The number of a block's pack (for `pack_fd`), its offset in the pack and its length, in bytes."""
        if not 0 <= index < len(self.blocks):
            raise ImageDamaged(
                f"snapshot {self.info.id} is damaged: it has no block {index}",
                advice="`torpor verify` says more",
            )
        return self.blocks.packs[index], self.blocks.offsets[index], self.blocks.lengths[index]

    def pack_fd(self, number: int) -> int:
        """A read-only descriptor of a pack. The reader owns it and closes it.

        Raises ImageDamaged if the pack is missing, truncated or replaced, StoreError if it cannot be opened.
        """
        with self._lock:
            fd = self._fds.get(number)
            if fd is None:
                pack = self.info.packs[number]
                with as_store_errors(self._place.path, f"cannot open pack {pack}"):
                    fd = self._fds[number] = open_pack(self._place, pack, self.pack_sizes[number])
            return fd

    def read_block(self, index: int) -> bytes:
        """Read a block. Raises ImageDamaged if its content has changed."""
        pack, offset, length = self.block(index)
        data = bytearray(length)
        self._read(pack, memoryview(data), offset)
        if blake3(data).digest() != self.blocks.hash(index):
            raise self._changed(index)
        return bytes(data)

    def peek(self, index: int, skip: int, size: int) -> bytes:
        """Read a part of a block without a check of the hash. Raises ImageDamaged, StoreError.

        Args:
            index: the block.
            skip: the offset in the block, in bytes.
            size: the number of bytes.
        """
        pack, offset, length = self.block(index)
        if skip + size > length:
            raise ImageDamaged(
                f"snapshot {self.info.id} is damaged: it names more of block {index} than there is",
                advice="`torpor verify` says more",
            )
        data = bytearray(size)
        self._read(pack, memoryview(data), offset + skip)
        return bytes(data)

    def _read(self, pack: int, buffer: memoryview, offset: int) -> None:
        fd = self.pack_fd(pack)
        with as_store_errors(self._place.path, f"cannot read pack {self.info.packs[pack]}"):
            got = _read(fd, buffer, offset)
        if got < buffer.nbytes:
            raise ImageDamaged(
                f"pack {self.info.packs[pack]} became shorter while it was read", advice="do not change packs"
            )

    def _changed(self, index: int) -> ImageDamaged:
        pack, offset, length = self.block(index)
        return ImageDamaged(
            f"snapshot {self.info.id} is damaged: block {index} ({readable(length)} at {offset} "
            f"of pack {self.info.packs[pack]}) is not what was written",
            advice="restore another snapshot; `torpor verify` lists all the damage",
        )

    def verify_blocks(self, indexes: Iterable[int]) -> None:
        """Read blocks and check their hashes. Raises ImageDamaged at the first bad one, StoreError.

        It uses pread, not a mapping: if another host truncated a mapped file, SIGBUS would end this process.
        """
        for bad in self.bad_blocks(indexes):
            raise self._changed(bad)

    def bad_blocks(self, indexes: Iterable[int]) -> Iterator[int]:
        """Read blocks in the order of their location, and yield those whose content has changed."""
        blocks = self.blocks
        wanted = set(indexes)
        for extreme in (min(wanted, default=None), max(wanted, default=None)):
            if extreme is not None:
                self.block(extreme)  # raises if there is no such block
        rows = sorted(wanted, key=lambda row: (blocks.packs[row], blocks.offsets[row]))
        buffer = memoryview(bytearray(READ_SIZE))
        first = 0
        while first < len(rows):
            pack, start, length = self.block(rows[first])
            last, end = first + 1, start + length
            while last < len(rows) and blocks.packs[rows[last]] == pack:
                reach = blocks.offsets[rows[last]] + blocks.lengths[rows[last]]
                if reach - start > READ_SIZE or blocks.offsets[rows[last]] - end >= PAGE:
                    break
                last, end = last + 1, max(end, reach)
            piece = buffer[: end - start] if end - start <= READ_SIZE else memoryview(bytearray(end - start))
            self._read(pack, piece, start)
            yield from self._bad(rows[first:last], piece)
            first = last

    def read_blocks(self, rows: Sequence[int], buffer: memoryview) -> None:
        """Read adjacent blocks and check their hashes. Raises ImageDamaged at the first bad one, StoreError.

        Args:
            rows: blocks of one pack, by their offset. The caller has checked that they exist.
            buffer: gets the pack's content from the first block to the end of the last.
        """
        self._read(self.blocks.packs[rows[0]], buffer, self.blocks.offsets[rows[0]])
        for bad in self._bad(rows, buffer):
            raise self._changed(bad)

    def _bad(self, rows: Sequence[int], piece: memoryview) -> Iterator[int]:
        """Yield those of some blocks that are not what was written. `piece` begins with the first."""
        blocks = self.blocks
        start = blocks.offsets[rows[0]]
        for row in rows:
            at = blocks.offsets[row] - start
            if blake3(piece[at : at + blocks.lengths[row]]).digest() != blocks.hash(row):
                yield row
