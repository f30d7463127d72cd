"""Removal of files that no snapshot needs any more: packs, and temporary files of dead writers."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from torpor.errors import ImageDamaged
from torpor.store.files import DIRECTORY, Place
from torpor.store.holes import disk_bytes
from torpor.store.known import snapshot_ids
from torpor.store.manifest import ID, SnapshotInfo, open_manifest, read_head

PINNED: Final = "pinned"
"""The name of an empty file in a snapshot's directory: prune keeps that snapshot."""
_LEFTOVER: Final = re.compile(f"({ID.pattern})\\.tmp", re.ASCII)
_PACK: Final = re.compile(f"({ID.pattern})\\.pack", re.ASCII)


@dataclass(frozen=True)
class PruneReport:
    """What a prune or a removal has removed, or would remove."""

    snapshots: tuple[SnapshotInfo, ...] = ()
    packs: tuple[str, ...] = ()
    """Ids of packs that were removed."""
    shrunk: tuple[str, ...] = ()
    """Ids of packs that stay; the space of blocks that no snapshot needs was freed."""
    leftovers: tuple[str, ...] = ()
    """Files that dead writers left, as paths in the store."""
    freed: int = 0
    """The disk space that was freed, in bytes."""
    kept: str = ""
    """Why data that may be unneeded was not removed; empty if all was."""
    in_use: bool = False
    """A saver or reader was at work, or locks do not work: some data of removed snapshots was not examined."""
    dry_run: bool = False
    """Nothing was removed; this is what would be."""


def look(place: Place, snapshot: str) -> SnapshotInfo | None:
    """Read the head of a snapshot's manifest; None if there is no manifest. Raises ImageDamaged, OSError."""
    opened = open_manifest(place.snapshots, snapshot, place.path)
    if opened is None:
        return None
    try:
        return read_head(*opened, snapshot, place.path).info
    finally:
        os.close(opened[0])


def named_packs(place: Place, snapshot: str) -> tuple[str, ...]:
    """The packs that a snapshot refers to; none if it is gone or damaged."""
    try:
        info = look(place, snapshot)
    except (ImageDamaged, OSError):
        return ()  # the snapshot is removed in any case; the next prune finds its packs
    return info.packs if info else ()


def unlink_snapshot(place: Place, snapshot: str) -> int:
    """Remove a snapshot's manifest and directory, or whatever has its name. Returns the bytes freed.

    The removal is durable once the caller has synced ``snapshots/``.
    """
    return _unlink(place, snapshot, ("manifest", "manifest.tmp", PINNED))


def unlink_unfinished(place: Place, snapshot: str) -> int:
    """Remove the directory of a snapshot that had no manifest. Returns the bytes freed.

    Its writer, if it lives after all, cannot publish it any more: without manifest.tmp its rename fails. If it has
    published it just before, the snapshot stays.
    """
    return _unlink(place, snapshot, ("manifest.tmp",))


def _unlink(place: Place, snapshot: str, names: Iterable[str]) -> int:
    freed = 0
    try:
        folder = os.open(snapshot, DIRECTORY, dir_fd=place.snapshots)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        os.unlink(snapshot, dir_fd=place.snapshots)  # a symbolic link or a file in place of the directory
        return 0
    try:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size = _held(folder, name)
                os.unlink(name, dir_fd=folder)
                freed += size
        try:
            os.rmdir(snapshot, dir_fd=place.snapshots)
        except OSError as error:
            # NFS keeps an open file under another name; without a manifest the directory is no snapshot
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            os.fsync(folder)
    finally:
        os.close(folder)
    return freed


def settle(place: Place, snapshots: Iterable[str]) -> None:
    """Sync listed snapshots to disk: a saver may have been killed between publishing and syncing."""
    for snapshot in snapshots:
        folder = os.open(snapshot, DIRECTORY, dir_fd=place.snapshots)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    os.fsync(place.snapshots)


def collect(place: Place, going: Collection[SnapshotInfo], *, dry_run: bool) -> tuple[PruneReport, set[str]]:
    """Remove the snapshots in `going`, files that dead writers left, and packs that no other snapshot refers to.

    The caller must hold the lock exclusively: then every temporary file belongs to a dead writer, and no manifest can
    be added. Also returns the packs that stay and may hold blocks that no snapshot refers to, for `shrink`. Raises
    StoreError if the lock was lost; then no pack was removed.
    """
    freed = 0
    gone = {info.id for info in going}
    for snapshot in () if dry_run else sorted(gone):
        freed += unlink_snapshot(place, snapshot)
    rest = _survey(place, gone)
    if not dry_run:
        for snapshot in rest.unfinished:
            freed += unlink_unfinished(place, snapshot)
        rest = rest if not rest.unfinished else replace(_survey(place, gone), unfinished=rest.unfinished)
        os.fsync(place.snapshots)  # the manifests must be gone for good before their packs are removed
    else:
        freed += sum(_held(place.snapshots, f"{snapshot}/manifest") for snapshot in gone)
    files = sorted(os.listdir(place.packs))
    # What no manifest names at a moment without writers, none will ever name: so much must be true, and suffices.
    place.confirm()
    leftovers = [f"snapshots/{snapshot}" for snapshot in rest.unfinished]
    packs: list[str] = []
    for name in files:
        pack = _PACK.fullmatch(name)
        if _LEFTOVER.fullmatch(name):
            leftovers.append(f"packs/{name}")
        elif pack and pack[1] not in rest.needed and not rest.unreadable:
            packs.append(pack[1])
        else:
            continue
        freed += _held(place.packs, name)
        if not dry_run:
            os.unlink(name, dir_fd=place.packs)  # if it comes back after a power loss, the next prune removes it
    report = PruneReport(
        tuple(going), tuple(packs), leftovers=tuple(leftovers), freed=freed, kept=rest.unreadable, dry_run=dry_run
    )
    # A writer refers to all blocks that it writes: as long as its own snapshot exists, its pack has no unneeded blocks.
    return report, set() if rest.unreadable else rest.needed.difference(rest.snapshots)


@dataclass
class _Survey:
    """The snapshots that stay."""

    snapshots: list[str] = field(default_factory=list)
    needed: set[str] = field(default_factory=set)
    """The packs that they refer to."""
    unfinished: list[str] = field(default_factory=list)
    """Directories without a manifest."""
    unreadable: str = ""
    """Why no pack may be removed."""


def _survey(place: Place, gone: set[str]) -> _Survey:
    found = _Survey()
    for snapshot in snapshot_ids(place):
        if snapshot in gone:
            continue
        try:
            info = look(place, snapshot)
        except (ImageDamaged, OSError) as error:
            found.unreadable = (
                f"no pack was removed: the manifest of {snapshot} cannot be read and may name any ({error})"
            )
            continue
        if info is None:
            found.unfinished.append(snapshot)
        else:
            found.snapshots.append(snapshot)
            found.needed.update(info.packs)
    return found


def _held(folder: int, name: str) -> int:
    return disk_bytes(os.stat(name, dir_fd=folder, follow_symlinks=False))
