"""Freeing the space of unneeded blocks in packs that stay, by punching holes. Nothing else in the packs changes."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field

from torpor.errors import ImageDamaged, NotPermitted
from torpor.store.collect import unlink_unfinished
from torpor.store.files import PAGE, Place
from torpor.store.holes import NO_HOLES, Extents, data, disk_bytes, punch
from torpor.store.known import snapshot_ids
from torpor.store.manifest import Manifest, open_manifest, read_head, read_manifest
from torpor.store.reader import open_pack


@dataclass(frozen=True)
class Shrunk:
    """The result of `shrink`."""

    packs: tuple[str, ...] = ()
    """Ids of the packs in which space was freed."""
    freed: int = 0
    """The disk space that was freed, in bytes."""
    kept: str = ""
    """Why unneeded blocks may be left."""


@dataclass
class _Part:
    """The ranges of a pack that snapshots refer to."""

    size: int = 0
    extents: Extents = field(default_factory=Extents)


class _Named:
    """The ranges of some packs that snapshots refer to."""

    def __init__(self, packs: Collection[str], gone: Collection[str]) -> None:
        self.parts = {pack: _Part() for pack in packs}
        self.unfinished: list[str] = []
        """Directories without a manifest, at the last `read`."""
        self._read = set(gone)

    def read(self, place: Place) -> None:
        """Read the block tables of the other snapshots. Raises ImageDamaged, OSError: then no hole is safe."""
        self.unfinished = []
        for snapshot in snapshot_ids(place):
            if snapshot in self._read:
                continue
            opened = open_manifest(place.snapshots, snapshot, place.path)
            if opened is None:
                self.unfinished.append(snapshot)
                continue
            try:
                # the head has its own checksum, so its list of packs can be trusted
                if not self.parts.keys().isdisjoint(read_head(*opened, snapshot, place.path).info.packs):
                    self._take(read_manifest(*opened, snapshot, place.path))
            finally:
                os.close(opened[0])
            self._read.add(snapshot)

    def _take(self, manifest: Manifest) -> None:
        mine: dict[int, _Part] = {}
        for number, pack in enumerate(manifest.info.packs):
            if pack in self.parts:
                mine[number] = self.parts[pack]
                mine[number].size = manifest.pack_sizes[number]
        for number, start, end in manifest.blocks.runs():
            if number in mine:
                mine[number].extents.add(start, end)


def shrink(path: str, packs: Collection[str], gone: Collection[str], *, dry_run: bool, patience: float) -> Shrunk:
    """Punch holes in `packs` where no snapshot of the store at `path`, except those in `gone`, refers to a block.

    The block tables are first read without the lock: this may take long, and savers need not wait. Then the lock
    is taken exclusively, for which this waits up to `patience` seconds, and tables published meanwhile are read. Raises
    NotPermitted and StoreError, above all if the store is busy, and OSError.
    """
    named = _Named(packs, gone)
    try:
        with closing(Place(path)) as place:
            named.read(place)
        with closing(Place(path, exclusive=True, patience=patience)) as place:
            named.read(place)
            if not dry_run:
                if named.unfinished:
                    for snapshot in named.unfinished:
                        unlink_unfinished(place, snapshot)
                    named.read(place)  # a writer that was taken for dead may have published its one just before
                os.fsync(place.snapshots)  # the manifests must be gone for good before their blocks are freed
            place.confirm()  # no writer was at work while the tables were read
            return _punch_all(place, named, dry_run=dry_run)
    except ImageDamaged as error:
        return Shrunk(kept=f"unneeded blocks stay in their packs: a manifest cannot be read and may name any ({error})")


def _punch_all(place: Place, named: _Named, *, dry_run: bool) -> Shrunk:
    shrunk: list[str] = []
    freed = 0
    for pack, part in sorted(named.parts.items()):
        try:
            fd = open_pack(place, pack, part.size, os.O_RDWR)
        except (ImageDamaged, NotPermitted):
            continue  # the pack is gone or damaged, which `torpor verify` reports: do not write to it
        try:
            less = _punch(fd, part, dry_run=dry_run)
        except OSError as error:
            why = "the file system cannot punch holes" if error.errno in NO_HOLES else "it cannot be punched"
            why += f" ({os.strerror(error.errno or 0)})"
            return Shrunk(tuple(shrunk), freed, f"unneeded blocks stay in pack {pack}, and perhaps in others: {why}")
        finally:
            os.close(fd)
        if less:
            shrunk.append(pack)
            freed += less
    return Shrunk(tuple(shrunk), freed)


def _punch(fd: int, part: _Part, *, dry_run: bool) -> int:
    """Punch holes where no snapshot refers to a block. Returns the bytes freed."""
    before = disk_bytes(os.fstat(fd))
    found = 0
    for gap in part.extents.gaps(PAGE, part.size):
        for start, end in data(fd, *gap):
            found += end - start
            # a dry run punches behind the end of the file, where nothing is, to see whether holes are possible
            punch(fd, *((part.size, part.size + PAGE) if dry_run else (start, end)))
    return found if dry_run else max(0, before - disk_bytes(os.fstat(fd)))  # a hole may cost the file system a block
