"""Packs that stay give back the space of blocks that no snapshot names, by holes: nothing else in them changes."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field

from torpor.errors import ImageDamaged, NotPermitted
from torpor.store.collect import unlink_snapshot
from torpor.store.files import PAGE, Place
from torpor.store.holes import NO_HOLES, Extents, data, held, punch
from torpor.store.known import snapshot_ids
from torpor.store.manifest import Manifest, open_manifest, read_head, read_manifest
from torpor.store.reader import open_pack


@dataclass(frozen=True)
class Shrunk:
    """What became of it."""

    packs: tuple[str, ...] = ()
    """Ids of those that gave space back."""
    freed: int = 0
    """Bytes of the disk."""
    kept: str = ""
    """Why more may be unneeded."""


@dataclass
class _Part:
    """What is named of a pack."""

    size: int = 0
    extents: Extents = field(default_factory=Extents)


class _Named:
    """What snapshots name of some packs."""

    def __init__(self, packs: Collection[str], gone: Collection[str]) -> None:
        self.parts = {pack: _Part() for pack in packs}
        self.unfinished: list[str] = []
        """Directories without a manifest, when it was read last."""
        self._read = set(gone)

    def read(self, place: Place) -> None:
        """Read the tables of all snapshots that were not read yet. Raises ImageDamaged, OSError: they may name any."""
        self.unfinished = []
        for snapshot in snapshot_ids(place):
            if snapshot in self._read:
                continue
            opened = open_manifest(place.snapshots, snapshot, place.path)
            if opened is None:
                self.unfinished.append(snapshot)
                continue
            try:
                # the head has a hash of its own, which vouches for its list of packs
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
    """Punch holes in `packs` of the store at `path` where no snapshot, but for those in `gone`, names a block.

    The tables are read with the lock shared, since that may take long where there are many: savers do not wait for
    it. Those that were published meanwhile are read when the lock is held alone, for which it waits up to `patience`
    seconds. Raises NotPermitted and StoreError, above all when the store is busy, and OSError.
    """
    named = _Named(packs, gone)
    try:
        with closing(Place(path)) as place:
            named.read(place)
        with closing(Place(path, exclusive=True, patience=patience)) as place:
            named.read(place)
            if not dry_run:
                for snapshot in named.unfinished:
                    unlink_snapshot(place, snapshot)
                os.fsync(place.snapshots)  # the manifests are gone for good before what they named goes
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
            continue  # gone, or not what was written: `torpor verify` tells, and nothing is written there
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
    """Punch what is not named; the bytes freed."""
    before = held(os.fstat(fd))
    found = 0
    for gap in part.extents.gaps(PAGE, part.size):
        for start, end in data(fd, *gap):
            found += end - start
            # behind the end nothing is: it tells a dry run whether there can be holes
            punch(fd, *((part.size, part.size + PAGE) if dry_run else (start, end)))
    return found if dry_run else max(0, before - held(os.fstat(fd)))  # a hole may cost the file system a block
