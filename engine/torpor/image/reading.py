"""Reading an image from a snapshot: it is refused when it says what this version does not know.

What is not trusted is bounded before it is built: an image of a few bytes for each message would be gigabytes of them.
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
"""Of snapshots of process trees."""
MOST_MESSAGES = 1 << 20
"""Protobuf messages in an image, each mapping, descriptor and thread being one or a few; also what a checkpoint writes
(docs/format.md)."""
MOST_THREADS = 1 << 15
"""Threads of all processes of a tree together."""


def read(reader: SnapshotReader) -> Tree:
    """Give the image that an open snapshot holds.

    Raises:
        ImageDamaged: it is none of a process tree, is damaged, or says what this version does not know.
    """
    if reader.info.kind != KIND:
        raise ImageDamaged(f"snapshot {reader.info.id} is of the kind {reader.info.kind}, not a process tree")
    return _parsed(reader, partial(strict_protobuf.parse, Tree))


def look(reader: SnapshotReader) -> Tree:
    """Give the image for people to look at: what this version does not know in it is passed over.

    Raises:
        ImageDamaged: it is damaged.
    """
    return _parsed(reader, Tree.FromString)


def excess(body: bytes) -> str:
    """What an encoded image has more of than one may have; empty: nothing. Raises DecodeError."""
    if count(body, Tree, MOST_MESSAGES) > MOST_MESSAGES:
        return f"more than {MOST_MESSAGES} mappings, descriptors and the like"
    return ""


def excess_of_threads(image: Tree) -> str:
    """The same of one that is parsed."""
    if sum(max(len(process.threads), 1) for process in image.processes) > MOST_THREADS:
        return f"more than {MOST_THREADS} threads"
    return ""


def _parsed(reader: SnapshotReader, parse: Callable[[bytes], Tree]) -> Tree:
    name = f"the image of snapshot {reader.info.id}"
    try:
        if too_much := excess(reader.body):
            raise ImageDamaged(f"{name} has {too_much}, which none may have")
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
        raise ImageDamaged(f"{name} has {too_much}, which none may have")
    return image
