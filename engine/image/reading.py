"""Reading an image from a snapshot: it is refused when it says what this version does not know."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from torpor import messages
from torpor.errors import ImageDamaged
from torpor.image.image_pb2 import Tree
from torpor.store import SnapshotReader

KIND = "tree"
"""Of snapshots of process trees."""


def read(reader: SnapshotReader) -> Tree:
    """Give the image that an open snapshot holds. Raises ImageDamaged."""
    name = f"snapshot {reader.info.id}"
    if reader.info.kind != KIND:
        raise ImageDamaged(f"{name} is of the kind {reader.info.kind}, not a process tree")
    try:
        image = messages.parse(Tree, reader.body)
    except messages.UnknownField as error:
        raise ImageDamaged(
            f"the image of {name} says what this Torpor does not know: {error}",
            advice="use the version of Torpor that wrote it, or a newer one",
        ) from error
    except DecodeError as error:
        raise ImageDamaged(f"the image of {name} cannot be parsed") from error
    if not image.processes:
        raise ImageDamaged(f"the image of {name} holds no process")
    return image
