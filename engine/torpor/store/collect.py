"""Files that no snapshot needs any more are removed: packs, and what dead writers left."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from torpor.errors import ImageDamaged
from torpor.store.files import DIRECTORY, Place
from torpor.store.holes import held
from torpor.store.known import snapshot_ids
from torpor.store.manifest import ID, SnapshotInfo, open_manifest, read_head

PINNED: Final = "pinned"
"""An empty file in a snapshot's directory: it is to stay."""
_LEFTOVER: Final = re.compile(f"({ID.pattern})\\.tmp", re.ASCII)
_PACK: Final = re.compile(f"({ID.pattern})\\.pack", re.ASCII)


@dataclass(frozen=True)
class PruneReport:
    """What a prune or a removal took away, or would take away."""

    snapshots: tuple[SnapshotInfo, ...] = ()
    packs: tuple[str, ...] = ()
    """Ids of packs that went as a whole."""
    shrunk: tuple[str, ...] = ()
    """Ids of packs that stay, and gave back the space of blocks that no snapshot needs."""
    leftovers: tuple[str, ...] = ()
    """Files that dead writers left, by their path in the store."""
    freed: int = 0
    """Bytes of the disk that all this took."""
    kept: str = ""
    """Why data that may be unneeded was not removed; empty when none was held back."""
    in_use: bool = False
    """A saver or reader was at work, or locks do not work: of the data of removed snapshots not all was looked at."""
    dry_run: bool = False
    """Nothing was removed: this is what would go."""


def look(place: Place, snapshot: str) -> SnapshotInfo | None:
    """Give what the head of a snapshot's manifest says; None when there is none. Raises ImageDamaged, OSError."""
    opened = open_manifest(place.snapshots, snapshot, place.path)
    if opened is None:
        return None
    try:
        return read_head(*opened, snapshot, place.path).info
    finally:
        os.close(opened[0])


def named_packs(place: Place, snapshot: str) -> tuple[str, ...]:
    """Give the packs that a snapshot names; none where it is gone or damaged."""
    try:
        info = look(place, snapshot)
    except (ImageDamaged, OSError):
        return ()  # it is to go in any case; what it named is found by the next prune
    return info.packs if info else ()


def unlink_snapshot(place: Place, snapshot: str) -> int:
    """Remove a snapshot's manifest and directory, whatever stands there; give the bytes freed.

    It is gone for good once the caller has synced ``snapshots/``.
    """
    freed = 0
    try:
        folder = os.open(snapshot, DIRECTORY, dir_fd=place.snapshots)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        os.unlink(snapshot, dir_fd=place.snapshots)  # a link or a file that stands in its place
        return 0
    try:
        for name in ("manifest", "manifest.tmp", PINNED):
            with contextlib.suppress(FileNotFoundError):
                size = _held(folder, name)
                os.unlink(name, dir_fd=folder)
                freed += size
        try:
            os.rmdir(snapshot, dir_fd=place.snapshots)
        except OSError as error:
            # NFS keeps a file that somebody has open under another name; without manifest it is no snapshot
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            os.fsync(folder)
    finally:
        os.close(folder)
    return freed


def settle(place: Place, snapshots: Iterable[str]) -> None:
    """Have snapshots on disk that are listed: their saver may have been killed before it came to that."""
    for snapshot in snapshots:
        folder = os.open(snapshot, DIRECTORY, dir_fd=place.snapshots)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    os.fsync(place.snapshots)


def collect(place: Place, going: Collection[SnapshotInfo], *, dry_run: bool) -> tuple[PruneReport, set[str]]:
    """Remove the snapshots in `going`, what dead writers left, and the packs that no other snapshot names.

    The lock must be held alone: then every temporary file is a dead writer's, and no new manifest can appear.
    Gives the packs as well that stay and may hold blocks that no snapshot names, for `shrink`.
    """
    rest = _survey(place, {info.id for info in going})
    leftovers = [f"snapshots/{snapshot}" for snapshot in rest.unfinished]
    freed = 0
    for snapshot in [*rest.unfinished, *(info.id for info in going)]:
        if not dry_run:
            freed += unlink_snapshot(place, snapshot)
        elif snapshot not in rest.unfinished:
            freed += _held(place.snapshots, f"{snapshot}/manifest")
    if not dry_run:
        os.fsync(place.snapshots)  # the manifests are gone for good before what they name goes
    packs: list[str] = []
    for name in sorted(os.listdir(place.packs)):
        pack = _PACK.fullmatch(name)
        if _LEFTOVER.fullmatch(name):
            leftovers.append(f"packs/{name}")
        elif pack and pack[1] not in rest.needed and not rest.unreadable:
            packs.append(pack[1])
        else:
            continue
        freed += _held(place.packs, name)
        if not dry_run:
            os.unlink(name, dir_fd=place.packs)  # one that comes back after a loss of power goes with the next prune
    report = PruneReport(
        tuple(going), tuple(packs), leftovers=tuple(leftovers), freed=freed, kept=rest.unreadable, dry_run=dry_run
    )
    # A writer names all that it writes: as long as its own snapshot is there, nothing in a pack is unneeded.
    return report, set() if rest.unreadable else rest.needed.difference(rest.snapshots)


@dataclass
class _Survey:
    """The snapshots that stay."""

    snapshots: list[str] = field(default_factory=list)
    needed: set[str] = field(default_factory=set)
    """The packs that they name."""
    unfinished: list[str] = field(default_factory=list)
    """Directories without a manifest."""
    unreadable: str = ""
    """Why no pack may go."""


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
    return held(os.stat(name, dir_fd=folder, follow_symlinks=False))
