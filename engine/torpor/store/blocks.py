"""Block tables: the location of each block of a snapshot, stored by columns, and the search of a block by its hash."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import add, gt
from typing import Final

from torpor.store.files import PAGE

HASH: Final = 32
"""Size of a BLAKE3 hash in bytes."""
ROW: Final = 8 + 4 + 4 + HASH
"""Size of one block's entry in a manifest, in bytes."""
MAX_BLOCK: Final = 16 << 20
"""The maximal size of a block in bytes."""
MAX_BLOCKS: Final = 1 << 25
"""The maximal number of blocks in one snapshot: 2 TiB in blocks of 64 KiB."""
END_OF_OFFSETS: Final = 1 << 62
"""Packs are shorter than this, so that the sum of an offset and a length cannot overflow."""


@dataclass
class BlockTable:
    """The blocks of a snapshot. Row k is block k; a pack is an index into the snapshot's list of packs."""

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    packs: array[int] = field(default_factory=lambda: array("I"))
    hashes: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.offsets)

    def hash(self, row: int) -> bytes:
        """The BLAKE3 hash of a block's content."""
        return bytes(self.hashes[HASH * row : HASH * (row + 1)])

    def extend(self, other: BlockTable, begin: int, end: int, packs: Mapping[int, int]) -> None:
        """Append rows of another table; `packs` maps its pack numbers to those of this table."""
        self.offsets += other.offsets[begin:end]
        self.lengths += other.lengths[begin:end]
        self.packs.extend(map(packs.__getitem__, other.packs[begin:end]))
        self.hashes += other.hashes[HASH * begin : HASH * end]

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """The ranges of packs that the blocks take, in whole pages, as (pack, start, end). Adjacent blocks are one."""
        ends = [at + (length + PAGE - 1 & -PAGE) for at, length in zip(self.offsets, self.lengths, strict=True)]
        places = zip(self.offsets[1:], ends, self.packs[1:], self.packs, strict=False)
        cuts = [row for row, (at, end, pack, before) in enumerate(places, 1) if at != end or pack != before]
        for begin, stop in pairwise([0, *cuts, len(ends)] if ends else []):
            yield self.packs[begin], self.offsets[begin], ends[stop - 1]

    def columns(self) -> list[bytes | bytearray]:
        """The table's bytes for a manifest, in order."""
        return [self.offsets.tobytes(), self.lengths.tobytes(), self.packs.tobytes(), self.hashes]

    @classmethod
    def parse(cls, data: memoryview, count: int) -> BlockTable:
        """Read a table of `count` blocks from a manifest; `data` has `count` * `ROW` bytes."""
        table = cls()
        table.offsets.frombytes(data[: 8 * count])
        table.lengths.frombytes(data[8 * count : 12 * count])
        table.packs.frombytes(data[12 * count : 16 * count])
        table.hashes += data[16 * count :]
        return table

    def fault(self, pack_sizes: Sequence[int]) -> str:
        """What is wrong with a table that was read, such as a block outside of its pack; "" if nothing is."""
        if not self.offsets:
            return ""
        if max(self.packs) >= len(pack_sizes):
            return f"a block lies in pack number {max(self.packs)}, and {len(pack_sizes)} are named"
        if min(self.lengths) < 1 or max(self.lengths) > MAX_BLOCK:
            return f"a block's length is not between 1 and {MAX_BLOCK}"
        if min(self.offsets) < PAGE or any(map((PAGE - 1).__and__, self.offsets)):
            return "a block does not start on a page boundary behind the pack's header"
        if any(map(gt, map(add, self.offsets, self.lengths), map(pack_sizes.__getitem__, self.packs))):
            return "a block reaches beyond the end of its pack"
        return ""


class Index:
    """Finds rows of a block table by hash.

    The key is the first 8 bytes of the hash as a number. This takes about 100 bytes per block, less than whole hashes
    would. The whole hash is compared before a row is returned.
    """

    def __init__(self, table: BlockTable) -> None:
        """Index all rows of the table."""
        self.table = table
        self._rows: dict[int, int] = {}
        self.extend(0)

    def extend(self, start: int) -> None:
        """Index the rows from `start` to the end of the table."""
        if start < len(self.table):
            # one number per 8 bytes; every fourth is the start of a hash
            keys = memoryview(bytes(self.table.hashes[HASH * start :])).cast("Q")[::4]
            self._rows.update(zip(keys, range(start, len(self.table)), strict=True))

    def find(self, digest: bytes) -> int | None:
        """The row of the block with this hash, or None."""
        row = self._rows.get(int.from_bytes(digest[:8], "little"))
        if row is None or self.table.hashes[HASH * row : HASH * row + HASH] != digest:
            return None
        return row

    def append(self, digest: bytes, pack: int, offset: int, length: int) -> int:
        """Append a block to the table and return its row."""
        table = self.table
        row = len(table.offsets)
        table.offsets.append(offset)
        table.lengths.append(length)
        table.packs.append(pack)
        table.hashes += digest
        self._rows[int.from_bytes(digest[:8], "little")] = row
        return row
