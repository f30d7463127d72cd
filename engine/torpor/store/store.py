"""The store: listing, finding, opening, writing, removing, verifying and pruning snapshots."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from torpor.errors import ImageDamaged, NotFound, NotPermitted, Reason, Refused, StoreError
from torpor.store.collect import PINNED, PruneReport, collect, look, named_packs, settle, unlink_snapshot
from torpor.store.files import DIRECTORY, GATE_PATIENCE, Place, as_store_errors, check_unused, store_error
from torpor.store.holes import disk_bytes
from torpor.store.known import KnownBlocks, snapshot_ids
from torpor.store.manifest import ID, SnapshotInfo, open_manifest, read_manifest
from torpor.store.reader import SnapshotReader
from torpor.store.retention import Retention
from torpor.store.shrink import shrink
from torpor.store.transfer import export, import_file
from torpor.store.writer import SnapshotWriter
from torpor.util import settings

NAME: Final = "name"
"""The tag by which people call a snapshot."""
Progress = Callable[[int, int], None]
"""Called with the bytes done so far and the total bytes."""


def default_path() -> str:
    """The store's path if the user names none: as it is set (`torpor config`), else in the user's data folder.

    Raises SettingError for a configuration file that is wrong.
    """
    if named := settings.get("store").value:
        return str(named)
    data = os.environ.get("XDG_DATA_HOME", "")
    # XDG base directory specification: a relative path must be ignored
    return os.path.join(data if os.path.isabs(data) else os.path.expanduser("~/.local/share"), "torpor")


class Store:
    """A directory that holds snapshots. The first writer creates it."""

    path: str
    """The absolute path."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Name a store. This opens and creates nothing."""
        self.path = os.path.abspath(default_path() if path is None else os.fspath(path))
        self._changed: set[str] = set()  # packs of removed snapshots, not examined for unneeded blocks yet

    def __repr__(self) -> str:
        return f"Store({self.path!r})"

    def check_exists(self) -> None:
        """Check that the store exists, without a lock. Raises NotFound if not, StoreError if that cannot be checked."""
        try:
            os.stat(os.path.join(self.path, "snapshots"))
        except FileNotFoundError:
            raise self._missing() from None
        except OSError as error:
            raise store_error(self.path, "cannot open it", error) from error

    def create(self, *, among_files: bool = False) -> None:
        """Make the store if it is not there, in a new directory or an empty one, or with `among_files` in any.

        Raises NotPermitted, and StoreError, also if the directory has other files. A writer makes it in any directory.
        """
        if os.path.isdir(os.path.join(self.path, "snapshots")):
            return
        if os.path.isdir(self.path) and not among_files:
            check_unused(self.path)
        Place(self.path, create=True).close()

    def _place(self, use: str = "") -> Place:
        """Open the store. Raises NotFound if it does not exist."""
        try:
            return Place(self.path, use=use)
        except FileNotFoundError:
            raise self._missing() from None

    def _missing(self) -> NotFound:
        return NotFound(
            f"there is no store at {self.path}",
            advice="is its file system mounted, and is $TORPOR_STORE set as for jobs? The first checkpoint makes it",
        )

    def writer(
        self,
        kind: str,
        tags: Mapping[str, str] | None = None,
        *,
        reuse: bool = True,
        known: KnownBlocks | None = None,
        rate: int = 0,
    ) -> SnapshotWriter:
        """Begin a snapshot. Raises ValueError for an invalid kind or tag, NotPermitted, StoreError.

        Without `reuse` no earlier snapshot's block table is read and no block is shared with one: for snapshots that
        are small, many, and have nothing in common. With `known`, the blocks of the previous snapshot in this store
        (`SnapshotWriter.known`), no table is read either, as long as those blocks still exist. With a `rate`, at most
        so many bytes are written per second.
        """
        place = Place(self.path, create=True, use="save")
        try:
            return SnapshotWriter(place, kind, tags or {}, reuse, known, rate=rate)
        except BaseException:
            place.close()
            raise

    def ids(self) -> list[str]:
        """The ids of the snapshots, oldest first, without reading manifests.

        One of them may not be published yet. A store that does not exist has none. Raises NotPermitted, StoreError.
        """
        try:
            place = Place(self.path)
        except FileNotFoundError:
            return []
        try:
            with as_store_errors(self.path, "cannot list its snapshots"):
                return snapshot_ids(place)
        finally:
            place.close()

    def snapshots(self, only: Collection[str] | None = None) -> list[SnapshotInfo]:
        """List all snapshots, or those in `only`, oldest first. A damaged one has `SnapshotInfo.damage` set.

        A store that does not exist has none. Raises NotPermitted, StoreError.
        """
        try:
            place = Place(self.path)
        except FileNotFoundError:
            return []
        try:
            return _list(place, only)
        finally:
            place.close()

    def resolve(self, text: str) -> SnapshotInfo:
        """Find a snapshot by its id, its name, a unique prefix of the id or of its random part, or by ``latest``.

        A name is the tag ``name``; of several snapshots that have it, the newest is found. Damaged snapshots are found
        as well: ``latest`` never silently means an older one. Raises NotFound.
        """
        infos = self.snapshots()
        if not infos:
            self.check_exists()
            raise NotFound(f"store {self.path} holds no snapshots", advice="`torpor checkpoint PID` makes one")
        if text == "latest":
            return infos[-1]
        found = [info for info in infos if text and (info.id.startswith(text) or info.short.startswith(text))]
        named = [info for info in infos if text and info.tags.get(NAME) == text]
        found = [info for info in found if info.id == text] or named[-1:] or found
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(info.id for info in found[-5:])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise NotFound(
                f"{text!r} is the beginning of {len(found)} snapshots: {shown}{more}",
                advice="give more characters of it",
            )
        import difflib  # noqa: PLC0415  only for a mistake

        names = {name: info.id for info in infos for name in (info.id, info.short)}
        names |= {name: name for info in infos if (name := info.tags.get(NAME))}
        near = difflib.get_close_matches(text, names, n=3)
        meant = ", ".join(dict.fromkeys(names[name] for name in near))
        raise NotFound(
            f"store {self.path} has no snapshot {text!r}",
            advice=f"did you mean {meant}?" if meant else "see `torpor ls`",
        )

    def open(self, text: str | SnapshotInfo, *, knows: Collection[str] = ()) -> SnapshotReader:
        """Open a snapshot for reading. `knows` are the needs of its body that the caller supports.

        Raises NotFound, NotPermitted, StoreError, and ImageDamaged if the manifest has changed, has another format
        version, or needs something that is not in `knows`.
        """
        snapshot = (self.resolve(text) if isinstance(text, str) else text).id
        place = self._place("read")
        try:
            with as_store_errors(self.path, f"cannot read snapshot {snapshot}"):
                opened = open_manifest(place.snapshots, snapshot, self.path)
                if opened is None:
                    raise NotFound(f"snapshot {snapshot} was removed just now", advice="see `torpor ls`")
                try:
                    manifest = read_manifest(*opened, snapshot, self.path)
                finally:
                    os.close(opened[0])
            unknown = sorted(set(manifest.info.needs) - set(knows))
            if unknown:
                raise ImageDamaged(
                    f"snapshot {snapshot} needs what this Torpor does not know: {', '.join(unknown)}",
                    advice="use the version of Torpor that wrote it, or a newer one",
                )
            return SnapshotReader(place, manifest)
        except BaseException:
            place.close()
            raise

    def verify(self, text: str | None = None, progress: Progress | None = None) -> list[Reason]:
        """Read all of one snapshot, or of every snapshot, and list what is damaged. An empty list means no damage.

        A block that several snapshots share is read once. Raises NotFound, also if the store is not there or is
        unmounted meanwhile, NotPermitted, StoreError.
        """
        infos = self.snapshots() if text is None else [self.resolve(text)]
        total = sum(info.size for info in infos)
        problems: list[Reason] = []
        sound: set[bytes] = set()  # blocks by location and hash
        done = 0
        for info in infos:
            try:
                with self.open(info, knows=info.needs) as reader:
                    for size in _verify(reader, sound, problems):
                        done += size
                        if progress:
                            progress(done, total)
            except NotFound:
                done += info.size  # it was removed meanwhile
            except (ImageDamaged, NotPermitted, StoreError) as error:
                problems.append(Reason(f"snapshot {info.id}", error.message, error.advice))
        self.check_exists()  # if its file system was unmounted, nothing is listed, and all has been "removed"
        return problems

    def export_file(
        self, text: str | SnapshotInfo, path: str | os.PathLike[str], progress: Progress | None = None
    ) -> SnapshotInfo:
        """Write a snapshot to a new file, which `import_file` of any store reads. Whole or not at all.

        Raises Refused if the file exists, NotFound, NotPermitted, ImageDamaged, StoreError.
        """
        info = self.resolve(text) if isinstance(text, str) else text
        with self.open(info, knows=info.needs) as reader:
            export(reader, os.fspath(path), progress)
        return info

    def import_file(self, path: str | os.PathLike[str], progress: Progress | None = None) -> SnapshotInfo:
        """Add the snapshot in a file that `export_file` wrote, under its id. Whole or not at all.

        What it holds is checked, and blocks that the store has are not stored again. Whoever made the file could have
        put any code into it. Raises Refused if the store has the snapshot, NotFound, ImageDamaged if the file is none
        or damaged, NotPermitted, StoreError.
        """
        return import_file(os.fspath(path), self.path, progress)

    def remove(self, text: str, *, force: bool = False) -> PruneReport:
        """Remove one snapshot, and if no saver or reader is at work also the packs and blocks that no other one needs.

        The next prune removes what is left. A pinned snapshot is removed only with `force`: a parked kernel or a Slurm
        job may wait in it. Raises NotFound, Refused if it is pinned, NotPermitted, StoreError.
        """
        return self.discard(self.removable([text], force=force))

    def removable(self, texts: Iterable[str], *, force: bool = False) -> list[SnapshotInfo]:
        """Find the snapshots that a removal names; each once. Changes nothing.

        Raises NotFound if one is not there, Refused with all that are pinned unless `force`, NotPermitted, StoreError.
        """
        infos = list({info.id: info for info in map(self.resolve, texts)}.values())
        if not infos or force:
            return infos
        place = self._place()
        try:
            with as_store_errors(self.path, "pins of snapshots cannot be read"):
                pinned = [info for info in infos if _is_pinned(place, info.id)]
        finally:
            place.close()
        if pinned:
            advice = "unpin it or wake what waits; `torpor rm --force` removes it, and what waits in it is lost"
            why = "it is pinned, or a parked kernel or a Slurm job waits in it"
            raise Refused(
                "nothing was removed",
                [Reason(f"snapshot {info.id} ({info.summary})", why, advice) for info in pinned],
            )
        return infos

    def discard(self, infos: Collection[SnapshotInfo]) -> PruneReport:
        """Remove snapshots, pinned ones too, and examine the packs only once. It is no error if one is gone already.

        Raises NotFound if there is no store, NotPermitted, StoreError.
        """
        freed = 0
        place = self._place()
        try:
            for info in infos:
                doing = f"cannot remove snapshot {info.id}"
                with as_store_errors(self.path, doing), contextlib.suppress(FileNotFoundError):
                    self._changed.update(named_packs(place, info.id))
                    freed += unlink_snapshot(place, info.id)
            with as_store_errors(self.path, "cannot remove snapshots"):
                os.fsync(place.snapshots)
        finally:
            place.close()
        report = PruneReport(snapshots=tuple(infos), freed=freed)
        try:
            place = Place(self.path, exclusive=True)
        except StoreError as error:
            return replace(report, kept=str(error), in_use=True)
        try:
            with as_store_errors(self.path, "cannot remove unneeded packs"):
                rest, packs = collect(place, [], dry_run=False)
        finally:
            place.close()
        changed = set(self._changed)
        report = self._shrink(replace(rest, snapshots=report.snapshots, freed=freed + rest.freed), changed & packs)
        if not report.in_use:
            self._changed -= changed
        return report

    def _shrink(self, report: PruneReport, packs: Collection[str], patience: float = 0) -> PruneReport:
        """Free the blocks in `packs` that no snapshot needs. Snapshots that `report` removes do not count."""
        if not packs:
            return report
        try:
            with as_store_errors(self.path, "cannot free unneeded blocks"):
                gone = {info.id for info in report.snapshots}
                shrunk = shrink(self.path, packs, gone, dry_run=report.dry_run, patience=patience)
        except StoreError as error:
            return replace(report, kept=str(error), in_use=True)
        return replace(report, shrunk=shrunk.packs, freed=report.freed + shrunk.freed, kept=shrunk.kept)

    def used(self) -> int:
        """The disk space that the packs take, in bytes, without their holes. Raises NotPermitted, StoreError."""
        try:
            place = Place(self.path)
        except FileNotFoundError:
            return 0
        try:
            with as_store_errors(self.path, "its size cannot be seen"):
                total = 0
                for name in os.listdir(place.packs):
                    with contextlib.suppress(FileNotFoundError):  # a writer has just renamed or removed it
                        total += disk_bytes(os.stat(name, dir_fd=place.packs, follow_symlinks=False))
                return total
        finally:
            place.close()

    def pin(self, id: str, pinned: bool = True) -> None:
        """Protect a snapshot from `prune` and from `remove` without force, or end that.

        Raises NotFound if there is no such snapshot, NotPermitted, StoreError.
        """
        place = self._place("save")  # a prune looks for pins before it removes
        try:
            with as_store_errors(self.path, f"cannot pin snapshot {id}"):
                try:
                    folder = os.open(id if ID.fullmatch(id) else "", DIRECTORY, dir_fd=place.snapshots)
                except FileNotFoundError:
                    raise NotFound(f"store {self.path} has no snapshot {id}", advice="see `torpor ls`") from None
                try:
                    if pinned:
                        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                        os.close(os.open(PINNED, flags, 0o600, dir_fd=folder))
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(PINNED, dir_fd=folder)
                    os.fsync(folder)
                finally:
                    os.close(folder)
        finally:
            place.close()

    def prune(
        self,
        keep_last: int | None = None,
        *,
        keep_hourly: int | None = None,
        keep_daily: int | None = None,
        keep_weekly: int | None = None,
        keep_monthly: int | None = None,
        keep_within: float | None = None,
        dry_run: bool = False,
        kind: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> PruneReport:
        """Remove all snapshots that nothing keeps, and data that no snapshot needs.

        Kept are the newest `keep_last`; the newest of each of the last `keep_hourly` hours that have any, and so on for
        days, ISO weeks and months of local time; and those at most `keep_within` seconds older than the newest one.
        While there are fewer such hours (days...), the oldest snapshot is kept, too.

        With `kind` or `tags` only matching snapshots are counted and removed. Damaged and pinned ones are neither
        counted nor removed. If a manifest cannot be read, every pack stays. Prune waits for savers and readers that are
        at work, and new ones wait for it. Raises ValueError if nothing says what to keep, NotFound if there is no
        store, NotPermitted, and StoreError, above all if the store stays busy.
        """
        retention = Retention(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_within)
        try:
            place = Place(self.path, exclusive=True, patience=GATE_PATIENCE)
        except FileNotFoundError:
            raise self._missing() from None
        try:
            with as_store_errors(self.path, "cannot prune"):
                wanted = (tags or {}).items()
                counted = [
                    info
                    for info in _list(place)
                    if not info.damage and kind in (None, info.kind) and wanted <= info.tags.items()
                ]
                counted = [info for info in counted if not _is_pinned(place, info.id)]
                kept = retention.kept(counted)
                going = [info for info in counted if info.id not in kept]
                if going and not dry_run:
                    settle(place, (info.id for info in counted if info.id in kept))  # before others are removed
                report, packs = collect(place, going, dry_run=dry_run)
        finally:
            place.close()
        return self._shrink(report, packs, GATE_PATIENCE)


def _is_pinned(place: Place, snapshot: str) -> bool:
    try:
        os.stat(f"{snapshot}/{PINNED}", dir_fd=place.snapshots, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):  # or something else has its name
        return False
    return True


def _list(place: Place, only: Collection[str] | None = None) -> list[SnapshotInfo]:
    infos = []
    with as_store_errors(place.path, "cannot list its snapshots"):
        for snapshot in snapshot_ids(place) if only is None else sorted(filter(ID.fullmatch, only)):
            try:
                info = look(place, snapshot)
            except ImageDamaged as error:
                info = SnapshotInfo(snapshot, place.path, damage=error.details)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ESTALE, errno.EACCES):
                    raise
                info = SnapshotInfo(
                    snapshot, place.path, damage=store_error(place.path, "cannot read it", error).message
                )
            if info is not None:
                infos.append(info)
    return infos


def _verify(reader: SnapshotReader, sound: set[bytes], problems: list[Reason]) -> Iterator[int]:
    """Check the blocks of a snapshot that are not in `sound` yet. Yields the bytes done in each step."""
    info, blocks = reader.info, reader.blocks
    yield len(reader.body)
    by_pack: dict[int, list[int]] = {}
    for row, pack in enumerate(blocks.packs):
        by_pack.setdefault(pack, []).append(row)
    for number, rows in sorted(by_pack.items()):
        prefix = info.packs[number].encode()
        keys = {row: prefix + blocks.offsets[row].to_bytes(8, "little") + blocks.hash(row) for row in rows}
        try:
            reader.pack_fd(number)
            for start in range(0, len(rows), 1024):
                part = rows[start : start + 1024]
                bad = set(reader.bad_blocks(row for row in part if keys[row] not in sound))
                sound.update(keys[row] for row in part if row not in bad)
                problems += [
                    Reason(
                        f"snapshot {info.id}",
                        f"block {row} ({blocks.lengths[row]} bytes at {blocks.offsets[row]} of pack "
                        f"{info.packs[number]}) is not what was written",
                    )
                    for row in sorted(bad)
                ]
                yield sum(blocks.lengths[row] for row in part)
        except (ImageDamaged, NotPermitted, StoreError) as error:
            problems.append(Reason(f"snapshot {info.id}", error.message, error.advice))
