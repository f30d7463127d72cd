"""One snapshot in one file, to carry it from store to store (docs/format.md).

A file is read from its beginning to its end, and nothing in it is trusted: sizes are bounded by the file's, and each
block is hashed before it counts.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Final

from torpor.errors import ImageDamaged, NotFound, Reason, Refused, StoreError
from torpor.store.blocks import MAX_BLOCKS, ROW, BlockTable
from torpor.store.files import PAGE, Place, read_exactly, write_all
from torpor.store.manifest import (
    FIXED,
    ID,
    MAX_BODY,
    MAX_HEAD,
    Manifest,
    SnapshotInfo,
    encode,
    pack_header,
    read_manifest,
)
from torpor.store.reader import SnapshotReader
from torpor.store.store_pb2 import Envelope, PackRef
from torpor.store.writer import SnapshotWriter
from torpor.util.whole_files import drafted

VERSION: Final = 1
MAGIC: Final = b"\x89TFILE\r\n"
HEADER: Final = struct.Struct("<8sII48sQQ")  # magic, version, 0, id, length of the manifest, length of the pack
MAX_MANIFEST: Final = FIXED.size + MAX_HEAD + MAX_BLOCKS * ROW + MAX_BODY + 64

Progress = Callable[[int, int], None]


def _padded(length: int) -> int:
    return (length + PAGE - 1) & -PAGE


def _cannot(path: str, doing: str, error: OSError) -> StoreError:
    why = os.strerror(error.errno) if error.errno else str(error)
    return StoreError(f"{path} cannot be {doing}: {why}")


# --- export -------------------------------------------------------------------------------------------------


def export(reader: SnapshotReader, path: str, progress: Progress | None) -> None:
    """Write an open snapshot to a new file, whole or not at all.

    Raises:
        Refused: there is something with that name.
        StoreError: the file cannot be written, or the store not be read.
        ImageDamaged: a block is not what was written.
    """
    if os.path.lexists(path):
        reason = Reason(path, "it exists", "give another name, or remove it")
        raise Refused(f"snapshot {reader.info.id} was not exported", [reason])
    try:
        with drafted(path) as fd:
            _write(reader, fd, progress)
    except OSError as error:
        raise _cannot(path, "written", error) from error


def _write(reader: SnapshotReader, fd: int, progress: Progress | None) -> None:
    info, count = reader.info, len(reader.blocks)
    table = BlockTable()
    end = PAGE
    for row in range(count):
        table.offsets.append(end)
        table.lengths.append(reader.blocks.lengths[row])
        table.packs.append(0)
        end += _padded(reader.blocks.lengths[row])
    table.hashes += reader.blocks.hashes
    end = end if count else 0
    head = Envelope(
        id=info.id,
        kind=info.kind,
        created_ns=info.created_ns,
        tags=info.tags,
        needs=info.needs,
        packs=[PackRef(id=info.id, size=end)] if count else [],
        summary=info.summary,
        notices=info.notices,
        host=info.host,
        size=sum(table.lengths),
        written=end,
    )
    manifest = b"".join(encode(head, table, reader.body))
    at = _padded(HEADER.size + len(manifest))
    start = HEADER.pack(MAGIC, VERSION, 0, info.id.encode(), len(manifest), end) + manifest
    write_all(fd, [memoryview(start.ljust(at, b"\0"))], 0)
    if count:
        write_all(fd, [memoryview(pack_header(info.id))], at)
    for row in range(count):
        write_all(fd, [memoryview(reader.read_block(row))], at + table.offsets[row])
        if progress:
            progress(table.offsets[row], end)
    os.ftruncate(fd, at + end)


# --- import -------------------------------------------------------------------------------------------------


def import_file(path: str, store: str, progress: Progress | None) -> SnapshotInfo:
    """Add the snapshot in a file to a store, under its id; whole or not at all.

    Raises:
        NotFound: there is no such file.
        Refused: the store has a snapshot of that id.
        ImageDamaged: the file is not one that `export` writes, or is damaged.
        StoreError, NotPermitted: the file cannot be read, the store not be written.
    """
    try:
        # O_NONBLOCK: opening must not hang on a FIFO
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise _cannot(path, "read", error) from error
    try:
        manifest, at = _manifest(fd, path)
        with _writer(store, manifest.info) as writer:
            for row, content in enumerate(_blocks(fd, path, manifest, at)):
                writer.add_copy(content)
                if progress:
                    progress(manifest.blocks.offsets[row], manifest.pack_sizes[0])
            return writer.publish(
                manifest.body, manifest.info.summary, needs=manifest.info.needs, notices=manifest.info.notices
            )
    finally:
        with contextlib.suppress(OSError):  # nothing was written through it
            os.close(fd)


def _damaged(path: str, why: str) -> ImageDamaged:
    return ImageDamaged(f"{path} is not an exported snapshot, or it is damaged: {why}", advice="export it again")


def _read(fd: int, path: str, size: int, offset: int) -> bytearray:
    data = bytearray(size)
    try:
        got = read_exactly(fd, memoryview(data), offset)
    except OSError as error:
        raise _cannot(path, "read", error) from error
    if got < size:
        raise _damaged(path, f"it ends after {offset + got} bytes")
    return data


def _manifest(fd: int, path: str) -> tuple[Manifest, int]:
    """Read and check all but the blocks. Also returns where the pack begins."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(path, "it is not a regular file")
    magic, version, zero, name, length, packed = HEADER.unpack(_read(fd, path, HEADER.size, 0))
    if magic != MAGIC:
        raise _damaged(path, "it does not begin as one")
    if version != VERSION or zero:
        raise ImageDamaged(
            f"{path} has format version {version}, and this Torpor reads version {VERSION}",
            advice="use the version of Torpor that wrote it, or a newer one",
        )
    at = _padded(HEADER.size + length)
    if length > MAX_MANIFEST or status.st_size != at + packed:
        raise _damaged(path, f"it has {status.st_size} bytes and says that it has {at + packed}")
    snapshot = name.rstrip(b"\0").decode(errors="replace")
    if not ID.fullmatch(snapshot):
        raise _damaged(path, "its id is none")
    try:
        manifest = read_manifest(fd, length, snapshot, path, HEADER.size)
    except ImageDamaged as error:
        raise _damaged(path, error.details or error.message) from error
    except OSError as error:
        raise _cannot(path, "read", error) from error
    if fault := _fault(manifest, packed):
        raise _damaged(path, fault)
    if packed and _read(fd, path, PAGE, at) != pack_header(snapshot):
        raise _damaged(path, "its pack does not begin as that of the snapshot")
    return manifest, at


def _fault(manifest: Manifest, packed: int) -> str:
    """What is wrong with the pack that a manifest names; "" if nothing is."""
    packs = list(zip(manifest.info.packs, manifest.pack_sizes, strict=True))
    if packs != ([(manifest.info.id, packed)] if packed else []):
        return "it names other packs than its own"
    end = PAGE
    for offset, length in zip(manifest.blocks.offsets, manifest.blocks.lengths, strict=True):
        if offset != end:  # else a small file could tell of many blocks at one place
            return "its blocks are not one behind the other"
        end += _padded(length)
    return "" if end == packed or not packed else "there is something behind its blocks"


def _blocks(fd: int, path: str, manifest: Manifest, at: int) -> Iterator[memoryview]:
    """Read the blocks in their order, and check the hash of each."""
    blocks = manifest.blocks
    for row in range(len(blocks)):
        content = _read(fd, path, blocks.lengths[row], at + blocks.offsets[row])
        if SnapshotWriter.digest(content) != blocks.hash(row):
            raise _damaged(path, f"block {row} is not what was written")
        yield memoryview(content)


def _writer(store: str, info: SnapshotInfo) -> SnapshotWriter:
    place = Place(store, create=True, use="save")
    try:
        return SnapshotWriter(place, info.kind, info.tags, copy_of=info)
    except FileExistsError:
        place.close()
        advice = "`torpor ls` shows it; what an interrupted import has left, `torpor prune` removes"
        reason = Reason(f"snapshot {info.id}", f"store {store} has it already", advice)
        raise Refused("nothing was imported", [reason]) from None
    except BaseException:
        place.close()
        raise
