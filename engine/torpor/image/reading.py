"""Read an image from a snapshot; refuse it if it has a field that this version does not know.

An image is not trusted, so its messages are counted before they are parsed: those of a small file could fill gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from google.protobuf.message import DecodeError

from torpor.errors import ImageDamaged
from torpor.image.counting import count
from torpor.image.image_pb2 import Tree
from torpor.store import SnapshotReader
from torpor.util import strict_protobuf

KIND = "tree"
"""The kind of a snapshot of a process tree."""
MOST_MESSAGES = 1 << 20
"""The most protobuf messages in an image, also in one that a checkpoint writes (docs/format.md). Each mapping,
descriptor and thread takes one or a few."""
MOST_THREADS = 1 << 15
"""The most threads of all processes of a tree together."""


def read(reader: SnapshotReader) -> Tree:
    """Return the image of an open snapshot.

    Raises:
        ImageDamaged: the snapshot is not of a process tree, is damaged, or has a field that this version does not know.
    """
    require_tree(reader)
    return _parsed(reader, partial(strict_protobuf.parse, Tree))


def require_tree(reader: SnapshotReader) -> None:
    """Raise ImageDamaged if a snapshot is of another kind."""
    if reader.info.kind != KIND:
        raise ImageDamaged(f"snapshot {reader.info.id} is of the kind {reader.info.kind}, not a process tree")


def look(reader: SnapshotReader) -> Tree:
    """Return the image to be shown to users. Fields that this version does not know are ignored.

    Raises:
        ImageDamaged: the image is damaged.
    """
    return _parsed(reader, Tree.FromString)


def excess(body: bytes) -> str:
    """Say which limit an encoded image exceeds; empty if none. Raises DecodeError."""
    if count(body, Tree, MOST_MESSAGES) > MOST_MESSAGES:
        return f"more than {MOST_MESSAGES} mappings, descriptors and the like"
    return ""


def excess_of_threads(image: Tree) -> str:
    """Say whether a parsed image has too many threads; empty if not."""
    if sum(max(len(process.threads), 1) for process in image.processes) > MOST_THREADS:
        return f"more than {MOST_THREADS} threads"
    return ""


def _parsed(reader: SnapshotReader, parse: Callable[[bytes], Tree]) -> Tree:
    name = f"the image of snapshot {reader.info.id}"
    try:
        if too_much := excess(reader.body):
            raise ImageDamaged(f"{name} has {too_much}, which is not allowed")
        image = parse(reader.body)
    except strict_protobuf.UnknownField as error:
        raise ImageDamaged(
            f"{name} says what this Torpor does not know: {error}",
            advice="use the version of Torpor that wrote it, or a newer one",
        ) from error
    except DecodeError as error:
        raise ImageDamaged(f"{name} cannot be parsed") from error
    if not image.processes:
        raise ImageDamaged(f"{name} holds no process")
    if too_much := excess_of_threads(image):
        raise ImageDamaged(f"{name} has {too_much}, which is not allowed")
    return image
