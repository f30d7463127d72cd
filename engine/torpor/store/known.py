"""Blocks that earlier snapshots have stored, so that no writer stores them again."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence, Set
from typing import Final

from torpor.errors import ImageDamaged, NotPermitted
from torpor.store.blocks import BlockTable, Index
from torpor.store.files import Place
from torpor.store.manifest import ID, open_manifest, read_head, read_manifest
from torpor.store.reader import SnapshotReader, open_pack

MAX_KNOWN_BLOCKS: Final = 1 << 20
"""How many stored blocks a writer knows: about 150 MB of memory."""
MAX_KNOWN_SNAPSHOTS: Final = 256
"""In how many of the newest snapshots it looks for them."""

Pack = tuple[str, int]
"""Id and size of a pack."""


def snapshot_ids(place: Place) -> list[str]:
    """Give the names in ``snapshots/`` that are ids, oldest first; some may have no manifest (yet)."""
    return sorted(name for name in os.listdir(place.snapshots) if ID.fullmatch(name))


class KnownBlocks:
    """Blocks by their hash, and the packs they lie in."""

    MOST_PACKS = 64
    """To how many earlier packs a snapshot refers: a restore opens all of them, and a series would come to have a block
    or two in the pack of each of its snapshots. What lies in others is stored anew."""

    def __init__(self, packs: Sequence[Pack], index: Index, snapshot: str = "") -> None:
        """Know the blocks of one snapshot, which was published."""
        self._snapshot = snapshot
        self.packs = list(packs)
        self._index = index
        self._well: dict[int, bool] = {}
        self._retired: Set[int] = frozenset()

    @classmethod
    def of(cls, reader: SnapshotReader) -> KnownBlocks:
        """Know those of a snapshot that is open."""
        return cls(list(zip(reader.info.packs, reader.pack_sizes, strict=True)), Index(reader.blocks), reader.info.id)

    @classmethod
    def newest(cls, place: Place, kind: str) -> KnownBlocks:
        """Know those of the newest snapshots of a kind, newest first up to a bound."""
        known = cls([], Index(BlockTable()))
        numbers: dict[Pack, int] = {}
        for snapshot in reversed(snapshot_ids(place)[-MAX_KNOWN_SNAPSHOTS:]):
            # what cannot be read is not used: its blocks are written again
            with contextlib.suppress(ImageDamaged, NotPermitted, OSError):
                opened = open_manifest(place.snapshots, snapshot, place.path)
                if opened is None:
                    continue
                try:
                    known._take(*opened, place, snapshot, kind, numbers)
                finally:
                    os.close(opened[0])
        return known

    @property
    def table(self) -> BlockTable:
        """The blocks."""
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
        """Find blocks in so many packs only from now on, those that have most of them; the numbers of the others."""
        if len(self.packs) > self.MOST_PACKS:
            self._retired = {number for number, _ in Counter(self.table.packs).most_common()[self.MOST_PACKS :]}
        return self._retired

    def is_there(self, place: Place) -> bool:
        """Whether the snapshot is in an open store still, and every pack well.

        Where it was removed, prune may have freed its blocks since the store was last open, in packs that stay.
        """
        self._well.clear()
        try:
            opened = open_manifest(place.snapshots, self._snapshot, place.path)
        except (ImageDamaged, OSError):
            return False
        if opened is None:
            return False
        os.close(opened[0])
        return all(self._is_well(number, place) for number in range(len(self.packs)))

    def find(self, digest: bytes, place: Place) -> tuple[Pack, int, int] | None:
        """Give a block's pack, its offset and its length, if the pack is well."""
        row = self._index.find(digest)
        if row is None:
            return None
        number = self.table.packs[row]
        if number in self._retired or not self._is_well(number, place):
            return None
        return self.packs[number], self.table.offsets[row], self.table.lengths[row]

    def _is_well(self, number: int, place: Place) -> bool:
        if number not in self._well:
            try:
                os.close(open_pack(place, *self.packs[number]))
                self._well[number] = True
            except (ImageDamaged, NotPermitted, OSError):
                self._well[number] = False
        return self._well[number]
