"""Results of tasks in the store. Small ones share a snapshot; docs/dask.md describes its body."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgpack
from dask.typing import Key
from dask.utils import key_split
from distributed.protocol.serialize import deserialize_bytes, serialize_bytelist

from torpor.errors import ImageDamaged, StoreError
from torpor.store import SnapshotInfo, SnapshotReader, Store

KIND: Final = "dask"
"""Kind of these snapshots in the store."""
NEEDS: Final = "dask-results-1"
"""The layout of the body. A reader that does not know it refuses the snapshot."""
INLINE: Final = 2048
"""Results of up to so many bytes are stored in the body: a block of their own would take a page of the pack."""
BLOCK: Final = 4 << 20
"""Longest block of a result, bytes."""
SMALL: Final = 64 << 10
"""Shorter frames are joined before they become blocks, bytes."""

_BOUND: Final = re.compile(rb"distributed\W?(?:client|actor|variable|queues|lock|event|semaphore|multi_lock|shuffle)\b")
"""Modules whose objects are valid in one running cluster only. A pickle has their names in plain text."""

T = TypeVar("T")


@dataclass
class Result:
    """A result to be stored."""

    key: Key
    token: str
    """The fingerprint of its task (fingerprint.py); empty: not for a warm start."""
    run_id: int
    """Dask's number of the execution, unique in one scheduler; -1 for scattered data."""
    seconds: float
    """How long the computation took."""
    frames: list[memoryview]
    """From `freeze`."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(frame.nbytes for frame in self.frames)


@dataclass(slots=True)
class Kept:
    """One result that is in the store."""

    key: Key
    token: str
    run_id: int
    seconds: float
    size: int
    snapshot: str
    row: int
    """Its place in the snapshot's body."""


class NoAnswer(StoreError):
    """The file system of the store does not answer."""


class BoundToCluster(Exception):
    """The result holds a future, an actor or the like, which is not valid once the cluster has changed."""


def freeze(value: Any) -> list[memoryview]:
    """Give the bytes of a result, as Dask would send it to another worker, without a copy where Dask makes none.

    Raises BoundToCluster, TypeError and whatever the value's own serialization raises.
    """
    frames = [memoryview(frame).cast("B") for frame in serialize_bytelist(value, compression=False, on_error="raise")]
    for number, frame in enumerate(frames):
        # the second is Dask's header; a pickle begins with PROTO (0x80); all else is raw content of arrays
        if frame.nbytes and (number == 1 or frame[0] == 0x80) and _BOUND.search(frame):
            raise BoundToCluster
    return [frame for frame in frames if frame.nbytes]


def thaw(data: bytes | bytearray) -> Any:
    """Make the result from its bytes. It unpickles: the store makes sure that it belongs to this user."""
    return deserialize_bytes(memoryview(data))


def _pieces(frames: Sequence[memoryview]) -> Iterator[memoryview]:
    """Put short neighbours together, so that they do not take a page each."""
    short = bytearray()
    for frame in frames:
        if frame.nbytes < SMALL:
            short += frame
            continue
        if short:
            yield memoryview(short)
            short = bytearray()
        yield frame
    if short:
        yield memoryview(short)


def write(store: Store, results: Sequence[Result], cluster: str, worker: str) -> SnapshotInfo:
    """Store results as one snapshot. Raises StoreError, NotPermitted; then none of them is kept."""
    with store.writer(KIND, {"cluster": cluster, "worker": worker}, reuse=False) as writer:
        rows = []
        for result in results:
            blocks: list[int] = []
            inline = b""
            if result.size <= INLINE:
                inline = b"".join(result.frames)
            else:
                for piece in _pieces(result.frames):
                    full, rest = divmod(piece.nbytes, BLOCK)
                    blocks += writer.add_blocks(piece, [BLOCK] * full + [rest] * bool(rest))
            rows.append([result.key, result.token, result.run_id, result.seconds, result.size, blocks, inline])
        prefixes = sorted({key_split(result.key) for result in results if result.key})
        names = ", ".join(prefixes[:3]) + (f" and {len(prefixes) - 3} more" if len(prefixes) > 3 else "")
        summary = f"{len(results)} result{'s' * (len(results) > 1)} of {names}"
        return writer.publish(msgpack.packb({"results": rows}), summary, [NEEDS])


def _open(store: Store, snapshot: str) -> SnapshotReader:
    return store.open(SnapshotInfo(snapshot, store.path), knows=[NEEDS])


def _rows(reader: SnapshotReader) -> list[Any]:
    """Give the rows of a body. Raises ImageDamaged when they are not as `write` makes them."""
    try:
        rows = msgpack.unpackb(reader.body, use_list=False, strict_map_key=True)["results"]
        for key, token, run_id, seconds, size, blocks, inline in rows:
            hash(key)
            fits = sum(reader.block(index)[2] for index in blocks) + len(inline) == size
            if not (fits and isinstance(token, str) and isinstance(run_id, int) and isinstance(seconds, float)):
                raise ValueError(f"the row of {key!r} does not fit together")
        return list(rows)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise ImageDamaged(
            f"snapshot {reader.info.id} is damaged: its list of results cannot be read ({error})",
            advice="remove it with `torpor rm`",
        ) from error


def look(store: Store, info: SnapshotInfo) -> list[Kept]:
    """List what a snapshot of this kind holds. Raises TorporError."""
    with _open(store, info.id) as reader:
        return [
            Kept(key, token, run_id, seconds, size, info.id, row)
            for row, (key, token, run_id, seconds, size, _, _) in enumerate(_rows(reader))
        ]


def read(store: Store, snapshot: str, row: int, key: Key) -> Any:
    """Give a result. Raises TorporError when it is not there as it was written, and whatever unpickling raises."""
    with _open(store, snapshot) as reader:
        rows = _rows(reader)
        if row >= len(rows) or rows[row][0] != key:
            raise ImageDamaged(f"snapshot {snapshot} does not hold {key!r} in row {row}")
        *_, size, blocks, inline = rows[row]
        data = bytearray(inline)
        if not inline:
            data = bytearray(size)
            at = 0
            for index in blocks:
                content = reader.read_block(index)
                data[at : at + len(content)] = content
                at += len(content)
    return thaw(data)


def in_time(seconds: float, doing: str, function: Callable[..., T], *args: Any) -> T:
    """Call a function that waits for storage, but no longer than `seconds`; then raise NoAnswer.

    The call goes on in a thread that nobody waits for: a read from a file server that is gone cannot be ended.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function(*args))
        except BaseException as error:  # handed over to the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run, name="torpor-store", daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise NoAnswer(f"{doing}: the store did not answer within {seconds:g} s", advice="look after its file system")
    return outcome[0]
