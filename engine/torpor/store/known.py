"""Blocks that earlier snapshots have stored: a writer does not store them again."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import Final

from torpor.errors import ImageDamaged, NotPermitted
from torpor.store.blocks import BlockTable, Index
from torpor.store.files import Place
from torpor.store.manifest import ID, open_manifest, read_head, read_manifest
from torpor.store.reader import SnapshotReader, open_pack

MAX_KNOWN_BLOCKS: Final = 1 << 20
"""The most stored blocks that a writer keeps in mind: about 150 MB of memory."""
MAX_KNOWN_SNAPSHOTS: Final = 256
"""The number of newest snapshots whose blocks are read at most."""
WORTH: Final = 16 << 10
"""For each so many bytes that were not found the manifest of one more snapshot is read: a small save in a store of many
snapshots would take longer to read hundreds of manifests than to write what they might have.
"""
ALWAYS_READ: Final = 4
"""The number of newest snapshots that are looked at before anything is stored again, whatever its size."""

Pack = tuple[str, int]
"""The id and the size of a pack."""


def snapshot_ids(place: Place) -> list[str]:
    """The entries of ``snapshots/`` that are ids, oldest first. Some may have no manifest (yet)."""
    return sorted(name for name in os.listdir(place.snapshots) if ID.fullmatch(name))


class KnownBlocks:
    """Stored blocks by their hash, and their packs."""

    MOST_PACKS = 64
    """The most earlier packs that a snapshot refers to. A restore opens all of them, and without a limit a snapshot of
    a series would need a block or two from each earlier pack. Blocks in other packs are stored again.
    """

    def __init__(self, packs: Sequence[Pack], index: Index, snapshot: str = "") -> None:
        """Know the blocks of one published snapshot."""
        self._snapshot = snapshot
        self.packs = list(packs)
        self._index = index
        self._older: Iterator[None] = iter(())
        """Each step reads one more manifest."""
        self._missing = 0
        """The bytes that were not found, less what manifests were read for them."""
        self._well: dict[int, bool] = {}
        self._retired: Set[int] = frozenset()

    @classmethod
    def of(cls, reader: SnapshotReader) -> KnownBlocks:
        """Know the blocks of an open snapshot."""
        return cls(list(zip(reader.info.packs, reader.pack_sizes, strict=True)), Index(reader.blocks), reader.info.id)

    @classmethod
    def newest(cls, place: Place, kind: str) -> KnownBlocks:
        """Know the blocks of the newest snapshots of a kind, up to a limit. They are read as `find` needs them."""
        known = cls([], Index(BlockTable()))
        known._older = known._read(place, kind)
        known._missing = ALWAYS_READ * WORTH
        return known

    def _read(self, place: Place, kind: str) -> Iterator[None]:
        """Read a manifest at each step, the newest first."""
        numbers: dict[Pack, int] = {}
        for snapshot in reversed(snapshot_ids(place)[-MAX_KNOWN_SNAPSHOTS:]):
            # skip what cannot be read: its blocks are written again
            with contextlib.suppress(ImageDamaged, NotPermitted, OSError):
                opened = open_manifest(place.snapshots, snapshot, place.path)
                if opened is None:
                    continue
                try:
                    self._take(*opened, place, snapshot, kind, numbers)
                finally:
                    os.close(opened[0])
            yield

    @property
    def table(self) -> BlockTable:
        """The table of these blocks."""
        return self._index.table

    def _take(self, fd: int, size: int, place: Place, snapshot: str, kind: str, numbers: dict[Pack, int]) -> None:
        head = read_head(fd, size, snapshot, place.path)
        start = len(self.table)
        if head.info.kind != kind or start + head.blocks > MAX_KNOWN_BLOCKS:
            return
        manifest = read_manifest(fd, size, snapshot, place.path)
        own = []
        for pack in zip(manifest.info.packs, manifest.pack_sizes, strict=True):
            if pack not in numbers:
                numbers[pack] = len(self.packs)
                self.packs.append(pack)
            own.append(numbers[pack])
        self.table.extend(manifest.blocks, 0, len(manifest.blocks), dict(enumerate(own)))
        self._index.extend(start)

    def retire(self) -> Set[int]:
        """Use only the `MOST_PACKS` packs with the most blocks from now on. Returns the numbers of the others."""
        if len(self.packs) > self.MOST_PACKS:
            self._retired = {number for number, _ in Counter(self.table.packs).most_common()[self.MOST_PACKS :]}
        return self._retired

    def is_there(self, place: Place) -> bool:
        """Whether an open store still has the snapshot, and all its packs are intact.

        If the snapshot was removed, a prune may have freed its blocks in packs that stay.
        """
        self._well.clear()
        try:
            opened = open_manifest(place.snapshots, self._snapshot, place.path)
        except (ImageDamaged, OSError):
            return False
        if opened is None:
            return False
        os.close(opened[0])
        return all(self._is_intact(number, place) for number in range(len(self.packs)))

    def find(self, digest: bytes, size: int, place: Place) -> tuple[Pack, int, int] | None:
        """The pack, offset and length of a block of `size` bytes; None if it is not known or its pack is not intact."""
        row = self._index.find(digest)
        if row is None:
            self._missing += size
            row = self._look_further(digest)
        if row is None:
            return None
        number = self.table.packs[row]
        if number in self._retired or not self._is_intact(number, place):
            return None
        return self.packs[number], self.table.offsets[row], self.table.lengths[row]

    def _look_further(self, digest: bytes) -> int | None:
        """Read older manifests until one has the block, or until too little data is missing to be worth another one."""
        row = None
        while row is None and self._missing >= WORTH and next(self._older, self) is not self:
            self._missing -= WORTH
            row = self._index.find(digest)
        return row

    def _is_intact(self, number: int, place: Place) -> bool:
        if number not in self._well:
            try:
                os.close(open_pack(place, *self.packs[number]))
                self._well[number] = True
            except (ImageDamaged, NotPermitted, OSError):
                self._well[number] = False
        return self._well[number]
