"""The bytes of manifests and of pack headers (docs/format.md), and what a listing shows of a snapshot."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Final

from blake3 import blake3
from google.protobuf.message import DecodeError

from torpor.errors import ImageDamaged, NotPermitted, StoreError
from torpor.store.blocks import END_OF_OFFSETS, HASH, MAX_BLOCKS, ROW, BlockTable
from torpor.store.files import DIRECTORY, PAGE, check_owner, open_file, read_exactly
from torpor.store.store_pb2 import Envelope
from torpor.util.sizes import readable
from torpor.util.strict_protobuf import UnknownField, parse

VERSION: Final = 1
MAGIC: Final = b"\x89TORPOR\n"
PACK_MAGIC: Final = b"\x89TPACK\r\n"
FIXED: Final = struct.Struct("<8sIIQQ")  # magic, version, length of the head, blocks, length of the body
MAX_HEAD: Final = 1 << 20
MAX_BODY: Final = 1 << 30
MAX_PACKS: Final = 1 << 14
MAX_TEXT: Final = 1024
"""The maximal length of a tag's value, a summary or a host name, in characters."""
MAX_TAGS: Final = 64
MAX_NOTICES: Final = 64

ID: Final = re.compile(r"[0-9]{8}-[0-9]{9}-[a-z2-7]{6}", re.ASCII)
KIND: Final = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)

_OTHER_VERSION: Final = "use the version of Torpor that wrote it, or a newer one"
_DAMAGED: Final = "it cannot be used; `torpor ls` shows others, `torpor rm` removes it"


@dataclass(frozen=True)
class SnapshotInfo:
    """What a listing shows of a snapshot."""

    id: str
    store: str
    """The path of the store."""
    kind: str = ""
    created_ns: int = 0
    """By CLOCK_REALTIME of the host that wrote it, in ns."""
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    needs: tuple[str, ...] = ()
    summary: str = ""
    notices: tuple[str, ...] = ()
    """What a restore does not bring back as it was, and what was unusual at the checkpoint: a sentence each."""
    host: str = ""
    size: int = 0
    """The size of the blocks, each counted once, and of the body, in bytes."""
    written: int = 0
    """The bytes that this snapshot added to the store when it was written."""
    packs: tuple[str, ...] = ()
    """Ids of the packs that it needs."""
    damage: str = ""
    """Why it cannot be used; empty if it can. A damaged snapshot may have only an id and a store."""

    @property
    def short(self) -> str:
        """The random part of the id, which is unique enough for people."""
        return self.id.rpartition("-")[2]


@dataclass(frozen=True)
class Manifest:
    """A complete manifest that was checked."""

    info: SnapshotInfo
    pack_sizes: tuple[int, ...]
    blocks: BlockTable
    body: bytes


def new_id(newest: str | None) -> str:
    """Make a unique id that sorts after `newest`, even if the clock was set back."""
    stamp = _stamp(datetime.now(timezone.utc))
    if newest is not None and stamp <= newest[:18]:
        try:
            before = datetime.strptime(newest[:18] + "000", "%Y%m%d-%H%M%S%f")
            stamp = _stamp(before + timedelta(milliseconds=1))
        except (ValueError, OverflowError):
            pass  # `newest` is a forged id without a valid time: no id can be made to sort after it
    return stamp + "-" + "".join("abcdefghijklmnopqrstuvwxyz234567"[byte % 32] for byte in os.urandom(6))


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y%m%d-%H%M%S") + f"{moment.microsecond // 1000:03}"


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Make a text fit for a head: replace every character that is not printable by ``?``."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])


def pack_header(pack: str) -> bytes:
    """The first page of a pack."""
    return (struct.pack("<8sII", PACK_MAGIC, VERSION, 0) + pack.encode()).ljust(PAGE, b"\0")


def encode(head: Envelope, blocks: BlockTable, body: bytes) -> list[bytes | bytearray]:
    """The bytes of a manifest, in pieces. Raises StoreError if it exceeds a limit of the format."""
    packed = head.SerializeToString()
    parts = (
        (f"its head has {readable(len(packed))}", len(packed) > MAX_HEAD),
        (f"its body has {readable(len(body))}", len(body) > MAX_BODY),
        (f"it has {len(blocks)} blocks", len(blocks) > MAX_BLOCKS),
        (f"it needs {len(head.packs)} packs", len(head.packs) > MAX_PACKS),
    )
    if too_large := [words for words, is_too_large in parts if is_too_large]:
        raise StoreError(
            f"snapshot {head.id} is larger than the format allows: {', '.join(too_large)}",
            advice="docs/format.md has the limits; what waits unread in pipes and sockets is in the body, and may be"
            " less if you try again",
        )
    pieces: list[bytes | bytearray] = [
        FIXED.pack(MAGIC, VERSION, len(packed), len(blocks), len(body)),
        packed,
    ]
    sum_ = blake3()
    for piece in pieces:
        sum_.update(piece)
    pieces.append(sum_.digest())
    pieces += [*blocks.columns(), body]
    for piece in pieces[2:]:
        sum_.update(piece)
    return [*pieces, sum_.digest()]


def open_manifest(snapshots: int, snapshot: str, store: str) -> tuple[int, int] | None:
    """Open the manifest of a snapshot. Returns its descriptor and size, or None if there is no manifest.

    Raises ImageDamaged if it is not a private regular file.
    """
    shown = os.path.join(store, "snapshots", snapshot)
    try:
        folder = os.open(snapshot, DIRECTORY, dir_fd=snapshots)
        try:
            check_owner(folder, shown)
            fd, status = open_file("manifest", folder, os.path.join(shown, "manifest"))
        finally:
            os.close(folder)
    except FileNotFoundError:
        return None
    except NotPermitted as error:
        raise _damaged(snapshot, str(error)) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO):
            raise _damaged(snapshot, "what stands in its place is not a regular file in a directory") from error
        raise
    return fd, status.st_size


def _damaged(snapshot: str, why: str, advice: str = _DAMAGED) -> ImageDamaged:
    return ImageDamaged(f"snapshot {snapshot} is damaged: {why}", advice=advice, details=why)


@dataclass(frozen=True)
class Head:
    """The first part of a manifest, which has a checksum of its own."""

    info: SnapshotInfo
    pack_sizes: tuple[int, ...]
    end: int
    """The offset of the block table."""
    blocks: int
    body: int
    raw: bytes
    """The bytes up to `end`."""


def read_head(fd: int, size: int, snapshot: str, store: str, at: int = 0) -> Head:
    """Read the head of an open manifest of `size` bytes, which begins at an offset of the file.

    Raises ImageDamaged. If only the size is wrong, the head can be trusted: then ``info.damage`` says so.
    """
    start = bytearray(FIXED.size)
    if read_exactly(fd, memoryview(start), at) < FIXED.size:
        raise _damaged(snapshot, f"its manifest ends after {size} bytes")
    magic, version, head_size, blocks, body = FIXED.unpack(start)
    if magic != MAGIC:
        raise _damaged(snapshot, "its manifest has a wrong magic number")
    if version != VERSION:
        raise ImageDamaged(
            f"snapshot {snapshot} has format version {version}, and this Torpor reads version {VERSION}",
            advice=_OTHER_VERSION,
            details=f"format version {version}",
        )
    if head_size > MAX_HEAD or blocks > MAX_BLOCKS or body > MAX_BODY:
        raise _damaged(snapshot, "a length in its manifest is beyond what the format allows")
    end = FIXED.size + head_size + HASH
    raw = bytearray(end)
    if read_exactly(fd, memoryview(raw), at) < end:
        raise _damaged(snapshot, f"its manifest ends after {size} bytes, within the head")
    if blake3(memoryview(raw)[: end - HASH]).digest() != raw[end - HASH :]:
        raise _damaged(snapshot, "the checksum of its manifest's head is wrong")
    try:
        envelope = parse(Envelope, bytes(raw[FIXED.size : end - HASH]))
    except UnknownField as error:
        why = f"the head of its manifest says what this Torpor does not know: {error}"
        raise _damaged(snapshot, why, _OTHER_VERSION) from error
    except DecodeError as error:
        raise _damaged(snapshot, "the head of its manifest cannot be parsed") from error
    fault = _head_fault(envelope, snapshot)
    if fault:
        raise _damaged(snapshot, fault)
    whole = end + blocks * ROW + body + HASH
    info = SnapshotInfo(
        id=snapshot,
        store=store,
        kind=envelope.kind,
        created_ns=envelope.created_ns,
        tags=MappingProxyType(dict(envelope.tags)),
        needs=tuple(envelope.needs),
        summary=envelope.summary,
        notices=tuple(envelope.notices),
        host=envelope.host,
        size=envelope.size + body,
        written=envelope.written + whole,
        packs=tuple(pack.id for pack in envelope.packs),
        damage="" if size == whole else f"its manifest has {size} bytes and should have {whole}",
    )
    return Head(info, tuple(pack.size for pack in envelope.packs), end, blocks, body, bytes(raw))


def _head_fault(head: Envelope, snapshot: str) -> str:
    """What is wrong with a parsed head; "" if nothing is."""
    packs = {pack.id for pack in head.packs}
    texts = [head.summary, head.host, *head.tags.values(), *head.needs, *head.notices]
    faults = (
        (head.id != snapshot, "it was written under another id"),
        (not KIND.fullmatch(head.kind), "its kind is not a name"),
        (head.created_ns < 0, "its creation time is negative"),
        (
            len(head.tags) > MAX_TAGS or not all(map(TAG.fullmatch, head.tags)),
            "its tags are not up to 64 names",
        ),
        (len(head.notices) > MAX_NOTICES, "it has more than 64 notices"),
        (
            any(len(text) > MAX_TEXT or not text.isprintable() for text in texts),
            "a text in its head is too long or not printable",
        ),
        (
            len(head.packs) > MAX_PACKS or len(packs) < len(head.packs) or not all(map(ID.fullmatch, packs)),
            "its packs are not a list of different ids",
        ),
        (
            any(not PAGE <= pack.size < END_OF_OFFSETS or pack.size % PAGE for pack in head.packs),
            "a pack's size is not possible",
        ),
    )
    return next((words for wrong, words in faults if wrong), "")


def read_manifest(fd: int, size: int, snapshot: str, store: str, at: int = 0) -> Manifest:
    """Read and check a complete manifest, which begins at an offset of the file. Raises ImageDamaged."""
    head = read_head(fd, size, snapshot, store, at)
    if head.info.damage:
        raise _damaged(snapshot, head.info.damage)
    data = bytearray(size)
    view = memoryview(data)
    if read_exactly(fd, view, at) < size:
        raise _damaged(snapshot, "its manifest became shorter while it was read")
    if blake3(view[:-HASH]).digest() != data[-HASH:] or data[: head.end] != head.raw:
        raise _damaged(snapshot, "the checksum of its manifest is wrong")
    after = head.end + head.blocks * ROW
    blocks = BlockTable.parse(view[head.end : after], head.blocks)
    fault = blocks.fault(head.pack_sizes)
    if fault:
        raise _damaged(snapshot, fault)
    return Manifest(head.info, head.pack_sizes, blocks, bytes(view[after:-HASH]))
